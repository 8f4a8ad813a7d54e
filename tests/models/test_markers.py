"""Rows of the embedding that no text has moved are told from those that were trained."""

import pytest
import torch
from torch import Tensor

from tunewright.models.markers import Untrained, explain_untrained, untrained_markers

MARKERS = [500, 501, 502]


@pytest.fixture
def trained() -> Tensor:
    """Rows of lengths such as trained ones have; the markers' among them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 64, generator=generator) * 0.05
    return rows * torch.exp(0.15 * torch.randn(512, 1, generator=generator))


def test_trained_markers_are_left_in_peace(trained: Tensor) -> None:
    assert untrained_markers(trained, MARKERS) == []
    assert untrained_markers(trained.bfloat16(), MARKERS) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_never_trained_is_found_with_its_reason(trained: Tensor, dtype: torch.dtype) -> None:
    trained[500] = 1e-9
    trained[501] *= 0.1
    trained[502] = trained[7]
    reasons = [item.reason for item in untrained_markers(trained.to(dtype), MARKERS)]
    assert reasons[0] == "its row in the embedding is zero"
    assert "of the usual length" in reasons[1]
    assert reasons[2] == "its row in the embedding is the same as another token's"


def test_markers_set_to_one_value_give_each_other_away(trained: Tensor) -> None:
    trained[MARKERS] = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 0.05
    assert [item.id for item in untrained_markers(trained, MARKERS)] == MARKERS


def test_rows_added_later_near_the_mean_are_found(trained: Tensor) -> None:
    shifted = trained + 0.2
    mean = shifted[:500].mean(dim=0)
    shifted[MARKERS] = mean + 1e-3 * torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    found = untrained_markers(shifted, MARKERS)
    assert [(item.id, item.reason) for item in found] == [
        (id, "its row in the embedding is the mean of all rows") for id in MARKERS
    ]


def test_the_sentence_names_tokens_and_ways_out() -> None:
    message, advice = explain_untrained([Untrained(3, "its row in the embedding is zero")], ["<|im_end|>"])
    assert "<|im_end|> (its row in the embedding is zero)" in message
    assert "data.template: default" in advice
    assert "method.tuning: full" in advice
