"""Read a RUN.yaml with overrides into a RunConfig, and report every mistake in it at once.

Settings come, later over earlier, from the defaults, from `base` (what a command or a program says), from the file,
and from overrides (config/overrides.py). The file may be a recipe's name.
Every message names file and line (or the override), the dotted key, what is wrong and what to write instead.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunewright.config.keys import Origin, Origins, dotted, leaves, locate, long_key, write_out
from tunewright.config.overrides import apply_override
from tunewright.config.paths import find_paths
from tunewright.config.problems import explain, misplaced_booleans
from tunewright.config.schema import RunConfig
from tunewright.config.yaml import read_yaml, to_flow, to_yaml
from tunewright.errors import UsageError
from tunewright.recipes import find_recipe

PROVENANCE = "provenance"  # a run's config.yaml keeps where it came from under this key; training again ignores it
OVERRIDE = "override"
SETTINGS = "settings"  # place of what neither a file nor an override says


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that differs from its default, and where it came from: `run.yaml:7`, `override` or `settings`."""

    key: str
    value: Any
    origin: str

    def __str__(self) -> str:
        return f"{self.key} = {to_flow(self.value)}  ({self.origin})"


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """A config with the origin of every value that was given."""

    config: RunConfig
    origins: Origins


def load_config(path: Path | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> RunConfig:
    """The config of a file and overrides; raises UsageError that lists all mistakes, each with its place."""
    return read_config(path, overrides, base).config


def read_config(path: Path | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> ReadConfig:
    """Like `load_config`, and keeps where each value came from for `non_defaults`."""
    tree: dict[str, Any] = {}
    origins: Origins = {}
    _merge(tree, base or {})
    if path is not None:
        path = path if os.path.exists(path) else find_recipe(path.as_posix()) or path
        values, places = read_yaml(path)
        values.pop(PROVENANCE, None)
        _merge(tree, values)
        origins = {long_key(key): Origin(place, key) for key, place in places.items()}
    write_out(tree)
    for override in overrides:
        written = apply_override(tree, override)
        key = long_key(written)
        origins = {known: origin for known, origin in origins.items() if known[: len(key)] != key}
        origins[key] = Origin(OVERRIDE, written)
    source = SETTINGS if path is None else str(path)
    problems = misplaced_booleans(tree, origins, source)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems += explain(error, origins, source)
    if problems:
        problems.sort(key=_line_of)
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        whole = "the settings" if path is None else str(path)
        raise UsageError("\n".join([f"{count} in {whole}:", *(f"  {problem}" for problem in problems)]))
    return ReadConfig(find_paths(config, Path() if path is None else path.parent), origins)


def non_defaults(read: ReadConfig) -> list[Setting]:
    """Every setting that differs from its default, with its origin, in the order of the schema."""
    settings = []
    for key, value in leaves(read.config.model_dump(exclude_defaults=True)):
        if value != {}:  # a section without a change
            origin = locate(key, read.origins)
            settings.append(Setting(dotted(key), value, origin.place if origin else SETTINGS))
    return settings


def dump_config(config: RunConfig) -> str:
    """The whole config as YAML that `load_config` reads back to an equal config."""
    return to_yaml(config.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """JSON schema of a RUN.yaml, for editors and the page."""
    return RunConfig.model_json_schema()


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


def _line_of(problem: str) -> int:
    """The line of the file that a problem names; overrides come last, whole-file problems first."""
    line = problem.split(": ", 1)[0].rpartition(":")[2]
    return int(line) if line.isdecimal() else 1_000_000 if problem.startswith(OVERRIDE) else 0
