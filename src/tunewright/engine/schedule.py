"""Learning rate as a function of the step, so that resuming needs no scheduler state."""

import math


def learning_rate_factor(step: int, total_steps: int, warmup: float, schedule: str) -> float:
    """Factor on the peak rate for the 0-based `step`: linear warm-up over a share of the steps, then the schedule.

    `cosine` and `linear` fall towards zero, which they would reach one step after the last.
    """
    warmup_steps = math.ceil(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[schedule]
