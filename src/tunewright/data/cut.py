"""Dialogs that are too long are cut between turns, never inside an answer: what is kept is a whole dialog again.

The system prompt always stays. `keep_oldest` ends the dialog earlier, so every answer that is kept is trained on
exactly the words that preceded it. `keep_newest` lets it begin later, at the first question from which the newest
exchanges fit; answers then follow on less than they did. What is kept is rendered anew, so its tokens are those of a
dialog that was never longer, and every trained answer keeps its stop token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from tunewright.data.examples import Dialog
from tunewright.data.template import ChatTemplate, EncodedDialog, Refused

TooLong = Literal["keep_oldest", "keep_newest", "drop"]


def fit_many(
    template: ChatTemplate, dialogs: Sequence[Dialog], max_length: int, too_long: TooLong
) -> Iterator[EncodedDialog | Refused]:
    """As `ChatTemplate.attempt_many`, with the dialogs whose sequences exceed `max_length` tokens cut until they fit.

    Where nothing of a dialog fits, and for `drop`, the result is the over-long encoding: the caller tells its length.
    """
    for dialog, result in zip(dialogs, template.attempt_many(dialogs), strict=True):
        if isinstance(result, Refused) or too_long == "drop" or result.longest <= max_length:
            yield result
        else:
            cut = _cut(template, dialog, max_length, too_long)
            yield result if cut is None else replace(cut, uncut=result.longest)


def _cut(template: ChatTemplate, dialog: Dialog, max_length: int, too_long: TooLong) -> EncodedDialog | None:
    """The largest part that fits, None where there is none."""
    ends = [i + 1 for i, message in enumerate(dialog.messages) if message.train]
    begins = _openings(dialog)
    if too_long == "keep_oldest":
        return _first_fitting([_part(dialog, begins[0], end) for end in reversed(ends)], template, dialog, max_length)
    for end in reversed(ends):  # an exchange that does not fit alone cannot be among the newest
        parts = [_part(dialog, begin, end) for begin in begins if begin < end]
        fitting = _first_fitting(parts, template, dialog, max_length)
        if fitting is not None:
            return fitting
    return None


def _openings(dialog: Dialog) -> list[int]:
    """Where a dialog may begin behind its system prompt: at its first turn, and at each later one of a user."""
    system = _system_turns(dialog)
    users = [i for i, message in enumerate(dialog.messages) if message.role == "user"]
    return list(dict.fromkeys([system, *(i for i in users if i > system)]))


def _system_turns(dialog: Dialog) -> int:
    return next((i for i, message in enumerate(dialog.messages) if message.role != "system"), len(dialog.messages))


def _part(dialog: Dialog, begin: int, end: int) -> Dialog:
    return replace(dialog, messages=dialog.messages[: _system_turns(dialog)] + dialog.messages[begin:end])


def _first_fitting(
    parts: Sequence[Dialog], template: ChatTemplate, dialog: Dialog, max_length: int
) -> EncodedDialog | None:
    """The first of `parts` that fits, by bisection: each is shorter than the one before."""
    low, high = 0, len(parts)
    fitting: EncodedDialog | None = None
    while low < high:
        middle = (low + high) // 2
        (result,) = template.attempt_many([parts[middle]])
        if isinstance(result, EncodedDialog) and result.longest <= max_length:
            fitting = replace(result, cut=len(dialog.messages) - len(parts[middle].messages))
            high = middle
        else:
            low = middle + 1
    return fitting
