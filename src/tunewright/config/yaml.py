"""YAML 1.2 in and out: `1e-4` is a number, `no` and `2026-02-30` are words; every fault is named with its place."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import RoundTripRepresenter

from tunewright.config.keys import Key
from tunewright.errors import UsageError


class YamlFault(Exception):
    """A text that is no YAML: `place` is `:line:column`, or empty where that is unknown, `problem` what is wrong."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    """Values of a YAML mapping, and `file:line` of each key and list item in it."""
    try:
        values, lines = parse_yaml(_read_text(path))
    except YamlFault as fault:
        raise UsageError(f"{path}{fault.place}: {fault.problem}") from fault
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
    return values, {key: f"{path}:{line}" for key, line in lines.items()}


def parse_yaml(text: str) -> tuple[Any, dict[Key, int]]:
    """The value of a text, and the line of each key and list item in it; raises YamlFault."""
    try:
        lines = dict(_lines(_yaml().compose(io.StringIO(text))))
        return _yaml().load(text), lines
    except YAMLError as error:
        raise _fault(error) from error
    except RecursionError as error:
        problem = "values are nested too deeply, or an alias (*name) stands within its own anchor (&name)"
        raise YamlFault("", problem) from error
    except ValueError as error:  # of a tag such as !!int before a word, or of a number with thousands of digits
        raise YamlFault("", f"a value cannot be read: {str(error).split(';')[0]}") from error


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


class _Constructor(SafeConstructor):
    """Dates stay words: YAML 1.2 has none, no key wants one, and a run folder may be called like one."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(RoundTripRepresenter):
    """Null as a word, and control characters, line ends among them, as escapes: plain YAML would change some."""

    def represent_none(self, data: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Representer.add_representer(type(None), _Representer.represent_none)
_Representer.add_representer(str, _Representer.represent_str)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"no config file {path}; `tunewright ls recipes` lists ready ones, `tunewright cp RECIPE FILE` copies one"
        ) from None
    except IsADirectoryError:
        raise UsageError(
            f"{path} is a folder, not a config file; `tunewright resume {path}` goes on with a run"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: the text is not UTF-8; save the file as UTF-8") from error


def _fault(error: YAMLError) -> YamlFault:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return YamlFault("", f"this is not YAML: {str(error).splitlines()[0]}")
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
    return YamlFault(f":{line}:{column}", problem)


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
