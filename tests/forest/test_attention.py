"""An attention call is answered in full or refused: what is passed over in silence would be a wrong loss."""

from typing import Any

import pytest
import torch

from tests.tiny import random_sequences
from tunewright.forest.attention import NotOnForest, forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.layout import ForestLayout


def call(mask: torch.Tensor | None = None, **asked: Any) -> ForestLayout:
    layout = ForestLayout(build_forest(random_sequences(0)))
    rows = torch.randn(1, 2, layout.input_ids.shape[1], 4, generator=torch.Generator().manual_seed(0))
    forest_attention(torch.nn.Identity(), rows, rows, rows, mask, **{"forest": layout, **asked})
    return layout


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"forest": None}, "does not reach"),
        ({"mask": torch.zeros(1, 1, 2, 2)}, "mask attention by themselves"),
        ({"dropout": 0.1}, "drop 10%"),
        ({"is_causal": False}, "looks ahead"),
        ({"position_bias": torch.zeros(1), "sinks": torch.zeros(1)}, "ask attention for position_bias, sinks"),
    ],
)
def test_what_a_forest_does_not_give_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotOnForest, match=reason):
        call(**asked)


def test_what_has_no_meaning_for_a_forest_is_let_through() -> None:
    call(position_ids=torch.zeros(1, 2), use_cache=False, output_attentions=None, is_causal=True, position_bias=None)


def test_windows_are_noted() -> None:
    assert call().windows == [None]
    assert call(sliding_window=7).windows == [7]
