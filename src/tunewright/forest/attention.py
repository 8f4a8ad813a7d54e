"""Attention over a forest, registered with transformers so that one implementation serves every architecture.

A model loaded with `attn_implementation=FOREST_ATTENTION` calls `forest_attention` in every layer; the
`ForestLayout` it needs arrives as the keyword `forest` of the model's forward. Three backends give the same answer:

- `reference`: dense mask over all rows; any device; the oracle of the tests.
- `cpu`: blocks of query rows gathered into length buckets against their ancestors' keys (`bucketed.py`).
- `flex`: compiled FlexAttention with a block mask; CUDA (`flex.py`).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tunewright.forest.bucketed import bucketed_attention
from tunewright.forest.flex import flexible_attention
from tunewright.forest.layout import ForestLayout

FOREST_ATTENTION = "tunewright_forest"

# What layers hand on to every attention and no forest needs: the forest has the positions, nothing is cached, and
# the rest says what to return.
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits"}


class NotOnForest(ValueError):
    """An attention call that a forest cannot answer; the message is what the layer did."""


def register_forest_attention() -> None:
    """Make `FOREST_ATTENTION` known to transformers. Safe to call again.

    No mask function goes with it: transformers then builds no mask, which would cost T² for nothing.
    """
    AttentionInterface.register(FOREST_ATTENTION, forest_attention)


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    forest: ForestLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention: query [1, H, T, d], key and value [1, Hkv, T, d] → [1, T, H, d].

    `sliding_window` counts positions in the tree, `softcap` bounds the scores (Gemma-2), `s_aux` [H] are
    attention sinks (gpt-oss). Raises NotOnForest for a call without a forest, and for one that wants anything else:
    what is passed over in silence would be a wrong loss.
    """
    if forest is None:
        raise NotOnForest("the forest does not reach their attention")
    if attention_mask is not None:
        raise NotOnForest("they mask attention by themselves")
    if dropout:
        raise NotOnForest(f"they drop {dropout:.0%} of their attention")
    if is_causal is False:
        raise NotOnForest("their attention looks ahead")
    if unknown := {name for name, asked in kwargs.items() if asked is not None} - _HARMLESS:
        raise NotOnForest(f"they ask attention for {', '.join(sorted(unknown))}")
    forest.windows.append(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with _own_precision(query.device.type):
        special = softcap is not None or s_aux is not None
        if forest.backend == "reference" or (forest.backend == "cpu" and special):
            out = reference_attention(query[0], key[0], value[0], forest, scale, sliding_window, softcap, s_aux)
        else:
            # Under autocast rotary embeddings have widened queries and keys, but not values.
            dtype = min((query.dtype, key.dtype, value.dtype), key=lambda each: each.itemsize)
            queries, keys, values = (tensor[0].to(dtype) for tensor in (query, key, value))
            if forest.backend == "flex":
                mask = forest.block_mask(sliding_window)
                out = flexible_attention(queries, keys, values, mask, scale, softcap, s_aux)
            else:
                out = bucketed_attention(queries, keys, values, forest.buckets(sliding_window, dtype), scale)
    return out[None], None


def _own_precision(device: str) -> AbstractContextManager[Any]:
    """Autocast off: it would round the scores to half precision in the forward, but not in the backward."""
    available = torch.amp.is_autocast_available(device)  # not on the meta device, which the plan counts on
    return torch.autocast(device, enabled=False) if available else nullcontext()


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Dense attention straight from the definition: query [H, T, d], key and value [Hkv, T, d] → [T, H, d]."""
    groups = query.shape[0] // key.shape[0]
    # Scores of half-precision inputs are kept in float32, as every fused attention does.
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).repeat_interleave(groups, dim=0).transpose(1, 2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~forest.dense_mask(window), float("-inf"))
    if sinks is not None:
        column = sinks.to(wide)[:, None, None].expand(-1, scores.shape[1], 1)
        probabilities = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        probabilities = scores.softmax(dim=-1)
    out = probabilities @ value.to(wide).repeat_interleave(groups, dim=0)
    return out.transpose(0, 1).to(query.dtype)
