"""A causal language model that computes losses on forests: the one way training and scoring call a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tunewright.forest.attention import FOREST_ATTENTION, Backend, register_forest_attention
from tunewright.forest.build import Forest
from tunewright.forest.head import Head, weighted_nll
from tunewright.forest.layout import ForestLayout

if TYPE_CHECKING:
    from peft import PeftModel


class ForestModel:
    """Wraps a transformers causal language model, with PEFT adapters or without.

    Only the decoder is called; the head is applied to loss rows alone (`head.py`).
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", backend: Backend | None = None) -> None:
        self.model = plain_model(model)
        self.device = self.model.device
        # Index gathers and batched products pay off on a CPU; elsewhere the dense mask is what works everywhere.
        self.backend: Backend = backend or ("cpu" if self.device.type == "cpu" else "reference")
        self.decoder: nn.Module = self.model.get_decoder()

    @property
    def head(self) -> Head:
        """The output head as it is now; read anew each time because training may replace its weight."""
        embedding = self.model.get_output_embeddings()
        assert isinstance(embedding, nn.Linear)
        settings = self.model.config.to_dict()
        scaling = settings.get("logits_scaling")
        return Head(
            embedding.weight,
            embedding.bias,
            softcap=settings.get("final_logit_softcapping"),
            scale=1 / scaling if scaling is not None else settings.get("logit_scale") or 1.0,
        )

    def layout(self, forest: Forest) -> ForestLayout:
        return ForestLayout(forest, self.device, self.backend)

    def hidden(self, layout: ForestLayout) -> Tensor:
        """Final hidden states [T, D]."""
        output: Any = self.decoder(
            input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, forest=layout
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def weighted_nll(self, forest: Forest) -> Tensor:
        """Σ weight · nll over the forest's loss edges, a differentiable scalar."""
        layout = self.layout(forest)
        return weighted_nll(self.hidden(layout)[layout.loss_rows], self.head, layout.edges)


def plain_model(model: "PreTrainedModel | PeftModel") -> PreTrainedModel:
    """The transformers model itself; adapters live inside its layers."""
    if isinstance(model, PreTrainedModel):
        return model
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block the model attends by the implementation of that name."""
    before = model.config._attn_implementation
    if name == FOREST_ATTENTION:
        register_forest_attention()
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Within the block dropout is off; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
