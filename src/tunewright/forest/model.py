"""A causal language model that computes losses on forests: the one way training and scoring call a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunewright.data.examples import Encoded
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, Backend
from tunewright.forest.build import Forest, build_forest, group_by_budget
from tunewright.forest.head import Head, edge_scores, weighted_nll
from tunewright.forest.layout import ForestLayout

# Random tokens of the start-up proof: a few short branches, enough to tell one mask from another.
_PROOF_SEQUENCES = ((0, 1, 2, 3, 4), (0, 1, 2, 5, 6), (0, 1, 7), (8, 9, 10, 11))


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry per supervised token: `nll` float64, `best` (the target is the likeliest token), `sequence`, `target`."""

    nll: np.ndarray
    best: np.ndarray
    weight: np.ndarray
    sequence: np.ndarray
    target: np.ndarray


class ForestModel:
    """Wraps a transformers causal language model, with PEFT adapters or without.

    Only the decoder is called; the head is applied to loss rows alone (`head.py`).
    """

    def __init__(self, model: PreTrainedModel, backend: Backend = "cpu") -> None:
        self.model = model
        self.backend: Backend = backend
        self.decoder: nn.Module = model.get_decoder()
        self.device = model.device

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

    @torch.no_grad()
    def score(self, sequences: Sequence[Encoded], forest_tokens: int) -> Scores:
        """Teacher-forced score of every supervised token of `sequences`, in forests of at most `forest_tokens` rows.

        The model is left in the mode it was in.
        """
        was_training = self.model.training
        self.model.eval()
        nll, best, weight, sequence, target = [], [], [], [], []
        for group in group_by_budget(sequences, forest_tokens):
            layout = self.layout(build_forest([sequences[index] for index in group]))
            group_nll, group_best = edge_scores(self.hidden(layout)[layout.loss_rows], self.head, layout.edges)
            nll.append(group_nll.cpu().numpy())
            best.append(group_best.cpu().numpy())
            weight.append(layout.edges.weight.cpu().numpy())
            sequence.append(np.asarray(group)[layout.edge_sequence])
            target.append(layout.edges.target.cpu().numpy())
        self.model.train(was_training)
        owner = np.concatenate(sequence)
        order = np.argsort(owner, kind="stable")
        return Scores(
            nll=np.concatenate(nll)[order],
            best=np.concatenate(best)[order],
            weight=np.concatenate(weight)[order],
            sequence=owner[order],
            target=np.concatenate(target)[order],
        )

    @torch.no_grad()
    def prove(self) -> None:
        """Show that this architecture computes on a forest what it computes on single sequences.

        Raises UsageError when it does not: its attention does not go through transformers'
        AttentionInterface, or layers other than attention mix tokens.
        """
        vocabulary = self.head.weight.shape[0]
        rng = np.random.default_rng(0)
        names = rng.integers(0, vocabulary, 12)
        sequences = [
            Encoded(names[list(path)].astype(np.int32), np.ones(len(path), np.float32)) for path in _PROOF_SEQUENCES
        ]
        scores = self.score(sequences, forest_tokens=10**6)
        expected = [self._plain_nll(sequence) for sequence in sequences]
        # Within a sequence edges come in row order, which is token order.
        difference = float(np.abs(scores.nll - np.concatenate(expected)).max())
        limit = 0.3 if self.model.dtype in (torch.bfloat16, torch.float16) else 1e-3
        if not difference <= limit:
            raise UsageError(
                f"{self.model.config.model_type} models can't be trained by this version: their layers do not follow "
                f"the token forest (a forest's loss differs from the plain one by {difference:.3g}). "
                "Choose a model whose attention goes through transformers' AttentionInterface, such as Llama, Qwen, Mistral or Gemma."
            )

    def _plain_nll(self, sequence: Encoded) -> np.ndarray:
        """nll of tokens 1… of one sequence by the model's own eager forward."""
        ids = torch.from_numpy(sequence.input_ids.astype(np.int64))[None].to(self.device)
        was_training = self.model.training
        self.model.eval()
        self.model.set_attn_implementation("eager")
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits[0, :-1].double()
        finally:
            self.model.set_attn_implementation(FOREST_ATTENTION)
            self.model.train(was_training)
        nll: np.ndarray = (logits.logsumexp(-1) - logits.gather(1, ids[0, 1:, None])[:, 0]).cpu().numpy()
        return nll
