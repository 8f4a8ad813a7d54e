"""From `model:` in a config to a folder on this machine that holds config, tokenizer and safetensors.

Built-in names, local folders, GGUF files and Hugging Face ids all end in the same kind of folder.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.config.schema import ModelConfig
from tunewright.errors import UsageError
from tunewright.models.builtin import BUILTIN, builtin_folder
from tunewright.models.cache import Notify, to_stderr
from tunewright.models.gguf import gguf_folder
from tunewright.models.hub import hub_folder
from tunewright.models.load import read_json

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """`path` holds config.json, a tokenizer and *.safetensors; `revision` is the commit of a hub model."""

    path: Path
    name: str
    revision: str | None = None


def resolve_model(model: ModelConfig, base: Path, notify: Notify = to_stderr) -> ModelFolder:
    """The folder of `model`, fetched or converted when it must be; relative paths start at `base`.

    Raises UsageError for a name that means nothing here, for a folder that cannot be trained from, and for a revision
    of what is not on a hub.
    """
    name, source = model.name, model.source
    if source == "auto" and name in BUILTIN:
        _refuse_revision(model, "comes with tunewright")
        return ModelFolder(builtin_folder(name, BUILTIN[name], notify), name)
    path = None if source == "huggingface" else (base / Path(name).expanduser()).resolve()
    if path is not None and path.exists():
        _refuse_revision(model, f"is {path}")
    if path is not None and path.is_file():
        return _from_file(path, name, notify)
    if path is not None and path.is_dir():
        folder = ModelFolder(path, name)
    elif path is not None and (source == "local" or _looks_like_path(name)):
        raise UsageError(f"model: {path} does not exist; give a model folder, a .gguf file or a hub id")
    elif path is not None and not _HUB_ID.fullmatch(name):
        raise UsageError(_unknown(name, base))
    else:
        path, commit = hub_folder(name, model.revision, notify)
        folder = ModelFolder(path, name, commit)
    check_folder(folder.path)
    return folder


def check_folder(path: Path) -> None:
    """Raise UsageError, saying why and what helps, when `path` is no model folder that loads without remote code."""
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if config is None:
        raise UsageError(f"{path}: no model, config.json is missing{_what_is_there_instead(path)}")
    _check_architecture(path, config)
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise UsageError(
            f"{path}: no tokenizer, expected tokenizer.json beside config.json; copy it from the model's page"
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = set(read_json(index).get("weight_map", {}).values())
        absent = sorted(shard for shard in shards if not (path / shard).is_file())
        if absent:
            raise UsageError(
                f"{path}: {len(absent)} of {len(shards)} weight files are missing, first {absent[0]}; "
                "the download is incomplete, fetch it again"
            )
    elif not (path / "model.safetensors").is_file():
        raise UsageError(f"{path}: no weights, expected model.safetensors{_what_is_there_instead(path)}")


def _refuse_revision(model: ModelConfig, what: str) -> None:
    if model.revision is not None:
        raise UsageError(
            f"model.revision is {model.revision}, but {model.name} {what}, and only models on a hub have revisions; "
            "leave it out, or write model.source: huggingface"
        )


def _from_file(path: Path, name: str, notify: Notify) -> ModelFolder:
    if path.suffix.lower() == ".gguf":
        return ModelFolder(gguf_folder(path, notify), name)
    if path.name == "config.json" or path.suffix == ".safetensors":
        raise UsageError(f"model: {path} is one file of a model; give its folder, {path.parent}")
    raise UsageError(f"model: {path} is no model; give a model folder or a .gguf file")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.lower().endswith(".gguf")


def _unknown(name: str, base: Path) -> str:
    near = difflib.get_close_matches(name.lower(), BUILTIN, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"built-in: {', '.join(BUILTIN)}."
    return (
        f"model: {name!r} is no built-in name and no folder or file in {base}; {hint} A hub id has the form owner/name."
    )


def _check_architecture(path: Path, config: dict[str, Any]) -> None:
    # The table of names, since the table of classes imports a model's whole module to say that it is there.
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config.get("model_type"))
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if kind in CONFIG_MAPPING:
        raise UsageError(f"{path}: {kind} models do not generate text token by token; choose a causal language model")
    if "auto_map" in config:
        raise UsageError(
            f"{path}: the model ({kind}) wants to run Python code from its own folder, which tunewright never does; "
            "choose a release of it in a native transformers architecture"
        )
    near = difflib.get_close_matches(kind, list(CONFIG_MAPPING.keys()), n=1)
    hint = f", did you mean {near[0]}?" if near else "; a newer transformers may know it"
    raise UsageError(f"{path}/config.json: model_type {kind!r} is unknown to the installed transformers{hint}")


def _what_is_there_instead(path: Path) -> str:
    """What the user most likely did, from the files that are there."""
    names = sorted(entry.name for entry in path.iterdir())
    if "adapter_config.json" in names:
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        return f"; this is an adapter of {base}, name that model instead"
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        return (
            f"; {pickled[0]} is a pickle file, which can run code when it is opened and is never read: "
            "convert it to safetensors, or take a revision of the model that has them"
        )
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs:
        return f"; for the GGUF file write its path, {path / ggufs[0]}"
    inner = [entry.name for entry in path.iterdir() if (entry / "config.json").is_file()]
    if inner:
        return f"; the model seems to be in {path / inner[0]}"
    return f"; the folder holds {', '.join(names[:5]) or 'nothing'}"
