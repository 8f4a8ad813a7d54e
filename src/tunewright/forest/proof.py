"""The start-up proof that an architecture computes on a forest what it computes on single sequences."""

import numpy as np
import torch
from transformers import PreTrainedModel

from tunewright.data.examples import Encoded
from tunewright.errors import UsageError
from tunewright.forest.model import attention_implementation, evaluation_mode
from tunewright.forest.score import score

# A few short branches of random tokens: enough to tell one mask, one position or one head from another.
_PATHS = ((0, 1, 2, 3, 4), (0, 1, 2, 5, 6), (0, 1, 7), (8, 9, 10, 11))
_LIMIT = {torch.float64: 1e-6, torch.float32: 1e-3}
_LIMIT_HALF = 0.3


def prove_forest(model: PreTrainedModel) -> None:
    """Compare the losses of a small forest with those of the model's own forward, sequence by sequence.

    Raises UsageError where they differ: attention then does not go through transformers' AttentionInterface, or
    layers other than attention mix tokens.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.config.vocab_size, 1 + max(max(path) for path in _PATHS))
    sequences = [Encoded(tokens[list(path)].astype(np.int32), np.ones(len(path), np.float32)) for path in _PATHS]
    on_forest = score(model, sequences, forest_tokens=10**6).nll
    difference = float(np.abs(on_forest - np.concatenate([_plain_nll(model, one) for one in sequences])).max())
    if not difference <= _LIMIT.get(model.dtype, _LIMIT_HALF):
        raise UsageError(
            f"{model.config.model_type} models can't be trained by this version: their layers do not follow the token "
            f"forest (its loss differs from the plain one by {difference:.3g}). Choose a model whose attention goes "
            "through transformers' AttentionInterface, such as Llama, Qwen, Mistral, Mixtral, Gemma or Phi."
        )


@torch.no_grad()
def _plain_nll(model: PreTrainedModel, sequence: Encoded) -> np.ndarray:
    """nll of tokens 1… of one sequence by the model's own eager forward, float64."""
    ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None].to(model.device)
    with attention_implementation(model, "eager"), evaluation_mode(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    nll: np.ndarray = (logits.logsumexp(-1) - logits.gather(1, ids[0, 1:, None])[:, 0]).cpu().numpy()
    return nll
