from pathlib import Path

import pytest
import torch

from tunewright.errors import UsageError
from tunewright.models import dtype
from tunewright.models.dtype import choose_dtype, cpu_bfloat16, dtype_of


def on_cpu(monkeypatch: pytest.MonkeyPatch, instructions: str, ratio: float) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(dtype, "cpu_bfloat16", lambda: instructions)
    monkeypatch.setattr(dtype, "_speed_ratio", lambda: ratio)


@pytest.mark.parametrize(
    ("setting", "instructions", "ratio", "expected", "words"),
    [
        ("auto", "amx_bf16", 5.0, torch.bfloat16, "has amx_bf16, measured 5.0×"),
        ("auto", "avx512_bf16", 0.7, torch.float32, "measured 0.7×"),
        ("auto", "", 5.0, torch.float32, "no bfloat16 instructions"),
        ("bfloat16", "", 0.0, torch.bfloat16, "as configured (the CPU has no bfloat16 instructions)"),
        ("float32", "amx_bf16", 5.0, torch.float32, "as configured"),
    ],
)
def test_choice_and_reason(
    monkeypatch: pytest.MonkeyPatch, setting: str, instructions: str, ratio: float, expected: torch.dtype, words: str
) -> None:
    on_cpu(monkeypatch, instructions, ratio)
    chosen, reason = choose_dtype(setting)
    assert chosen == expected
    assert words in reason


def test_a_type_that_is_settled_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    on_cpu(monkeypatch, "amx_bf16", 5.0)
    monkeypatch.setattr(dtype, "_speed_ratio", lambda: measured.append(1) or 5.0)
    assert [dtype_of("bfloat16"), dtype_of("float32"), len(measured)] == [torch.bfloat16, torch.float32, 0]
    assert [dtype_of("auto"), len(measured)] == [torch.bfloat16, 1]


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="float8"):
        choose_dtype("float8")


def test_flags_are_read_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(dtype.platform, "machine", lambda: "x86_64")
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n")
    assert cpu_bfloat16(cpuinfo) == "amx_bf16"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512f\nbugs\t: avx512_bf16\n")
    assert cpu_bfloat16(cpuinfo) == ""
    monkeypatch.setattr(dtype.platform, "machine", lambda: "aarch64")
    cpuinfo.write_text("Features\t: fp asimd i8mm bf16\n")
    assert cpu_bfloat16(cpuinfo) == "bf16"
    assert cpu_bfloat16(tmp_path / "none") == ""


def test_the_probe_leaves_the_random_state_alone_and_measures_something() -> None:
    before = torch.get_rng_state()
    assert 0.001 < dtype._speed_ratio() < 1000
    assert torch.equal(torch.get_rng_state(), before)
