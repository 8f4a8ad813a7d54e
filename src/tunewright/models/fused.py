"""The blocks of a model that have a fast form, put in place: the one list of them."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from tunewright.models.fused_attention import fuse_attention
from tunewright.models.fused_last import fuse_last_layer
from tunewright.models.fused_mlp import fuse_feed_forward
from tunewright.models.fused_norm import fuse_norms


@dataclass(frozen=True, slots=True)
class Fused:
    """How many modules got their fast form; zero where this architecture, or this transformers, has other ones."""

    norms: int
    feed_forward: int
    attention: int
    last_layer: int

    @property
    def missing(self) -> list[str]:
        """What kept its plain form, in words."""
        counts = {
            "norms": self.norms,
            "feed-forward layers": self.feed_forward,
            "attention layers": self.attention,
            "the last layer": self.last_layer,
        }
        return [name for name, count in counts.items() if not count]


def fuse_blocks(model: PreTrainedModel) -> Fused:
    """Replace what can be replaced exactly; names of weights stay. Adapters are added afterwards."""
    return Fused(
        norms=fuse_norms(model),
        feed_forward=fuse_feed_forward(model),
        attention=fuse_attention(model),
        last_layer=fuse_last_layer(model.get_decoder()),
    )
