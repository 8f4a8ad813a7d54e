"""Read a RUN.yaml with overrides into a RunConfig, and report every mistake in it at once.

The file is YAML 1.2: `1e-4` is a number, `no` and `on` are words. Settings come, later over earlier, from the
defaults, from `base` (what a command guessed or its flags said), from the file, and from overrides:

    train.learning_rate=1e-4        any dotted key; the value is YAML, so lists and mappings work: [a, b], {k: v}
    ~data.system                    takes a key out of the file again

Relative paths of data, template and model are looked up in the working directory first, then beside the file, and
data also among the data sets shipped with tunewright (`persona/…`). The file may be a recipe's name.
Every message names file and line (or the override), the dotted key, what is wrong and what to write instead.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import iglob
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import RoundTripRepresenter

import tunewright
from tunewright.config.problems import Key, dotted, explain, misplaced_booleans, nearest_origin
from tunewright.config.schema import RunConfig, SourceConfig
from tunewright.errors import UsageError
from tunewright.recipes import find_recipe

PROVENANCE = "provenance"  # a run's config.yaml keeps where it came from under this key; training again ignores it
SHIPPED_DATA = Path(tunewright.__file__).parent / "data"
GUESSED = "guessed"  # origin of settings that came from `base`
OVERRIDE = "override"


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that differs from its default, and where it came from: `run.yaml:7`, `override` or `guessed`."""

    key: str
    value: Any
    origin: str

    def __str__(self) -> str:
        return f"{self.key} = {to_flow(self.value)}  ({self.origin})"


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """A config with the origin of every value that was given, by its path of keys."""

    config: RunConfig
    origins: dict[Key, str]


