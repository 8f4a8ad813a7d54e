"""Next-token prediction: the objective of supervised fine-tuning and of continued pre-training.

The two differ in which tokens carry weight, and that is decided when examples are encoded.
"""

from torch import Tensor

from tunewright.forest.build import Forest
from tunewright.forest.model import ForestModel


def language_modelling(model: ForestModel, forest: Forest) -> Tensor:
    """Σ weight · nll over the forest's loss edges; the loop divides by the weight of the whole step."""
    return model.weighted_nll(forest)
