"""The start-up proof that an architecture computes on a forest what it computes on single sequences."""

import dataclasses

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunewright.data.examples import Encoded
from tunewright.forest.attention import FOREST_ATTENTION
from tunewright.forest.build import Forest, build_forest
from tunewright.forest.model import (
    ForestModel,
    attention_implementation,
    cannot_follow,
    evaluation_mode,
    stated_windows,
)
from tunewright.forest.score import score

# A few short branches of random tokens: enough to tell one mask, one position or one head from another.
_PATHS = ((0, 1, 2, 3, 4), (0, 1, 2, 5, 6), (0, 1, 7), (8, 9, 10, 11))
# Windows of up to so many tokens are passed by one more path; of wider ones `ForestModel` sees that they are asked for.
_PASSED_WINDOW = 128
# Losses of random tokens (10 nats and more) may differ by this much, as a root mean square; half precision rounds each
# by up to 0.4.
_LOSS_LIMIT = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOSS_LIMIT_HALF = 0.3
# A row may move by this share of the largest hidden value when a token changes that it does not see. Dense models
# do not move at all; experts compute in groups whose size, and with it the rounding, may change.
_LEAK_LIMIT = 0.01


def prove_forest(model: PreTrainedModel) -> None:
    """Show on a small forest that losses are those of the model's own forward, and that nothing leaks.

    Raises UsageError where not: attention then does not go through transformers' AttentionInterface, or layers other
    than attention mix tokens.
    """
    config = model.config.get_text_config()
    paths = [list(path) for path in _PATHS]
    windows = [size for _, size in stated_windows(config) if size is not None and size <= _PASSED_WINDOW]
    if windows:
        paths.append(list(range(max(windows) + 8)))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 1 + max(map(max, paths)))
    sequences = [Encoded(tokens[path].astype(np.int32), np.ones(len(path), np.float32)) for path in paths]
    on_forest = score(model, sequences, forest_tokens=10**6).nll
    errors = on_forest - _plain_nll(model, sequences)
    difference = float(np.sqrt(np.square(errors).mean()))
    leak = _leak(model, build_forest(sequences))
    if not (difference <= _LOSS_LIMIT.get(model.dtype, _LOSS_LIMIT_HALF) and leak <= _LEAK_LIMIT):
        raise cannot_follow(
            model.config.model_type,
            f"its losses differ from the plain ones by {difference:.3g}, and a token moves rows that must not see it "
            f"by {leak:.1%}",
        )


@torch.no_grad()
def _leak(model: PreTrainedModel, forest: Forest) -> float:
    """How far rows move, over the largest hidden value, when a token changes that they do not see."""
    with attention_implementation(model, FOREST_ATTENTION), evaluation_mode(model):
        forest_model = ForestModel(model)
        before = forest_model.hidden(forest_model.layout(forest))
        furthest = 0.0
        for row in (1, len(forest) - 1):
            ids = forest.input_ids.copy()
            ids[row] = (ids[row] + 1) % model.config.get_text_config().vocab_size
            layout = forest_model.layout(dataclasses.replace(forest, input_ids=ids))
            moved: Tensor = (forest_model.hidden(layout) - before)[~layout.dense_mask()[:, row]]
            furthest = max(furthest, float(moved.abs().max()))
    return furthest / float(before.abs().max())


@torch.no_grad()
def _plain_nll(model: PreTrainedModel, sequences: list[Encoded]) -> np.ndarray:
    """nll of tokens 1… of each sequence in turn by the model's own eager forward, float64.

    One pass for all, which costs little more than one for each: no token sees the padding, which stands behind it.
    """
    rows = [torch.from_numpy(sequence.input_ids.astype(np.int64)) for sequence in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    with attention_implementation(model, "eager"), evaluation_mode(model):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return np.concatenate([_nll(logits[index, : len(row) - 1], row[1:]) for index, row in enumerate(rows)])


def _nll(logits: Tensor, targets: Tensor) -> np.ndarray:
    wide = logits.double().cpu()
    nll: np.ndarray = (wide.logsumexp(-1) - wide.gather(1, targets[:, None])[:, 0]).numpy()
    return nll
