"""Were the markers of a chat template ever trained? A base model's vocabulary often holds them, its data never did.

Adapters leave embeddings and output layer frozen, so a marker that means nothing to the model stays meaningless: it
never learns to write the end of its turn, and answers run on. Such rows show: they are zero, or copies of each other
or of the mean, or much shorter than all rows that text has moved ("Fishing for Magikarp", arXiv 2405.05417).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-3  # of the usual length of a row
_ALIKE = 0.9995  # cosine from which two rows are compared number by number
_MEAN = 0.1  # a row this much nearer to the mean than others are is one that was set to it
_SPREADS = 6.0  # robust standard deviations of the logarithm of length


@dataclass(frozen=True, slots=True)
class Untrained:
    """A token no text has moved, and what shows it."""

    id: int
    reason: str


def untrained_markers(embedding: "Tensor", ids: Sequence[int]) -> list[Untrained]:
    """Those of `ids` whose rows in `embedding` [rows, hidden] look as if they had never been trained.

    `embedding` may be a part of the table: a twin outside it is not seen. It takes a few matrix-vector products;
    `embedding` keeps its type and device.
    """
    import torch

    lengths = torch.linalg.vector_norm(embedding, dim=1, dtype=torch.float32)
    others = torch.ones(len(embedding), dtype=torch.bool, device=embedding.device)
    others[list(ids)] = False
    usual = lengths[others].median()
    logs = lengths[others & (lengths > _TINY * usual)].log()
    middle = logs.median()
    spread = 1.4826 * (logs - middle).abs().median().clamp_min(1e-3)  # the median distance of a normal distribution
    mean = embedding[others].float().mean(dim=0)
    far = torch.linalg.vector_norm(embedding[others][:4096].float() - mean, dim=1).median()

    found = []
    for id in dict.fromkeys(ids):
        row = embedding[id].float()
        length = float(lengths[id])
        if length <= _TINY * usual:
            found.append(Untrained(id, "its row in the embedding is zero"))
        elif _has_twin(embedding, lengths, id):
            found.append(Untrained(id, "its row in the embedding is the same as another token's"))
        elif (float(lengths[id].log()) - float(middle)) / float(spread) < -_SPREADS:
            found.append(Untrained(id, f"its row in the embedding is {length / float(usual):.0%} of the usual length"))
        elif float(torch.linalg.vector_norm(row - mean)) < _MEAN * float(far):
            found.append(Untrained(id, "its row in the embedding is the mean of all rows"))
    return found


def explain_untrained(untrained: Sequence[Untrained], names: Sequence[str]) -> tuple[str, str]:
    """What to tell the user, and what to do; `names` are the spellings of the tokens."""
    tokens = ", ".join(f"{name} ({item.reason})" for item, name in zip(untrained, names, strict=True))
    return (
        f"the chat template writes tokens this model was never trained on: {tokens}",
        "It is a base model, and adapters cannot teach it to end its answers with them; start from the chat version "
        "(-instruct, -chat), take a template of plain words (data.template: default or alpaca), or train all weights "
        "(method.tuning: full)",
    )


def _has_twin(embedding: "Tensor", lengths: "Tensor", id: int) -> bool:
    """Whether another row has the same numbers."""
    import torch

    cosines = (embedding @ embedding[id]).float() / (lengths * lengths[id]).clamp_min(1e-30)
    alike = (cosines > _ALIKE) & ((lengths / lengths[id] - 1).abs() < 1e-2)
    alike[id] = False
    for other in alike.nonzero().flatten().tolist():
        distance = torch.linalg.vector_norm(embedding[other].float() - embedding[id].float())
        if float(distance) <= _TINY * float(lengths[id]):
            return True
    return False
