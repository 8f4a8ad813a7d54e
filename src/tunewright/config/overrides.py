"""Settings on the command line, later ones over earlier, all over the file:

    train.learning_rate=1e-4        any dotted key; the value is YAML, so lists and mappings work: [a, b], {k: v}
    ~data.system                    takes a key out of the file again

A key of a data file may leave out `train`, or the number of the only file: `data.columns.prompt=q`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.config.keys import Key, dotted, long_key, write_out
from tunewright.config.yaml import YamlFault, parse_yaml
from tunewright.errors import UsageError

_OVERRIDE = re.compile(r"~[\w.-]+|[\w.-]*=.*", re.DOTALL)  # `runs/lr=1e-4/run.yaml` and `~/run.yaml` are paths


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Command-line words into a config file, if the first one is no override, and the overrides."""
    words = list(arguments)
    if words and not _OVERRIDE.fullmatch(words[0]):
        return Path(words[0]), words[1:]
    return None, words


def as_override(key: str, value: Any) -> str:
    """A flag's value as an override: `as_override("model", name)` is safe for any text."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{key}={''.join(c if c.isprintable() else f'{chr(92)}U{ord(c):08x}' for c in text)}"


def apply_override(tree: dict[str, Any], override: str) -> Key:
    """Change a config, whose short forms are written out, by one override; returns the key as it is written there."""
    if override.startswith("~"):
        written = _parse_key(override[1:], override)
        _remove(tree, _one_source(tree, written), override)
        return written
    name, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"override {override!r}: no '=' in it; write key=value to set a key, ~key to remove one")
    written = _parse_key(name, override)
    try:
        value, _ = parse_yaml(text)
    except YamlFault as fault:
        message = f"override {override!r}: the value is not YAML: {fault.problem}; put it in quotes?"
        raise UsageError(message) from fault
    _set(tree, _one_source(tree, written), value)
    write_out(tree)
    return written


def _parse_key(name: str, override: str) -> Key:
    parts = name.strip().split(".")
    if not all(parts):
        raise UsageError(f"override {override!r}: {name!r} is no key; write it like train.learning_rate")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _one_source(tree: dict[str, Any], written: Key) -> Key:
    """The long key; one that leaves out the number of a source means the only one."""
    key = long_key(written)
    data = tree.get("data")
    sources = data.get("train") if isinstance(data, dict) else None
    if key[:3] == ("data", "train", 0) and 0 not in written and isinstance(sources, list) and len(sources) > 1:
        raise UsageError(
            f"override {dotted(written)}: data.train has {len(sources)} entries; say which one: {dotted(key)}"
        )
    return key


def _set(tree: dict[str, Any], key: Key, value: Any) -> None:
    node: Any = tree
    for depth, part in enumerate(key[:-1]):
        _require_entry(node, key, depth)
        below = node[part] if _holds(node, part) else None
        if not isinstance(below, (dict, list)):
            below = node[part] = [{}] if isinstance(key[depth + 1], int) else {}
        node = below
    _require_entry(node, key, len(key) - 1)
    node[key[-1]] = value


def _remove(tree: dict[str, Any], key: Key, override: str) -> None:
    node: Any = tree
    for part in key[:-1]:
        node = node[part] if _holds(node, part) else {}
    if not _holds(node, key[-1]):
        raise UsageError(f"override {override!r}: the config has no key {dotted(key)} to remove")
    del node[key[-1]]


def _require_entry(node: Any, key: Key, depth: int) -> None:
    if isinstance(node, list) and not _holds(node, key[depth]):
        raise UsageError(f"override {dotted(key)}: {dotted(key[:depth])} has no entry {key[depth]}")


def _holds(node: Any, part: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and part in node
