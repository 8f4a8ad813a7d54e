"""The proof that what was written is the model that was trained: its logits, computed again from the files.

Reference and copy both run in float32 on the same tokens, prompts in the trained template followed by the tuned
model's own answers. They differ by the rounding of the merged weights to the stored type, and by nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunewright.errors import RunError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

# Largest allowed difference, as a share of the logits' own spread (root mean squares). Rounding the weights of
# SmolLM2-135M once costs 2e-6, 8e-4 and 2.4e-2; computing in bfloat16, as chat does there, costs 2.3e-2 as well.
TOLERANCE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 6e-2}
_AGREEMENT = {"float32": 0.999, "float16": 0.99, "bfloat16": 0.95}
_AT_ONCE = 4  # sequences per forward pass; their logits over a large vocabulary still fit everywhere
_KEPT = 0.5  # of what training changed, rounding may not undo more than this


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared; differences are shares of the logits' spread, `agreement` the share of equal top tokens.

    `effect` is how far training moved the same logits away from the base.
    """

    prompts: int
    tokens: int
    difference: float
    tolerance: float
    agreement: float
    effect: float
    dtype: str

    def __str__(self) -> str:
        kept = f"; training moved them by {self.effect:.1e}" if self.effect else ""
        return (
            f"logits of {self.prompts} prompts ({self.tokens:,} tokens) differ by {self.difference:.1e} of their "
            f"spread (at most {self.tolerance:.0e} for {self.dtype}), top tokens agree on {self.agreement:.1%}{kept}"
        )


def logits_of(model: "PreTrainedModel | PeftModel", sequences: Sequence[Sequence[int]]) -> "list[torch.Tensor]":
    """Logits of each sequence, float32 [n, vocabulary], on the CPU; a few are computed at once, padded behind."""
    import torch

    logits: list[torch.Tensor] = []
    for start in range(0, len(sequences), _AT_ONCE):
        batch = [list(ids) for ids in sequences[start : start + _AT_ONCE]]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=model.device)
        with torch.inference_mode():
            rows = model(input_ids=ids, attention_mask=mask).logits
        logits += [row[: len(tokens)].float().cpu() for row, tokens in zip(rows, batch, strict=True)]
    return logits


def prove(
    tuned: "Sequence[torch.Tensor]", base: "Sequence[torch.Tensor]", written: "Sequence[torch.Tensor]", dtype: str
) -> Proof:
    """Compare logits of the tuned model, its base and the written files: per prompt float32 [n, vocabulary].

    Raises RunError when the files are another model, or when rounding to `dtype` undid what training did.
    """
    import torch

    # What all logits of a token share cancels in the softmax, and rounding moves it most: only the rest counts.
    tuned_all, base_all, written_all = (
        torch.cat([logits - logits.mean(-1, keepdim=True) for logits in each]) for each in (tuned, base, written)
    )
    spread = _rms(tuned_all)
    proof = Proof(
        prompts=len(tuned),
        tokens=len(tuned_all),
        difference=_rms(written_all - tuned_all) / spread,
        tolerance=TOLERANCE[dtype],
        agreement=float((written_all.argmax(-1) == tuned_all.argmax(-1)).float().mean()),
        effect=_rms(base_all - tuned_all) / spread,
        dtype=dtype,
    )
    # `not <=` rather than `>`, so that NaN fails
    if not proof.difference <= proof.tolerance or proof.agreement < _AGREEMENT[dtype]:
        raise RunError(f"the exported model is not the trained one: {proof}. Nothing was exported; please report this")
    if dtype != "float32" and proof.difference > _KEPT * proof.effect > 0:
        raise RunError(
            f"rounding to {dtype} would undo what training changed: {proof}. Nothing was exported; "
            "use --dtype float32, or train longer"
        )
    return proof


def _rms(values: "torch.Tensor") -> float:
    return float(values.double().square().mean().sqrt())
