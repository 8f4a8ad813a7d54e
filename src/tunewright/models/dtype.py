"""Which float type a run computes in, chosen by looking at the machine, with the reason in words."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.errors import UsageError

if TYPE_CHECKING:
    import torch

_FASTER = 1.2  # bfloat16 must beat float32 by this much: it costs precision, and a tie is noise


def choose_dtype(setting: str) -> tuple["torch.dtype", str]:
    """(type, reason) for `model.dtype`: auto, bfloat16 or float32.

    The reason is one sentence for the user. An explicit type is obeyed; where it is slow here, the reason says so.
    """
    import torch

    if setting == "float32":
        return torch.float32, "float32 as configured"
    if setting not in ("auto", "bfloat16"):
        raise UsageError(f"model.dtype: {setting!r} is not a type; use auto, bfloat16 or float32")
    fast, reason = bfloat16_is_fast()
    if setting == "bfloat16":
        return torch.bfloat16, f"bfloat16 as configured ({reason})"
    return (torch.bfloat16, f"bfloat16: {reason}") if fast else (torch.float32, f"float32: {reason}")


def dtype_of(setting: str) -> "torch.dtype":
    """The type that `choose_dtype` chooses, without its reason: measures nothing where the setting says it all."""
    import torch

    return torch.bfloat16 if setting == "bfloat16" else choose_dtype(setting)[0]


def bfloat16_is_fast() -> tuple[bool, str]:
    """Whether bfloat16 pays on the device that a run would use, and why."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        # Emulated bfloat16 (before Ampere) is slower than float32; support then says True only with emulation.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"{name} {'computes' if native else 'does not compute'} in bfloat16"
    if torch.backends.mps.is_available():
        return False, "on Apple GPUs float32 trains more reliably and about as fast"
    instructions = cpu_bfloat16()
    if not instructions:
        return False, "the CPU has no bfloat16 instructions"
    ratio = _speed_ratio()
    return ratio >= _FASTER, f"the CPU has {instructions}, measured {ratio:.1f}× the speed of float32"


def cpu_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the CPU's bfloat16 instructions; empty when it has none or the system does not say."""
    if not cpuinfo.is_file():
        return ""
    flags: set[str] = set()
    for line in cpuinfo.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # x86 and ARM spell it differently
            flags = set(value.split())
            break
    names = ["amx_bf16", "avx512_bf16"] if platform.machine() in ("x86_64", "AMD64") else ["bf16", "svebf16"]
    return next((name for name in names if name in flags), "")


def _speed_ratio() -> float:
    """float32 time / bfloat16 time of one matrix product with the shape of a small model's layer; about 50 ms."""
    import torch

    def timed(dtype: torch.dtype) -> Callable[[], float]:
        # ones, not random numbers: the generator's state is the run's business
        rows, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)

        def once() -> float:
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            return time.perf_counter() - start

        return once

    with torch.inference_mode():
        kinds = [timed(torch.float32), timed(torch.bfloat16)]
        best = [float("inf"), float("inf")]
        deadline = time.perf_counter() + 0.05
        # Taken in turns and best of many, so that a busy moment of the machine hits both types alike.
        for round_ in range(50):
            for which, once in enumerate(kinds):
                best[which] = min(best[which], once())
            if round_ >= 10 and time.perf_counter() > deadline:
                break
    return best[0] / best[1]