def load_config(path: Path | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> RunConfig:
    """The config of a file and overrides; raises UsageError that lists all mistakes, each with its place."""
    return read_config(path, overrides, base).config


def read_config(path: Path | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> ReadConfig:
    """Like `load_config`, and keeps where each value came from for `describe_overrides`."""
    tree: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    _merge(tree, base or {})
    origins.update((key, GUESSED) for key, _ in _leaves(tree))
    if path is not None:
        path = path if path.exists() else find_recipe(path.as_posix()) or path
        values, places = read_yaml(path)
        values.pop(PROVENANCE, None)
        _merge(tree, values)
        origins.update(places)
    for override in overrides:
        key = _apply(tree, override)
        origins.update({known: OVERRIDE for known in origins if known[: len(key)] == key} | {key: OVERRIDE})
    problems = misplaced_booleans(_leaves(tree), origins)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems += explain(error, origins, "settings" if path is None else str(path))
    if problems:
        problems.sort(key=_line_of)
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        source = "the settings" if path is None else str(path)
        raise UsageError("\n".join([f"{count} in {source}:", *(f"  {problem}" for problem in problems)]))
    config = _find_paths(config, Path() if path is None else path.parent)
    return ReadConfig(config, origins)


def describe_overrides(read: ReadConfig) -> list[Setting]:
    """Every setting that differs from its default, with its origin, in the order of the schema."""
    given = dict(_leaves(read.config.model_dump()))
    defaults = dict(_leaves(RunConfig.model_validate({"model": "-", "data": "-"}).model_dump()))
    changed = [(key, value) for key, value in given.items() if key not in defaults or defaults[key] != value]
    return [Setting(dotted(key), value, _origin(key, read.origins)) for key, value in changed]


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Command-line words into a config file, if the first one is no override, and the overrides."""
    words = list(arguments)
    if words and not _is_override(words[0]):
        return Path(words[0]), words[1:]
    return None, words


def as_override(key: str, value: Any) -> str:
    """A flag's value as an override: `as_override("model", name)` is safe for any text."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{key}={''.join(c if c.isprintable() else f'{chr(92)}U{ord(c):08x}' for c in text)}"


def dump_config(config: RunConfig) -> str:
    """The whole config as YAML that `load_config` reads back to an equal config."""
    return to_yaml(config.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """JSON schema of a RUN.yaml, for editors and the page."""
    return RunConfig.model_json_schema()


# YAML


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    """Values of a YAML mapping, and `file:line` of each key and list item in it."""
    text = _read_text(path)
    try:
        values = _yaml().load(text)
        node = _yaml().compose(io.StringIO(text))
    except YAMLError as error:
        raise UsageError(_syntax_message(error, str(path), text)) from error
    if values is None:
        raise UsageError(f"{path} is empty; the smallest config has the keys model and data")
    if not isinstance(values, dict):
        raise UsageError(
            f"{path}:1: the file holds {_kind(values)}, not a mapping; "
            "write lines such as `model: NAME` and `data: FILE`"
        )
    wrong = [key for key in values if not isinstance(key, str)]
    if wrong:
        raise UsageError(f"{path}: the key {wrong[0]!r} is not a word; put it in quotes if it is meant")
    return values, {key: f"{path}:{line}" for key, line in _lines(node)}


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as block YAML: keys in their order, unicode as it is, null spelled out."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 4096  # a folded system prompt would be the same text, but hard to read and to search
    out = io.StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def to_flow(value: Any) -> str:
    """A value on one line, as it could stand in an override."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Representer(RoundTripRepresenter):
    """Null as a word, and control characters, line ends among them, as escapes: plain YAML would change some."""

    def represent_none(self, data: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Representer.add_representer(type(None), _Representer.represent_none)
_Representer.add_representer(str, _Representer.represent_str)


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a config file; `tunewright resume {path}` goes on with a run")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"no config file {path}; `tunewright ls recipes` lists ready ones, `tunewright cp RECIPE FILE` copies one"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: the text is not UTF-8; save the file as UTF-8") from error


def _syntax_message(error: YAMLError, source: str, text: str) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"{source}: this is not YAML: {str(error).splitlines()[0]}"
    line, column = error.problem_mark.line + 1, error.problem_mark.column + 1
    problem = (error.problem or "cannot be read").split(" with value")[0]
    if "'\\t'" in problem:
        problem = "a tab stands where spaces belong; indent with spaces"
    elif problem.startswith("found duplicate key"):
        key = problem.split('"')[1]
        problem = f"the key {key} stands twice; keep one of them"
    elif problem.startswith("mapping values are not allowed"):
        problem = "a second colon, or wrong indentation; put text with a colon in quotes"
    elif problem.startswith("could not determine a constructor"):
        problem = "tags such as !name are not allowed here; put text that opens with ! in quotes"
    return f"{source}:{line}:{column}: {problem}"


def _lines(node: Node | None, prefix: Key = ()) -> Iterator[tuple[Key, int]]:
    if isinstance(node, MappingNode):
        for name, child in node.value:
            key = (*prefix, str(name.value))
            yield key, name.start_mark.line + 1
            yield from _lines(child, key)
    elif isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            key = (*prefix, index)
            yield key, child.start_mark.line + 1
            yield from _lines(child, key)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the text {value!r}" if isinstance(value, str) else f"{value!r}"


# Overrides


def _is_override(word: str) -> bool:
    return (word.startswith("~") and not word.startswith("~/")) or "=" in word


def _apply(tree: dict[str, Any], override: str) -> Key:
    """Put one override into the tree; returns its key."""
    if override.startswith("~"):
        key = _parse_key(override[1:], override)
        _remove(tree, key, override)
        return key
    name, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"override {override!r}: no '=' in it; write key=value to set a key, ~key to remove one")
    key = _parse_key(name, override)
    try:
        value = _yaml().load(text)
    except YAMLError as error:
        message = _syntax_message(error, "", text).split(": ", 1)[-1]
        raise UsageError(f"override {override!r}: the value is not YAML: {message}; put it in quotes?") from error
    _set(tree, key, value)
    return key


def _parse_key(name: str, override: str) -> Key:
    parts = name.strip().split(".")
    if not all(parts):
        raise UsageError(f"override {override!r}: {name!r} is no key; write it like train.learning_rate")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _set(tree: dict[str, Any], key: Key, value: Any) -> None:
    node: Any = tree
    for depth, part in enumerate(key[:-1]):
        if not _holds(node, part):
            if not isinstance(node, dict):
                raise UsageError(f"override {dotted(key)}: {dotted(key[:depth])} has no entry {part}")
            node[part] = {}
        node[part] = _long_form(key[: depth + 1], node[part], key[depth + 1])
        node = node[part]
    last = key[-1]
    if isinstance(node, list) and not _holds(node, last):
        raise UsageError(f"override {dotted(key)}: the list has entries 0 to {len(node) - 1}, not {last}")
    node[last] = value


def _remove(tree: dict[str, Any], key: Key, override: str) -> None:
    node: Any = tree
    for part in key[:-1]:
        node = node[part] if _holds(node, part) else {}
    if not _holds(node, key[-1]):
        raise UsageError(f"override {override!r}: the config has no key {dotted(key)} to remove")
    del node[key[-1]]


def _holds(node: Any, part: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and part in node


def _long_form(key: Key, value: Any, below: str | int) -> Any:
    """The mapping that a short form stands for, so that a key below it can be set: `model: NAME` is `{name: NAME}`."""
    if isinstance(value, dict) or (isinstance(value, list) and isinstance(below, int)):
        return value
    if key == ("model",):
        return {"name": value}
    if key == ("data",):
        return {"path": value} if below in SourceConfig.model_fields and isinstance(value, str) else {"train": value}
    if key[:2] in (("data", "train"), ("data", "validation")) and isinstance(value, str):
        return {"path": value}
    return {} if value is None else value if isinstance(value, list) else {}


def _merge(tree: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = _copy(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


# Origins and paths


def _line_of(problem: str) -> int:
    """The line of the file that a problem names; overrides come last, whole-file problems first."""
    line = problem.split(": ", 1)[0].rpartition(":")[2]
    return int(line) if line.isdecimal() else 1_000_000 if problem.startswith(OVERRIDE) else 0


def _leaves(value: Any, prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*prefix, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, (*prefix, index))
    else:
        yield prefix, value


def _origin(key: Key, origins: dict[Key, str]) -> str:
    found = nearest_origin(key, origins)
    return origins[found] if found else "default"


def _find_paths(config: RunConfig, folder: Path) -> RunConfig:
    """Paths that are not in the working directory but beside the config file or shipped, made usable from there."""
    model, data = config.model, config.data
    beside = folder / model.name
    if not Path(model.name).exists() and ((beside / "config.json").is_file() or beside.suffix == ".gguf"):
        model = model.model_copy(update={"name": _find(model.name, folder)})
    changes: dict[str, Any] = {"train": [_find_source(source, folder) for source in data.train]}
    if isinstance(data.validation, SourceConfig):
        changes["validation"] = _find_source(data.validation, folder)
    if data.template != "auto":
        changes["template"] = _find(data.template, folder)
    if data.registry is not None:
        changes["registry"] = _find(data.registry, folder)
    return config.model_copy(update={"model": model, "data": data.model_copy(update=changes)})


def _find_source(source: SourceConfig, folder: Path) -> SourceConfig:
    return source.model_copy(update={"path": _find(source.path, folder)}) if source.source == "local" else source


def _find(name: str, folder: Path) -> str:
    """The first of working directory, `folder` and shipped data that holds a path; the path as it is if none does."""
    path = Path(name).expanduser()
    return str(next((found for found in (path, folder / path, SHIPPED_DATA / path) if _is_there(found)), path))


def _is_there(path: Path) -> bool:
    """Whether a path exists, or a file does that fits it as a pattern."""
    return path.exists() or any(True for _ in iglob(str(path), recursive=True))
