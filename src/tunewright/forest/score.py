"""Teacher-forced scores: what a model gives every supervised token of some sequences, computed on forests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunewright.data.examples import Encoded
from tunewright.forest.attention import FOREST_ATTENTION
from tunewright.forest.build import build_forest, group_by_budget
from tunewright.forest.head import edge_scores
from tunewright.forest.model import ForestModel, attention_implementation, evaluation_mode, plain_model


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry per supervised token, by sequence and then in token order.

    `nll` float64 in nats, `correct` (the target is the likeliest token), `weights`, `sequence` (index), `targets` (id).
    """

    nll: np.ndarray
    correct: np.ndarray
    weights: np.ndarray
    sequence: np.ndarray
    targets: np.ndarray

    @property
    def mean(self) -> float:
        """Σ weight · nll / Σ weight."""
        return float((self.weights * self.nll).sum() / self.weights.sum())


@torch.no_grad()
def score(
    model: PreTrainedModel | PeftModel,
    sequences: Sequence[Encoded],
    forest_tokens: int,
    poll: Callable[[], None] = lambda: None,
) -> Scores:
    """Score `sequences` in forests of at most `forest_tokens` rows; the model is left in the mode it was in.

    `poll` is called before each forest; what it raises ends the work.
    """
    parts: list[Scores] = []
    plain = plain_model(model)
    with attention_implementation(plain, FOREST_ATTENTION), evaluation_mode(plain):
        forest_model = ForestModel(plain)
        for group in group_by_budget(sequences, forest_tokens):
            poll()
            layout = forest_model.layout(build_forest([sequences[index] for index in group]))
            edges = layout.edges
            nll, correct = edge_scores(forest_model.loss_hidden(layout), forest_model.head, edges)
            owner = np.asarray(group)[layout.edge_sequence]
            columns = (nll, correct, edges.weight, edges.target)
            nll_array, correct_array, weights, targets = (column.cpu().numpy() for column in columns)
            parts.append(Scores(nll_array, correct_array, weights, owner, targets))
    sequence = np.concatenate([part.sequence for part in parts])
    # Edges come in row order, which along one sequence is token order; a stable sort keeps it.
    order = np.argsort(sequence, kind="stable")
    return Scores(
        nll=np.concatenate([part.nll for part in parts])[order],
        correct=np.concatenate([part.correct for part in parts])[order],
        weights=np.concatenate([part.weights for part in parts])[order],
        sequence=sequence[order],
        targets=np.concatenate([part.targets for part in parts])[order],
    )
