"""A config whose file paths are absolute, so that its run can be resumed and repeated from any folder."""

from pathlib import Path

from tunewright.config.paths import is_there, with_paths
from tunewright.config.schema import RunConfig


def absolute_paths(config: RunConfig, model_folder: Path) -> RunConfig:
    """The config with every path that exists made absolute; `model_folder` is what `model` was resolved to."""
    name = config.model.name
    # A built-in or hub name stays, even if a folder here happens to be called the same.
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" or path.resolve() == model_folder.resolve():
        name = _absolute(name)
    return with_paths(config, name, _absolute)


def _absolute(name: str, pattern: bool = False) -> str:
    """A path that exists, or a pattern that something fits, made absolute."""
    path = Path(name).expanduser()
    return str(path.absolute()) if is_there(path, pattern) else name
