"""Hold out examples for validation: the same for the same seed, and never one that is trained on too.

Examples are told apart by a 64-bit hash of what stands in them. Should two different ones share a hash (one chance in
forty million among a million rows), they are held out together, and counted as duplicates; no more comes of it.
"""

import random
from array import array
from hashlib import blake2b

import numpy as np

from tunewright.errors import UsageError

FEW = 10  # with fewer examples than this, a share that comes to less than one holds out none


def content_hash(content: bytes) -> int:
    """64 bits of the content of an example, see `data/content.py`."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def hold_out(hashes: np.ndarray, size: float | None, seed: int) -> np.ndarray:
    """Indices of the examples held out, int64, in rising order; `hashes` uint64 [examples].

    `size` below 1 is a share, otherwise a count; None and 0 hold out nothing. Equal examples stay together, so that
    fewer than `size` may be held out, and more only where no group of equal ones is small enough. Raises UsageError
    where a count leaves nothing to train.
    """
    wanted = _count(len(hashes), size)
    if not wanted:
        return np.zeros(0, np.int64)
    first, counts = _groups(hashes)
    if size is not None and size >= 1 and len(first) == 1:
        raise UsageError(f"data.validation: all {len(hashes)} examples are equal, none can be held out: set it to null")
    shuffled = array("q", range(len(first)))
    random.Random(seed).shuffle(shuffled)
    chosen, held_out = [], 0
    for group in shuffled:
        if held_out + counts[group] <= wanted:
            chosen.append(group)
            held_out += int(counts[group])
            if held_out == wanted:
                break
    if not chosen and len(first) > 1:
        chosen.append(min(shuffled, key=counts.__getitem__))
    return np.flatnonzero(np.isin(hashes, hashes[first[chosen]]))


def repeated(hashes: np.ndarray) -> np.ndarray:
    """Indices of the examples that equal an earlier one, int64, in rising order."""
    again = np.ones(len(hashes), bool)
    again[_groups(hashes)[0]] = False
    return np.flatnonzero(again)


def _groups(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each group of equal hashes, in order of appearance: the index of its first, and its size."""
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order], counts[order]


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
