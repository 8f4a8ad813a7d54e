"""A config whose file paths are absolute, so that its run can be resumed and repeated from any folder."""

from glob import iglob
from pathlib import Path
from typing import Any

from tunewright.config.schema import RunConfig, SourceConfig


def absolute_paths(config: RunConfig, model_folder: Path) -> RunConfig:
    """The config with every path that exists made absolute; `model_folder` is what `model` was resolved to."""
    data, model = config.data, config.model
    changes: dict[str, Any] = {"train": [_absolute_source(source) for source in data.train]}
    if isinstance(data.validation, SourceConfig):
        changes["validation"] = _absolute_source(data.validation)
    if data.template != "auto":
        changes["template"] = _absolute(data.template)
    if data.registry is not None:
        changes["registry"] = _absolute(data.registry)
    # A built-in or hub name stays, even if a folder here happens to be called the same.
    path = Path(model.name).expanduser()
    if path.suffix.lower() == ".gguf" or path.resolve() == model_folder.resolve():
        model = model.model_copy(update={"name": _absolute(model.name)})
    return config.model_copy(update={"data": data.model_copy(update=changes), "model": model})


def _absolute_source(source: SourceConfig) -> SourceConfig:
    if source.source != "local":
        return source
    path = Path(source.path).expanduser()
    is_pattern = not path.exists() and any(True for _ in iglob(str(path), recursive=True))
    return source.model_copy(update={"path": str(path.absolute()) if is_pattern else _absolute(source.path)})


def _absolute(name: str) -> str:
    """A path that exists, made absolute."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
