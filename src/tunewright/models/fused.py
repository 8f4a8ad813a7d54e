"""The blocks of a model that have a fast form, put in place: the one list of them."""

from torch import nn

from tunewright.models.fused_mlp import fuse_feed_forward
from tunewright.models.fused_norm import fuse_norms


def fuse_blocks(model: nn.Module) -> None:
    """Replace what can be replaced exactly; names of weights stay. Adapters are added afterwards."""
    fuse_norms(model)
    fuse_feed_forward(model)
