"""What a user reads for each mistake in a config: place, key, what is wrong and what to write instead."""

from pathlib import Path

import pytest

from tunewright.config.load import load_config
from tunewright.errors import UsageError

START = "model: tiny\ndata: rows.json\n"  # mistakes appended to it stand on line 3


def message(path: Path, content: str | bytes, overrides: list[str] | None = None) -> str:
    """The whole message for a file with this content, its folder left out."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides or [])
    return str(caught.value).replace(str(path), "run.yaml")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lora: {rnak: 8}", "run.yaml:3: lora.rnak: unknown key; did you mean rank?"),
        ("learning_rate: 1e-4", "run.yaml:3: learning_rate: unknown key; did you mean train.learning_rate?"),
        ("train: {batch-size: 8}", "run.yaml:3: train.batch-size: unknown key; did you mean batch_size?"),
        ("Output: x", "run.yaml:3: Output: unknown key; did you mean output?"),
        (
            f"train: {{seed: {2**63}}}",
            f"run.yaml:3: train.seed: must be at most {2**63 - 1}, not {2**63}",
        ),
        ("train: {lr: 1}", "run.yaml:3: train.lr: unknown key; did you mean train.learning_rate?"),
        ("chat: {zzz: 1}", "run.yaml:3: chat.zzz: unknown key; known keys here are temperature, top_p, max_new_tokens"),
        ("method: {stage: sftt}", "run.yaml:3: method.stage: 'sftt' is not one of pt, sft; did you mean sft?"),
        ("method: {tuning: 8bit}", "run.yaml:3: method.tuning: '8bit' is not one of full, lora"),
        ("train: {batch_size: 0}", "run.yaml:3: train.batch_size: must be at least 1, not 0"),
        ("train: {batch_size: 1.5}", "run.yaml:3: train.batch_size: must be a whole number, not 1.5"),
        ("train: {batch_size: true}", "run.yaml:3: train.batch_size: must be a number, not true or false"),
        ("train: {epochs: three}", "run.yaml:3: train.epochs: must be a number, not 'three'"),
        ("train: {epochs: null}", "run.yaml:3: train.epochs: must be a number, not null"),
        ("train: {learning_rate: .inf}", "run.yaml:3: train.learning_rate: must be a finite number, not inf"),
        ("train: {learning_rate: 0}", "run.yaml:3: train.learning_rate: must be greater than 0, not 0"),
        ("lora: {dropout: 1}", "run.yaml:3: lora.dropout: must be less than 1, not 1"),
        ("chat: {top_p: 2}", "run.yaml:3: chat.top_p: must be at most 1, not 2"),
        ("output: 5", "run.yaml:3: output: must be text, not 5; put it in quotes"),
        ("evaluate: {at_end: maybe}", "run.yaml:3: evaluate.at_end: must be true or false, not 'maybe'"),
        ("samples: {prompts: 你好}", "run.yaml:3: samples.prompts: must be a list, not '你好'; write [a, b]"),
        (
            "chat: 4",
            "run.yaml:3: chat: must be a mapping with keys out of temperature, top_p, max_new_tokens, not 4",
        ),
        (
            "lora: {target: 3}",
            "run.yaml:3: lora.target: cannot be 3: all-linear, or names of the linear layers to adapt.",
        ),
        ("schema_version: 2", "run.yaml:3: schema_version: 2 is not one of 1"),
    ],
)
def test_one_mistake(path: Path, line: str, expected: str) -> None:
    assert message(path, START + line) == f"1 mistake in run.yaml:\n  {expected}"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("train: ''", "run.yaml:2: data.train.0.path: must not be empty"),
        ("train: []", "run.yaml:2: data.train: must not be empty"),
        ("path: a\n  max_samples: true", "run.yaml:4: data.max_samples: must be a number, not true or false"),
        ("train: a\n  columns: {prompt: q}", "run.yaml:4: data.columns: unknown key; did you mean data.train.columns?"),
        ("train: a\n  validation: {path: b, Max-Samples: 2}", "run.yaml:4: data.validation.Max-Samples: unknown key"),
        (
            "train: a\n  template: '{% for message in messages %}'",
            "run.yaml:4: data.template: must be a name or the path of a file with the Jinja text, not '{% for m",
        ),
        ("path: a\n  columns: {prmpt: q}", "run.yaml:4: data.columns.prmpt: unknown key; did you mean prompt?"),
        ("train: [{path: a, fromat: x}]", "run.yaml:2: data.train.0.fromat: unknown key; did you mean format?"),
        (
            "train: a\n  validation: [1]",
            "run.yaml:4: data.validation: cannot be a list: "
            "Held-out examples: a share below 1, a count, a file of their own, or null for none.",
        ),
        ("train: a\n  validation: {pth: b}", "run.yaml:4: data.validation.path: is missing: JSON, JSONL, CSV"),
        (
            "train: a\n  validation: 1.5",
            "run.yaml:4: data.validation: a share must lie between 0 and 1, a count must be a whole number, not 1.5",
        ),
    ],
)
def test_one_mistake_in_data(path: Path, data: str, expected: str) -> None:
    block = "\n  " + data if "\n" in data else f" {{{data}}}"
    assert expected in message(path, f"model: tiny\ndata:{block}")


def test_all_mistakes_at_once_in_the_order_of_lines_with_overrides_last(path: Path) -> None:
    content = "data: rows.json\ntrain:\n  seed: -1\nlora:\n  rank: x\n"
    assert message(path, content, ["train.epochs=0", "model.dtype=fp16", "model.name=tiny", "~lora"]) == (
        "3 mistakes in run.yaml:\n"
        "  run.yaml:3: train.seed: must be at least 0, not -1\n"
        "  override: model.dtype: 'fp16' is not one of auto, bfloat16, float32\n"
        "  override: train.epochs: must be greater than 0, not 0"
    )


def test_each_misspelt_key_is_a_mistake_of_its_own(path: Path) -> None:
    lines = message(path, START + "train:\n  batch-size: 8\n  max-steps: 3\nLora: {rank: 2}\n").splitlines()
    assert lines == [
        "3 mistakes in run.yaml:",
        "  run.yaml:4: train.batch-size: unknown key; did you mean batch_size?",
        "  run.yaml:5: train.max-steps: unknown key; did you mean max_steps?",
        "  run.yaml:6: Lora: unknown key; did you mean lora?",
    ]


def test_a_text_is_shown_by_its_beginning(path: Path) -> None:
    assert f"not '{60 * 'x'}…'" in message(path, f"{START}train: {{epochs: {300 * 'x'}}}")


def test_missing_keys(path: Path) -> None:
    assert message(path, "lora: {rank: 4}") == (
        "2 mistakes in run.yaml:\n"
        "  run.yaml: model: is missing: The model to start from.\n"
        "  run.yaml: data: is missing: What to learn from."
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "run.yaml is empty; the smallest config has the keys model and data"),
        ("# only a comment\n", "run.yaml is empty; the smallest config has the keys model and data"),
        (
            "- a\n",
            "run.yaml:1: the file holds a list, not a mapping; write lines such as `model: NAME` and `data: FILE`",
        ),
        ("1: a\n", "run.yaml: the key 1 is not a word; put it in quotes if it is meant"),
        ("model: a\nmodel: b\n", "run.yaml:2:1: the key model stands twice; keep one of them"),
        ("train: {seed: 1, seed: 2}\n", "run.yaml:1:18: the key seed stands twice; keep one of them"),
        ("train:\n\tseed: 1\n", "run.yaml:2:1: a tab stands where spaces belong; indent with spaces"),
        (
            "model: a: b\n",
            "run.yaml:1:9: a second colon, or wrong indentation; put text with a colon in quotes",
        ),
        ("model: [a\ndata: b\n", "run.yaml:2:5: expected ',' or ']', but got ':'"),
        (
            "model: !!python/name:os.system x\n",
            "run.yaml:1:8: tags such as !name are not allowed here; put text that opens with ! in quotes",
        ),
        (
            "train: &a {seed: *a}\n",
            "run.yaml: values are nested too deeply, or an alias (*name) stands within its own anchor (&name)",
        ),
        ("model: !!int x\n", "run.yaml: a value cannot be read: invalid literal for int() with base 10: 'x'"),
        ("data: 娘娘\nx: y\n".encode("gb18030"), "run.yaml:1: the text is not UTF-8; save the file as UTF-8"),
    ],
)
def test_files_that_are_no_config(path: Path, content: str | bytes, expected: str) -> None:
    assert message(path, content) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "override 'train.epochs': no '=' in it; write key=value to set a key, ~key to remove one"),
        ("=3", "override '=3': '' is no key; write it like train.learning_rate"),
        ("train..epochs=3", "override 'train..epochs=3': 'train..epochs' is no key; write it like train.learning_rate"),
        ("~train.epochs", "override '~train.epochs': the config has no key train.epochs to remove"),
        ("data.train.7.path=x", "override data.train.7.path: data.train has no entry 7"),
        ("lora.target.x=q", "override lora.target.x: lora.target has no entry x"),
        ("train.batch-size=8", "override: train.batch-size: unknown key; did you mean batch_size?"),
        (
            "lora=&a [*a]",
            "override 'lora=&a [*a]': the value is not YAML: values are nested too deeply, or an alias (*name) stands "
            "within its own anchor (&name); put it in quotes?",
        ),
        (
            "lora.target=[a",
            "override 'lora.target=[a': the value is not YAML: expected ',' or ']', but got '<stream end>'; "
            "put it in quotes?",
        ),
    ],
)
def test_bad_overrides(path: Path, override: str, expected: str) -> None:
    told = message(path, "model: tiny\ndata: [rows.json]\nlora: {target: [q]}\n", [override])
    assert told.removeprefix("1 mistake in run.yaml:\n  ") == expected


def test_an_override_of_one_source_among_several_names_it(path: Path) -> None:
    for key in ("data.columns.prompt", "data.train.columns.prompt"):
        assert message(path, "model: tiny\ndata: [a.json, b.json]\n", [f"{key}=q"]) == (
            f"override {key}: data.train has 2 entries; say which one: data.train.0.columns.prompt"
        )


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "nope.yaml")
    assert str(caught.value) == (
        f"no config file {tmp_path / 'nope.yaml'}; "
        "`tunewright ls recipes` lists ready ones, `tunewright cp RECIPE FILE` copies one"
    )


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder, not a config file; `tunewright resume"):
        load_config(tmp_path)
