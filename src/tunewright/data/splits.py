"""Which files of a data set are meant: subset, split and folder, as the hubs and their libraries understand them.

A data set says it in the head of its README (`configs:`), otherwise the names of its files do: `train-00000-of-00002`,
`data/test.jsonl`, `default/train/0000.parquet`. No loading script is ever run.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from tunewright.data.kinds import Kind, ending_of, kind_of
from tunewright.data.suggest import nearest
from tunewright.errors import UsageError
from tunewright.models.cache import Notify

WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SHARD = re.compile(r"(?P<split>[^/]+?)-\d{5,}-of-\d{5,}[^/]*$")
CONVERTED = re.compile(r"/(?:partial-)?(?P<split>[^/]+)/\d{4}\.parquet$")
BESIDE = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
)  # about data, not data
GLOB = re.compile(r"[*?\[]")


def choose_files(
    names: Sequence[str],
    readme: str | None,
    where: str,
    key: str,
    notify: Notify,
    subset: str | None = None,
    split: str | None = None,
    folder: str | None = None,
) -> list[str]:
    """The data files to read, sorted, out of all `names` of a data set (relative, with slashes).

    `readme` is the text of its README.md, `where` how messages call the set, `key` the config key of its source;
    `notify` is told what is left out. Raises UsageError where nothing fits or it is not clear what is meant.
    """
    data = sorted(name for name in names if _is_data(name))
    if not data:
        raise UsageError(_no_data(names, where, key))
    wanted = split or "train"
    if "[" in wanted:
        raise UsageError(f"{key}.split: {wanted!r}: slices are not read; name the split, and limit it by max_samples")
    groups = None
    if folder is not None:
        data = _in_folder(data, folder, where, key)
    else:
        config = _choose_config(_configs(readme), subset, data, where, key)
        if config is not None:
            groups = _declared_splits(config, data)
            data = sorted({name for files in groups.values() for name in files})
        elif subset is not None:
            data = _of_subset(data, subset, where, key)
    groups = groups if groups else _named_splits(data)
    if split is None and len(groups) == 1 and "train" not in groups:
        wanted = next(iter(groups))
        notify(f"{where}: its only split is {wanted}, which is read")
    chosen: list[str] = []
    for part in wanted.split("+"):
        files = groups.get(part) or groups.get(WORDS.get(part, part)) or []
        if not files:
            there = ", ".join(groups)
            raise UsageError(f"{key}.split: {where} has no split {part!r}, it has {there}{nearest(part, groups)}")
        chosen += files
    chosen = list(dict.fromkeys(chosen))
    left_out = {label: [f for f in files if f not in chosen] for label, files in groups.items()}
    listed = ", ".join(f"{label} ({_files(len(files))})" for label, files in left_out.items() if files)
    if listed:
        notify(f"{where}: reads {_files(len(chosen))} of split {wanted}; not read: {listed}")
    return one_kind(chosen, where, key)


def one_kind(names: Sequence[str], where: str, key: str) -> list[str]:
    """The names, which must all stand for the same kind of file; a README beside data of another kind is no data."""
    by_kind: dict[Kind, list[str]] = {}
    for name in names:
        kind = kind_of(name)
        if kind is not None:
            by_kind.setdefault(kind, []).append(name)
    if len(by_kind) > 1:
        by_kind.pop("document", None)
    if len(by_kind) > 1:
        listed = " and ".join(f"{_files(len(found))} like {found[0]}" for found in by_kind.values())
        example = f"*{ending_of(next(iter(by_kind.values()))[0])}"
        fix = f"name one kind by a pattern, such as {example}"
        raise UsageError(f"{key}: {where} holds {listed}, which are not read together: {fix}")
    return next(iter(by_kind.values()), [])


def matches(name: str, pattern: str) -> bool:
    """Whether a path fits a pattern in which `*` stays inside a folder and `**` crosses folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    forms = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = "".join(
        forms.get(part) or (part.replace("[!", "[^") if part.startswith("[") else re.escape(part)) for part in parts
    )
    try:
        return re.fullmatch(expression, name) is not None
    except re.error:
        return name == pattern


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return kind_of(name) is not None and not hidden and path.name not in BESIDE and path.stem.upper() != "README"


def _no_data(names: Sequence[str], where: str, key: str) -> str:
    if any(name.endswith(".py") for name in names):
        fix = f"see whether {key}.revision: refs/convert/parquet has it as data"
        return f"{key}: {where} holds a loading script instead of data files, and no foreign code is run: {fix}"
    endings = sorted({ending_of(name) for name in names} - {""})
    only = f", only {', '.join(endings[:6])}" if endings else ""
    return f"{key}: {where} holds no data file{only}"


