"""What is minimised, by stage: a function of a model and a forest, summed over the forests of a step."""

from collections.abc import Callable

from torch import Tensor

from tunewright.forest.build import Forest
from tunewright.forest.model import ForestModel
from tunewright.objectives.language_modelling import language_modelling

Objective = Callable[[ForestModel, Forest], Tensor]

OBJECTIVES: dict[str, Objective] = {"pt": language_modelling, "sft": language_modelling}
