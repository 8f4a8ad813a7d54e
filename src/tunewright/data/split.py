"""Hold out examples for validation: the same for the same seed, and never one that is trained on too."""

import random
from collections.abc import Sequence

from tunewright.data.examples import Dialog, Example, Labelled, Preference, Prompt, Text
from tunewright.errors import UsageError

FEW = 10  # with fewer examples than this, a share that comes to less than one holds out none


def split(examples: Sequence[Example], size: float | None, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation examples, each in their first order.

    `size` below 1 is a share, otherwise a count; None and 0 hold out nothing. Equal examples stay together, so that
    fewer than `size` may be held out, and more only where no group of equal ones is small enough. Raises UsageError
    where a count leaves nothing to train.
    """
    wanted = _count(len(examples), size)
    groups: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(content(example), []).append(index)
    if size is not None and size >= 1 and len(groups) == 1:
        raise UsageError(
            f"data.validation: all {len(examples)} examples are equal, none can be held out: set it to null"
        )
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    held_out: set[int] = set()
    for group in shuffled:
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    if wanted and not held_out and len(shuffled) > 1:
        smallest: list[int] = min(shuffled, key=len)
        held_out.update(smallest)
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return train, [examples[index] for index in sorted(held_out)]


def content(example: Example) -> tuple[object, ...]:
    """What makes two examples the same, wherever they stand."""
    match example:
        case Dialog():
            return (example.messages, example.tools)
        case Text():
            return (example.text,)
        case Preference():
            return (example.prompt, example.chosen, example.rejected, example.tools)
        case Labelled():
            return (example.prompt, example.answer, example.good, example.tools)
        case Prompt():
            return (example.messages, example.tools)


def _count(total: int, size: float | None) -> int:
    """How many of `total` examples to hold out."""
    if not size:
        return 0
    if size >= 1:
        if size >= total:
            raise UsageError(
                f"data.validation: {int(size)} examples are to be held out, but there are only {total}: "
                "give a smaller number, or a share such as 0.02"
            )
        return int(size)
    if size * total < 1:
        return 1 if total >= FEW else 0
    return min(round(size * total), total - 1)
