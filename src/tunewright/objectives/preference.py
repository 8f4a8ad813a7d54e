"""Direct preference optimisation (DPO): make better answers likelier than worse ones, without a reward model."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(log_probs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log σ(β · (how much likelier the better answer became - how much likelier the worse one did)) of each pair, [n].

    `log_probs` and `reference` are [n, 2]: the summed log-probability of the better and of the worse answer in nats,
    by the model in training and by the one it started from. Equation 7 of arXiv 2305.18290, in the inputs' type.
    """
    chosen, rejected = (log_probs - reference).unbind(-1)
    return -logsigmoid(beta * (chosen - rejected))