def _in_folder(data: list[str], folder: str, where: str, key: str) -> list[str]:
    if GLOB.search(folder):
        found = [name for name in data if matches(name, folder)]
    else:
        found = [name for name in data if name == folder or name.startswith(folder.strip("/") + "/")]
    if not found:
        folders = sorted({str(PurePosixPath(name).parent) for name in data} - {"."})
        there = f"it has {', '.join(folders[:6])}" if folders else "all of its data files lie at its top"
        raise UsageError(f"{key}.folder: {where} has no data file in {folder!r}; {there}{nearest(folder, folders)}")
    return found


def _of_subset(data: list[str], subset: str, where: str, key: str) -> list[str]:
    """Without a declaration, a subset is a folder of that name, or files that begin with it."""
    found = [name for name in data if subset in PurePosixPath(name).parts[:-1]]
    found = found or [name for name in data if re.match(re.escape(subset) + r"[-_./]", PurePosixPath(name).name)]
    if not found:
        folders = sorted({part for name in data for part in PurePosixPath(name).parts[:-1]})
        there = f"; its folders are {', '.join(folders[:6])}" if folders else ""
        raise UsageError(f"{key}.subset: {where} has no subset {subset!r}{there}{nearest(subset, folders)}")
    return found


def _configs(readme: str | None) -> list[dict[str, Any]]:
    """`configs` from the YAML head of a README; none where there is no head that can be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    head = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", readme or "", re.DOTALL)
    if head is None:
        return []
    try:
        content = YAML(typ="safe", pure=True).load(head[1])
    except (YAMLError, ValueError):
        return []
    configs = content.get("configs") if isinstance(content, dict) else None
    found = configs if isinstance(configs, list) else []
    return [
        config for config in found if isinstance(config, dict) and (config.get("data_files") or config.get("data_dir"))
    ]


def _choose_config(
    configs: list[dict[str, Any]], subset: str | None, data: list[str], where: str, key: str
) -> dict[str, Any] | None:
    if not configs:
        return None
    names = [str(config.get("config_name", "default")) for config in configs]
    if subset is None:
        if len(configs) == 1:
            return configs[0]
        for name, config in zip(names, configs, strict=True):
            if config.get("default") is True or name == "default":
                return config
        raise UsageError(f"{key}: {where} has several subsets, choose one: {key}.subset: {' | '.join(names)}")
    if subset in names:
        return configs[names.index(subset)]
    raise UsageError(
        f"{key}.subset: {where} has no subset {subset!r}, it has {', '.join(names)}{nearest(subset, names)}"
    )


def _declared_splits(config: dict[str, Any], data: list[str]) -> dict[str, list[str]]:
    """Split -> files from `data_files`, which may be a pattern, a list, or either for each split."""
    inside = str(config.get("data_dir") or "").strip("/")
    declared = config.get("data_files")
    if not declared:
        return _named_splits([name for name in data if name.startswith(inside + "/")])
    if isinstance(declared, dict):
        pairs = [(str(split), patterns) for split, patterns in declared.items()]
    elif isinstance(declared, list) and all(isinstance(entry, dict) for entry in declared):
        pairs = [(str(entry.get("split", "train")), entry.get("path")) for entry in declared]
    else:
        pairs = [("train", declared)]
    groups: dict[str, list[str]] = {}
    for split, patterns in pairs:
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            whole = f"{inside}/{pattern}" if inside else str(pattern)
            groups.setdefault(split, []).extend(name for name in data if matches(name, whole))
    return {split: sorted(set(files)) for split, files in groups.items() if files}


def _named_splits(data: list[str]) -> dict[str, list[str]]:
    """Split -> files by the names of the files; those without a split are for training, unless others say they are."""
    groups: dict[str, list[str]] = {}
    unnamed = []
    for name in data:
        split = _split_of(name)
        if split is None:
            unnamed.append(name)
        else:
            groups.setdefault(split, []).append(name)
    if unnamed:
        groups["train" if "train" not in groups else "without a split"] = unnamed
    return groups


def _split_of(name: str) -> str | None:
    found = SHARD.search(name) or CONVERTED.search("/" + name)
    if found:
        return WORDS.get(found["split"], found["split"])
    for part in reversed(PurePosixPath(name).parts):
        for word in re.split(r"[^A-Za-z]+", part.lower()):
            if word in WORDS:
                return WORDS[word]
    return None


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"
