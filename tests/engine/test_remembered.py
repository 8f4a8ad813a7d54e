"""What a plan counts is counted once for the same question, and anew for any other."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import random_sequences
from tunewright.engine.activations import StepMemory
from tunewright.engine.remembered import remembered
from tunewright.forest.build import Forest, build_forest
from tunewright.models.cache import cache_root

FACTS = ["config", "lora", {"rank": 8}, "torch.bfloat16"]


class Counter:
    """Gives another answer each time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> StepMemory:
        self.asked += 1
        return StepMemory(kept=self.asked, forward=10**12, backward=3)


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))
    return cache_root() / "plans"


@pytest.fixture
def forest() -> Forest:
    return build_forest(random_sequences(1))


def test_the_same_question_is_counted_once(plans: Path, forest: Forest) -> None:
    count = Counter()
    first = remembered(FACTS, forest, StepMemory, count)
    assert remembered(FACTS, forest, StepMemory, count) == first == StepMemory(1, 10**12, 3)
    assert count.asked == 1
    assert len(list(plans.iterdir())) == 1


@pytest.mark.parametrize("facts", [["config", "full", {"rank": 8}, "torch.bfloat16"], [*FACTS[:2], {"rank": 4}]])
def test_other_facts_are_counted_anew(plans: Path, forest: Forest, facts: list[Any]) -> None:
    count = Counter()
    remembered(FACTS, forest, StepMemory, count)
    assert remembered(facts, forest, StepMemory, count).kept == 2


def test_another_step_is_counted_anew(plans: Path, forest: Forest) -> None:
    count = Counter()
    remembered(FACTS, forest, StepMemory, count)
    assert remembered(FACTS, build_forest(random_sequences(2)), StepMemory, count).kept == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"kept": 1}', b'{"kept": "x", "forward": 1, "backward": 1}'])
def test_a_damaged_answer_is_counted_anew(plans: Path, forest: Forest, content: bytes) -> None:
    count = Counter()
    remembered(FACTS, forest, StepMemory, count)
    (path,) = plans.iterdir()
    path.write_bytes(content)
    assert remembered(FACTS, forest, StepMemory, count).kept == 2
    assert remembered(FACTS, forest, StepMemory, count).kept == 2


def test_without_a_cache_it_is_counted_each_time(plans: Path, forest: Forest) -> None:
    plans.parent.mkdir(exist_ok=True)
    plans.write_text("a file where the folder would be")
    count = Counter()
    assert [remembered(FACTS, forest, StepMemory, count).kept for _ in range(2)] == [1, 2]


def test_what_nobody_asked_for_long_is_forgotten(plans: Path, forest: Forest) -> None:
    remembered(FACTS, forest, StepMemory, Counter())
    (old,) = plans.iterdir()
    os.utime(old, (0, 0))
    remembered([*FACTS, 1], forest, StepMemory, Counter())
    assert not old.exists()
    assert len(list(plans.iterdir())) == 1
