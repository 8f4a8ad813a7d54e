"""The keys of a config: what its short forms stand for, and where each value was given."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tunewright.config.schema import SourceConfig, long_data

Key = tuple[str | int, ...]


class Origin(NamedTuple):
    """Where a value was given, `run.yaml:7` or `override`, and its key as it is written there."""

    place: str
    written: Key


Origins = dict[Key, Origin]  # by long keys


def dotted(key: Key) -> str:
    """`train.seed` for ("train", "seed")."""
    return ".".join(str(part) for part in key)


def long_key(key: Key) -> Key:
    """The key as the schema has it: short forms leave out `train`, or the number of the only source."""
    if key[:1] != ("data",) or len(key) == 1:
        return key
    if isinstance(key[1], int):
        return ("data", "train", *key[1:])
    if key[1] in SourceConfig.model_fields:
        return ("data", "train", 0, *key[1:])
    if key[1] == "train" and len(key) > 2 and not isinstance(key[2], int):
        return ("data", "train", 0, *key[2:])
    return key


def write_out(tree: dict[str, Any]) -> None:
    """Replace the short forms in a config, so that each value lies where the schema has it."""
    if isinstance(tree.get("model"), str):
        tree["model"] = {"name": tree["model"]}
    if "data" in tree:
        tree["data"] = long_data(tree["data"])


def locate(key: Key, origins: Origins) -> Origin | None:
    """Where a value was given: itself, or the nearest section or short form around it."""
    key = long_key(key)
    return next((origins[key[:size]] for size in range(len(key), 0, -1) if key[:size] in origins), None)


def leaves(value: Any, prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value of a tree that is no section, with its key; a list of plain values is one."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*prefix, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, (*prefix, index))
    else:
        yield prefix, value
