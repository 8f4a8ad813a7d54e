"""The loss of direct preference optimisation against the formula that TRL computes it by, and its known values."""

import math

import pytest
import torch
from torch import Tensor

from tunewright.objectives.preference import dpo_loss


def as_trl_computes_it(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """`DPOTrainer` of TRL 1.16 with loss_type sigmoid and f_divergence_type reverse_kl, from its inputs to its loss."""
    (chosen_logps, rejected_logps), (ref_chosen_logps, ref_rejected_logps) = policy.T, reference.T
    chosen_scores = chosen_logps - ref_chosen_logps
    rejected_scores = rejected_logps - ref_rejected_logps
    return -torch.log(torch.sigmoid(beta * (chosen_scores - rejected_scores)))


def pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    policy = -300 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return policy.requires_grad_(), policy.detach() + 4 * torch.randn(count, 2, generator=generator).double()


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_loss_and_gradient_are_trls(beta: float) -> None:
    policy, reference = pairs(50)
    ours, theirs = dpo_loss(policy, reference, beta), as_trl_computes_it(policy, reference, beta)
    assert ours.shape == (50,)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    gradients = (torch.autograd.grad(loss.mean(), policy)[0] for loss in (ours, theirs))
    assert torch.allclose(*gradients, rtol=1e-9)


def test_the_model_it_starts_from_has_the_loss_of_a_coin() -> None:
    policy, _ = pairs(4)
    loss = dpo_loss(policy, policy.detach(), 0.1)
    assert loss.tolist() == pytest.approx([math.log(2)] * 4)
    # Every nat for the better answer and against the worse one counts alike: beta/2 each.
    assert torch.autograd.grad(loss.sum(), policy)[0].tolist() == [pytest.approx([-0.05, 0.05])] * 4


def test_no_pair_is_too_far_off() -> None:
    """Where a sigmoid is zero in floating point, the loss still is what it must be, and so is its slope."""
    policy = torch.tensor([[-9000.0, 0.0], [0.0, -9000.0]], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(policy, torch.zeros(2, 2, dtype=torch.float64), 0.1)
    assert loss.tolist() == pytest.approx([900.0, 0.0])
    assert torch.autograd.grad(loss.sum(), policy)[0][0].tolist() == pytest.approx([-0.1, 0.1])


def test_gradcheck() -> None:
    policy, reference = pairs(6)
    assert torch.autograd.gradcheck(lambda policy: dpo_loss(policy, reference, 0.1), policy)
