"""What is measured of a contestant, in its own process; shared by all, so it imports nothing of any of them."""

import re
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Stopwatch:
    """When the first step began and when each ended: seconds since the launch, and CPU seconds of this process."""

    launched: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """Everything is loaded and the first step starts, or a step is done with its update."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.time() - self.launched)
        self.cpu.append(time.process_time())

    def answer(self, losses: list[float], details: dict[str, Any]) -> dict[str, Any]:
        """The JSON that a contestant answers with."""
        import torch

        return {
            "losses": losses,
            "step_seconds": np.diff(self.wall).tolist(),
            "step_cpu_seconds": np.diff(self.cpu).tolist(),
            "startup_seconds": self.wall[0],
            "wall_seconds": self.wall[-1],
            "peak_memory_bytes": _peak_memory_bytes(),
            "threads": torch.get_num_threads(),
            **details,
        }


def _peak_memory_bytes() -> int:
    """The most this process has held: of the GPU where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a started process inherits the peak of the one that started it.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
