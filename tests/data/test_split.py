"""The split law: complete, deterministic, in file order, and never the same row on both sides."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.content import to_json
from tunewright.data.examples import Dialog, Example, Message, Place, Text
from tunewright.data.split import content_hash, hold_out, repeated
from tunewright.errors import UsageError


def examples_of(names: Sequence[int]) -> list[Example]:
    return [
        Dialog((Message("user", "q"), Message("assistant", str(name))), Place("rows.json", line))
        for line, name in enumerate(names, start=1)
    ]


def content(example: Example) -> bytes:
    return to_json(example)


def hashes(examples: Sequence[Example]) -> np.ndarray:
    return np.array([content_hash(to_json(example)) for example in examples], np.uint64)


def split(examples: Sequence[Example], size: float | None, seed: int) -> tuple[list[Example], list[Example]]:
    chosen = hold_out(hashes(examples), size, seed).tolist()
    assert chosen == sorted(set(chosen))
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in chosen]


def line_of(example: Example) -> int:
    return example.place.line


@given(
    st.lists(st.integers(0, 12), max_size=40),
    st.none() | st.integers(0, 6) | st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**32),
)
def test_split_law(names: list[int], size: float | None, seed: int) -> None:
    examples = examples_of(names)
    try:
        train, validation = split(examples, size, seed)
    except UsageError:
        assert size is not None
        assert size >= 1
        assert size >= len(examples) or len(set(names)) == 1
        return
    assert (train, validation) == split(examples, size, seed)
    assert sorted([*train, *validation], key=line_of) == examples
    assert train == sorted(train, key=line_of)
    assert validation == sorted(validation, key=line_of)
    assert not {content(example) for example in train} & {content(example) for example in validation}
    assert train or not examples


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True), st.integers(0, 9))
def test_share_of_distinct_examples_is_exact(total: int, share: float, seed: int) -> None:
    _, validation = split(examples_of(range(total)), share, seed)
    if share == 0 or total == 1:
        expected = 0
    elif share * total < 1:
        expected = 1 if total >= 10 else 0
    else:
        expected = min(round(share * total), total - 1)
    assert len(validation) == expected


@given(st.integers(2, 60), st.data(), st.integers(0, 9))
def test_count_of_distinct_examples_is_exact(total: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(0, total - 1))
    train, validation = split(examples_of(range(total)), count, seed)
    assert len(validation) == count
    assert split(examples_of(range(total)), float(count), seed) == (train, validation)


def test_a_row_that_stands_often_does_not_fill_the_validation() -> None:
    train, validation = split(examples_of([0] * 50 + list(range(1, 51))), 0.1, 3)
    assert len(validation) == 10
    assert sum(content(example) == content(train[0]) for example in train) == 50


def test_equal_rows_are_held_out_together_where_nothing_smaller_is_there() -> None:
    train, validation = split(examples_of([1, 1, 1, 2, 2, 1]), 1, 0)
    assert [example.place.line for example in validation] == [4, 5]
    assert len(train) == 4


def test_seeds_differ() -> None:
    examples = examples_of(range(50))
    assert len({tuple(e.place.line for e in split(examples, 5, seed)[1]) for seed in range(10)}) == 10


def test_raw_text_is_split_alike() -> None:
    texts: list[Example] = [Text(name, Place("a.txt", line)) for line, name in enumerate("aabbccddeeff", start=1)]
    train, validation = split(texts, 4, 1)
    assert len(validation) == 4
    assert not {content(text) for text in train} & {content(text) for text in validation}


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        split(examples_of(range(3)), 3, 0)
    assert str(caught.value) == (
        "data.validation: 3 examples are to be held out, but there are only 3: "
        "give a smaller number, or a share such as 0.02"
    )
    with pytest.raises(UsageError) as caught:
        split(examples_of([1] * 5), 2, 0)
    assert str(caught.value) == "data.validation: all 5 examples are equal, none can be held out: set it to null"


@given(st.lists(st.integers(0, 5), max_size=30))
def test_repeated_examples_are_those_after_their_first(names: list[int]) -> None:
    expected = [index for index, name in enumerate(names) if name in names[:index]]
    assert repeated(hashes(examples_of(names))).tolist() == expected


def test_the_same_examples_are_held_out_in_every_version() -> None:
    """Runs are measured again later, on what they held out."""
    assert hold_out(hashes(examples_of([*range(20), 3, 3])), 0.2, 42).tolist() == [4, 5, 14, 19]
