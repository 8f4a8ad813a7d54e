"""Rows that stand more than once, exactly or nearly, and what is held out although it is trained on.

Nearly equal means that at least 80 % of the pieces of four letters are the same (Jaccard similarity), estimated from
64 MinHash values (Broder 1997) of which one byte each is kept (b-bit minwise hashing, arXiv 0910.3349): 64 bytes a
row. Rows that agree in four neighbouring bytes meet in a band and are compared, so 99.98 % of the pairs at 80 % meet.
"""

from dataclasses import dataclass

import numpy as np

from tunewright.data.findings.characters import DIGIT
from tunewright.data.findings.found import SHOWN, SHOWN_SAMPLES, Found, Sample, count_of, shorten
from tunewright.data.findings.rows import Batch, Characters, Rows, fold

ALIKE = 0.8
MOST_COMPARED = 1_000_000  # rows; beyond, only equality is looked at
_VALUES, _BANDS, _PIECE = 64, 16, 4
_BY_CHANCE = 1 / 256  # that two unrelated bytes agree
_AT_ONCE = 1 << 16  # pairs compared at once


class Copies:
    """Takes 16 bytes for each row and 73 for each of a million: those held out, then the first that are trained on."""

    def __init__(self, rows: Rows, trained: int, held_out: int) -> None:
        """So many rows will come at most, those that are trained on first."""
        self._rows = rows
        self._contents = np.empty(trained + held_out, np.int64)
        self._asked = np.empty(trained + held_out, np.int64)
        self._most_trained = MOST_COMPARED - min(held_out, MOST_COMPARED // 2)
        compared = min(trained, self._most_trained) + held_out
        self._signatures = np.empty((min(compared, MOST_COMPARED), _VALUES), np.uint8)
        self._numbers = np.empty(len(self._signatures), np.int64)  # the row of each signature
        self._worded = np.empty(len(self._signatures), bool)
        self._count = self._signed = 0

    def add(self, batch: Batch) -> None:
        begin, end = self._count, self._count + len(batch.rows)
        self._contents[begin:end] = [row.content for row in batch.rows]
        self._asked[begin:end] = [row.asked for row in batch.rows]
        self._count = end
        rows = [row for row in batch.rows if row.held_out or row.number < self._most_trained]
        rows = rows[: len(self._signatures) - self._signed]
        if rows:
            signed = slice(self._signed, self._signed + len(rows))
            together = batch if len(rows) == len(batch.rows) else Batch(rows)
            self._signatures[signed], self._worded[signed] = sign(together)
            self._numbers[signed] = [row.number for row in rows]
            self._signed = signed.stop

    def result(self) -> list[Found]:
        """To be asked for once: the signatures are moved about, since two copies of them would be too many."""
        contents, trained = self._contents[: self._count], self._rows.trained
        first = np.zeros(self._count, bool)
        first[np.unique(contents, return_index=True)[1]] = True
        numbers = self._numbers[: self._signed]
        compared = np.flatnonzero(self._worded[: self._signed] & first[numbers])
        once = numbers[compared]
        like, alike = nearest_earlier(_moved_up(self._signatures, compared), int(np.searchsorted(once, trained)))
        near = [
            (int(number), int(once[other]), float(similarity))
            for number, other, similarity in zip(once, like, alike, strict=True)
            if other >= 0
        ]
        return [
            self._equal(contents, trained),
            self._near([pair for pair in near if pair[0] < trained]),
            self._leaks(contents, trained, [pair for pair in near if pair[0] >= trained]),
            self._contradictions(contents[:trained], self._asked[:trained]),
        ]

    def _equal(self, contents: np.ndarray, trained: int) -> Found:
        """Rows equal to an earlier one of their side; a split never parts equal rows."""
        ranked: list[tuple[int, int]] = []
        more = 0
        for begin, side in ((0, contents[:trained]), (trained, contents[trained:])):
            _, first, times = np.unique(side, return_index=True, return_counts=True)
            more += int((times - 1).sum())
            ranked += zip((-times[times > 1]).tolist(), (begin + first[times > 1]).tolist(), strict=True)
        if not more:
            return Found("duplicates", "fine", "no two examples are equal")
        ranked = sorted(ranked)[:SHOWN]
        times_of = [f"{self._rows.place(number)} stands {-minus:,} times" for minus, number in ranked[:2]]
        equal = "equals" if more == 1 else "equal"
        return Found(
            "duplicates",
            "note",
            f"{count_of(more, 'example')} {equal} an earlier one: {', '.join(times_of)}",
            "each is computed once, but counts as often as it stands; remove what should not weigh more",
            more,
            [self._rows.place(number) for _, number in ranked],
            [self._sample(number) for _, number in ranked[:SHOWN_SAMPLES]],
        )

    @property
    def _among(self) -> str:
        """What to say where not every row was compared."""
        return "" if self._signed == self._count else f" among the {self._signed:,} that were compared"

    def _near(self, pairs: list[tuple[int, int, float]]) -> Found:
        if not pairs:
            return Found("near_duplicates", "fine", f"no two training examples are nearly equal{self._among}")
        equal = "equals" if len(pairs) == 1 else "equal"
        return Found(
            "near_duplicates",
            "note",
            f"about {count_of(len(pairs), 'training example')} nearly {equal} an earlier one{self._among}",
            f"{ALIKE * 100:.0f} % of their four-letter pieces are the same; many variants of one row teach it by heart",
            len(pairs),
            [self._rows.place(number) for number, _, _ in pairs[:SHOWN]],
            self._pairs(pairs),
        )

    def _leaks(self, contents: np.ndarray, trained: int, near: list[tuple[int, int, float]]) -> Found:
        held_out = len(contents) - trained
        if not held_out:
            return Found("leakage", "fine", "nothing is held out, so nothing can leak")
        order = np.argsort(contents[:trained], kind="stable")
        ordered = contents[order]
        at = np.minimum(np.searchsorted(ordered, contents[trained:]), trained - 1)
        exact = [
            (trained + int(index), int(order[at[index]]), 1.0)
            for index in np.flatnonzero(ordered[at] == contents[trained:])
        ]
        if not exact and not near:
            return Found("leakage", "fine", f"no held-out example is trained on, nor nearly so{self._among}")
        told = sorted([*exact, *near])
        parts = [f"{len(exact):,} equal"] if exact else []
        parts += [f"about {len(near):,} nearly equal"] if near else []
        return Found(
            "leakage",
            "warning",
            f"of {count_of(held_out, 'held-out example')}, {' and '.join(parts)} to a training example{self._among}",
            "validation will look better than the model is; remove the copies, or hold out a file of other rows",
            len(told),
            [self._rows.place(number) for number, _, _ in told[:SHOWN]],
            self._pairs(told),
        )

    def _contradictions(self, contents: np.ndarray, asked: np.ndarray) -> Found:
        """Questions (with all that stands before them) that have several answers."""
        _, first = np.unique(contents, return_index=True)
        first.sort()
        _, where, answers = np.unique(asked[first], return_index=True, return_counts=True)
        several = int((answers > 1).sum())
        if not several:
            return Found("several_answers", "fine", "no question has different answers")
        ranked = sorted(zip((-answers[answers > 1]).tolist(), first[where[answers > 1]].tolist(), strict=True))
        most, number = ranked[0]
        have = f"{count_of(several, 'question')} {'has' if several == 1 else 'have'} different answers"
        return Found(
            "several_answers",
            "note",
            f"{have}; the one at {self._rows.place(number)} has {-most:,}",
            "the model learns a mixture of them; keep the one you want, unless variety is meant",
            several,
            [self._rows.place(number) for _, number in ranked[:SHOWN]],
            [self._sample(number) for _, number in ranked[:SHOWN_SAMPLES]],
        )

    def _sample(self, number: int) -> Sample:
        row = self._rows.again(number)
        return Sample(row.place, shorten(row.text))

    def _pairs(self, pairs: list[tuple[int, int, float]]) -> list[Sample]:
        samples = []
        for number, other, _ in pairs[:SHOWN_SAMPLES]:
            row, like = self._rows.again(number), self._rows.again(other)
            samples.append(Sample(row.place, shorten(row.text), like.place, shorten(like.text)))
        return samples


def sign(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Signatures uint8 [rows, 64] of questions and answers, and whether there is a letter or digit in them, bool."""
    from rensa import RMinHash

    asked, answered = _worded(batch.questions), _worded(batch.answers)
    owner = np.concatenate([asked.owner, answered.owner])
    codes = np.concatenate([asked.codes, answered.codes])
    order = np.argsort(owner, kind="stable")  # the question of each row, then its answer
    rows = len(batch.rows)
    lengths = np.bincount(owner, minlength=rows)
    ends = np.cumsum(lengths + (_PIECE - 1))  # zeros after each row, so that no piece reaches into the next
    padded = np.zeros(int(ends[-1]), np.uint64)
    starts = ends - lengths - (_PIECE - 1)
    positions = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(len(codes))
    padded[positions] = fold(codes[order])
    pieces = np.zeros(len(codes), np.uint64)
    for offset in range(_PIECE):
        pieces = (pieces ^ padded[positions + offset]) * np.uint64(0x9E3779B97F4A7C15)
        pieces ^= pieces >> np.uint64(29)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(pieces, offsets, _VALUES, 42)
    return (np.array(matrix.to_rows(), np.uint64) & np.uint64(255)).astype(np.uint8), lengths > 0


@dataclass(frozen=True, slots=True)
class _Words:
    codes: np.ndarray
    owner: np.ndarray


def _worded(texts: Characters) -> _Words:
    """Letters and digits alone: spaces and punctuation make no difference."""
    kept = (texts.classes > 0) & (texts.classes <= DIGIT)
    return _Words(texts.codes[kept], texts.owner[kept])


def _moved_up(rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows with these ascending numbers, moved to the front in their own memory."""
    for begin in range(0, len(kept), _AT_ONCE):
        some = kept[begin : begin + _AT_ONCE]
        rows[begin : begin + len(some)] = rows[some]
    return rows[: len(kept)]


def nearest_earlier(signatures: np.ndarray, trained: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row the most similar of the earlier ones it was compared with, int64, -1 for none at least `ALIKE`, and
    their similarity, float32. Rows from `trained` on are compared with rows before it only.

    In every band a row meets the one before it, the first, and the last of the training rows of its group, so that
    groups of any size take linear time; in so many bands hardly a pair is missed.
    """
    count = len(signatures)
    like, alike = np.full(count, -1, np.int64), np.zeros(count, np.float32)
    positions = np.arange(count, dtype=np.int32)  # of at most a million rows: half the memory of all that follows
    for band in range(_BANDS):
        width = _VALUES // _BANDS
        keys = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width]).view(np.uint32).reshape(-1)
        order = np.argsort(keys, kind="stable").astype(np.int32)
        begins = np.ones(count, bool)
        begins[1:] = np.diff(keys[order]) != 0
        group = np.maximum.accumulate(np.where(begins, positions, np.int32(0)))
        before = np.maximum(positions - 1, group)
        last_trained = np.maximum(np.maximum.accumulate(np.where(order < trained, positions, np.int32(-1))), group)
        for other in (group, before, last_trained):
            mine, theirs = order, order[other]
            meet = (theirs < mine) & ((mine < trained) | (theirs < trained))
            _compare(signatures, mine[meet], theirs[meet], like, alike)
    return like, alike


def _compare(signatures: np.ndarray, mine: np.ndarray, theirs: np.ndarray, like: np.ndarray, alike: np.ndarray) -> None:
    """Note in `like` and `alike` what is more similar than what was known; no row stands twice in `mine`."""
    for begin in range(0, len(mine), _AT_ONCE):
        one, other = mine[begin : begin + _AT_ONCE], theirs[begin : begin + _AT_ONCE]
        equal = (signatures[one] == signatures[other]).mean(1, dtype=np.float32)
        similarity = (equal - _BY_CHANCE) / (1 - _BY_CHANCE)
        better = (similarity >= ALIKE) & (similarity > alike[one])
        like[one[better]], alike[one[better]] = other[better], similarity[better]
