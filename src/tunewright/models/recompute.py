"""Activation checkpointing (arXiv 1604.06174): layers that keep their input alone and are computed again backwards.

transformers' layers bring the switch; here it is set layer by layer. The first layers are the ones to switch: when the
backward comes to them, what the later ones kept is gone, so that computing one again needs no room of its own.
"""

from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def switchable_layers(model: PreTrainedModel) -> dict[str, GradientCheckpointingLayer]:
    """The decoder's layers, by their names in it, that can be computed again; none where an architecture cannot."""
    if not model.supports_gradient_checkpointing:
        return {}
    found = [
        (name, module)
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    return {name: layer for name, layer in found if not any(name.startswith(f"{other}.") for other, _ in found)}


def recompute_layers(model: PreTrainedModel, which: Literal["off", "full"] | int) -> None:
    """Let the first so many layers be computed again in the backward, with the dropout of the forward, and no others.

    Losses and gradients keep their bits.
    """
    layers = switchable_layers(model).values()
    count = which if isinstance(which, int) else len(layers) if which == "full" else 0
    again: Any = partial(checkpoint, use_reentrant=False)
    for index, layer in enumerate(layers):
        switch: dict[str, Any] = vars(layer)
        switch["gradient_checkpointing"], switch["_gradient_checkpointing_func"] = index < count, again
