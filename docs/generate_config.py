"""Write docs/en/config.md and docs/zh/config.md from the descriptions in the schema.

    python docs/generate_config.py

The Chinese descriptions stand in docs/zh/config_descriptions.json, one for each key; a missing or surplus one is an
error. A test holds both pages to what this program writes.
"""

import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tunewright.config.schema import RunConfig
from tunewright.config.yaml import to_flow

DOCS = Path(__file__).parent
DESCRIPTIONS = DOCS / "zh" / "config_descriptions.json"

INTRO = {
    "en": """# Config: every key of a run.yaml

[中文](../zh/config.md) · [Guide](guide.md) · [How it works](how-it-works.md)

Generated from the schema by `python docs/generate_config.py`. A config is YAML 1.2: `1e-4` is a number, `no` is a word.
Only `model` and `data` are required. On the command line any key can follow as `key=value` (`train.epochs=5`,
`data.system='You cook.'`); `~key` removes one from the file. Relative paths are looked up in the working directory,
then beside the config file. An unknown key is an error that names the nearest one.

Short forms: `model: NAME` means `{name: NAME}`, a path in `data.train` or `data.validation` means `{path: …}`, and
`data: FILE` means `{train: FILE}`. The keys of a data file are listed once, under `data.train`; `data.train` may be a
list, and `data.validation` may be one such file.

```yaml
model: smollm2-135m-instruct
data: questions.xlsx
```
""",
    "zh": """# 配置：run.yaml 的全部键

[English](../en/config.md) · [使用指南](guide.md) · [原理](how-it-works.md)

本页由 `python docs/generate_config.py` 根据配置定义生成。配置采用 YAML 1.2：`1e-4` 是数字，`no` 是普通文字。
必填的只有 `model` 和 `data`。命令行上可以用 `键=值` 改写任何一项（如 `train.epochs=5`、`data.system='You cook.'`），
`~键` 则把它从文件里去掉。相对路径先在当前目录找，再到配置文件所在目录找。键名写错会报错，并提示最接近的写法。

简写：`model: 名称` 等于 `{name: 名称}`；`data.train`、`data.validation` 里的一个路径等于 `{path: …}`；
`data: 文件` 等于 `{train: 文件}`。数据文件的键只在 `data.train` 下列一次；`data.train` 可以是列表，
`data.validation` 也可以是这样一个文件。

```yaml
model: smollm2-135m-instruct
data: questions.xlsx
```
""",
}
HEAD = {
    "en": "| key | value | default | meaning |\n|---|---|---|---|",
    "zh": "| 键 | 取值 | 默认值 | 含义 |\n|---|---|---|---|",
}
REQUIRED = {"en": "required", "zh": "必填"}
TITLE = {"en": "Top level", "zh": "顶层"}
KINDS = {
    "en": {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list", type(None): "null"},
    "zh": {str: "文字", int: "整数", float: "数字", bool: "true 或 false", list: "列表", type(None): "null"},
}
FILE = {"en": "file", "zh": "文件"}


class Key(NamedTuple):
    """One key of the config: dotted name, its field, and the section it opens, if any."""

    name: str
    field: FieldInfo
    section: type[BaseModel] | None


def all_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[Key]:
    """Every key in the order of the schema, sections before what is in them."""
    found = []
    for name, field in model.model_fields.items():
        section = None if prefix + name == "data.validation" else _section(field.annotation)
        found.append(Key(prefix + name, field, section))
        if section is not None:
            found += all_keys(section, f"{prefix}{name}.")
    return found


def page(language: str) -> str:
    """The whole page as Markdown."""
    descriptions = chinese() if language == "zh" else {key.name: str(key.field.description) for key in all_keys()}
    parts = [INTRO[language]]
    for title, members in _sections().items():
        heading = f"## `{title}`\n\n{descriptions[title]}" if title else f"## {TITLE[language]}"
        rows = [_row(key, descriptions[key.name], language) for key in members]
        parts.append("\n".join([heading, "", HEAD[language], *rows, ""]))
    return "\n".join(parts)


def chinese() -> dict[str, str]:
    """The translated descriptions. Raises ValueError where they are not exactly those of the schema's keys."""
    found: dict[str, str] = json.loads(DESCRIPTIONS.read_text(encoding="utf-8"))
    names = [key.name for key in all_keys()]
    if list(found) != names:
        differing = sorted(set(found) ^ set(names)) or "their order"
        raise ValueError(f"{DESCRIPTIONS.name} does not match the schema: {differing}")
    return found


def _sections() -> dict[str, list[Key]]:
    sections: dict[str, list[Key]] = {"": []}
    for key in all_keys():
        if key.section is not None:
            sections[key.name] = []
        sections[key.name.rpartition(".")[0]].append(key)
    return {title: members for title, members in sections.items() if members}


def _row(key: Key, description: str, language: str) -> str:
    field = key.field
    if field.is_required():
        default = REQUIRED[language]
    else:
        default = "" if field.default is PydanticUndefined else f"`{to_flow(field.default)}`"
    value = "↓" if key.section is not None else _kind(field.annotation, language)
    return f"| `{key.name}` | {value} | {default} | {description.replace('|', chr(92) + '|')} |"


def _kind(annotation: Any, language: str) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0], language)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin in (Union, UnionType):
        return " / ".join(_kind(one, language) for one in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return FILE[language]
    return KINDS[language][origin or annotation]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a value of this type is, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


if __name__ == "__main__":
    for language in INTRO:
        (DOCS / language / "config.md").write_text(page(language), encoding="utf-8")
