"""Reading a config: precedence, overrides, origins, paths, and that what is written reads back the same."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config.load import dump_config, json_schema, load_config, non_defaults, read_config
from tunewright.config.overrides import as_override, split_arguments
from tunewright.config.schema import RunConfig, SourceConfig
from tunewright.errors import UsageError

SMALL = "model: tiny\ndata: rows.json\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALL)
    return path


def test_smallest_config(config_file: Path) -> None:
    config = load_config(config_file)
    assert config.model.name == "tiny"
    assert [source.path for source in config.data.train] == ["rows.json"]
    assert config.train.batch_size == 16


def test_design_example(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        """
model: smollm2-135m-instruct
data:
  train: huanhuan.json
  validation: 0.02
  system: 现在你要扮演皇帝身边的女人--甄嬛
  template: auto
  max_length: 1024
method: {stage: sft, tuning: lora}
lora: {rank: 8, alpha: 16, target: all-linear}
train: {batch_size: 16, epochs: 3, max_steps: null, learning_rate: 2.0e-4, seed: 42, save_steps: 100}
output: runs/huanhuan
""",
        encoding="utf-8",
    )
    config = load_config(path)
    assert config.data.system == "现在你要扮演皇帝身边的女人--甄嬛"
    assert (config.train.learning_rate, config.output) == (2e-4, "runs/huanhuan")


def test_yaml_1_2_scalars(config_file: Path) -> None:
    config_file.write_text(SMALL + "train: {learning_rate: 1e-4}\noutput: no\n")
    config = load_config(config_file)
    assert config.train.learning_rate == 1e-4
    assert config.output == "no"
    for date in ("2024-01-01", "2026-02-30", "2024-01-01 10:00:00"):
        config_file.write_text(f"{SMALL}output: {date}\n")
        assert load_config(config_file).output == date


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(config_file: Path) -> None:
    config_file.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_config(config_file).model.name == "tiny"


def test_precedence_base_file_override(config_file: Path) -> None:
    config_file.write_text(SMALL + "train: {epochs: 2, seed: 2}\n")
    base = {"train": {"epochs": 1, "seed": 1, "batch_size": 1}}
    train = load_config(config_file, ["train.epochs=9"], base).train
    assert (train.epochs, train.seed, train.batch_size, train.save_steps) == (9, 2, 1, 100)
    assert base == {"train": {"epochs": 1, "seed": 1, "batch_size": 1}}, "the caller's dict must stay as it was"


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
        ("lora.target=[q_proj, v_proj]", ("lora", "target"), ["q_proj", "v_proj"]),
        ("lora={rank: 4}", ("lora", "rank"), 4),
        ("output=", ("output",), None),
        ("data.system='a=b: c'", ("data", "system"), "a=b: c"),
        ("model.dtype=float32", ("model", "dtype"), "float32"),
        ("model.dtype=float32", ("model", "name"), "tiny"),
        ("samples.prompts=[你是谁？]", ("samples", "prompts"), ["你是谁？"]),
    ],
)
def test_overrides(config_file: Path, override: str, key: tuple[str, ...], expected: object) -> None:
    value = load_config(config_file, [override]).model_dump()
    for part in key:
        value = value[part]
    assert value == expected


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ("rows.xlsx", "data.columns.prompt"),
        ("rows.xlsx", "data.train.columns.prompt"),
        ("{path: rows.xlsx}", "data.columns.prompt"),
        ("{train: rows.xlsx}", "data.train.columns.prompt"),
        ("{train: rows.xlsx}", "data.columns.prompt"),
        ("[rows.xlsx]", "data.columns.prompt"),
        ("[rows.xlsx]", "data.0.columns.prompt"),
        ("{train: [rows.xlsx]}", "data.train.columns.prompt"),
        ("{train: [rows.xlsx]}", "data.train.0.columns.prompt"),
    ],
)
def test_columns_can_be_set_beneath_every_short_form(config_file: Path, data: str, key: str) -> None:
    config_file.write_text(f"model: tiny\ndata: {data}\n")
    expected = SourceConfig.model_validate({"path": "rows.xlsx", "columns": {"prompt": "q"}})
    assert load_config(config_file, [f"{key}=q"]).data.train == [expected]


def test_a_data_file_replaces_that_of_every_form(config_file: Path) -> None:
    for data in ("a.csv", "[a.csv, b.csv]", "{path: a.csv, columns: {prompt: q}}", "{train: {path: a.csv}, system: S}"):
        config_file.write_text(f"model: tiny\ndata: {data}\n")
        assert load_config(config_file, ['data.train=["c.csv"]']).data.train == [SourceConfig(path="c.csv")]


def test_tilde_removes_a_key(config_file: Path) -> None:
    config_file.write_text(SMALL + "train: {epochs: 7}\n")
    assert load_config(config_file, ["~train.epochs"]).train.epochs == 3
    assert load_config(config_file, ["~train"]).train.epochs == 3
    config_file.write_text("model: tiny\ndata: {path: rows.xlsx, columns: {prompt: q}}\n")
    assert load_config(config_file, ["~data.columns"]).data.train == [SourceConfig(path="rows.xlsx")]


def test_provenance_of_a_run_is_ignored(config_file: Path) -> None:
    config_file.write_text(SMALL + "provenance: {anything: [1, 2]}\n")
    assert load_config(config_file).model.name == "tiny"


def test_no_file_at_all() -> None:
    config = load_config(None, ["train.epochs=1"], {"model": "tiny", "data": "rows.json"})
    assert (config.model.name, config.train.epochs) == ("tiny", 1)


def test_origins(config_file: Path) -> None:
    config_file.write_text(SMALL + "train:\n  epochs: 2\n  seed: 42\n")
    read = read_config(config_file, ["lora.rank=4", "model.revision=main"], {"output": "runs/x"})
    assert [str(setting) for setting in non_defaults(read)] == [
        f"model.name = tiny  ({config_file}:1)",
        "model.revision = main  (override)",
        f"data.train.0.path = rows.json  ({config_file}:2)",
        "lora.rank = 4  (override)",
        f"train.epochs = 2.0  ({config_file}:4)",
        "output = runs/x  (settings)",
    ]


TWO_SOURCES = """model: tiny
data:
  train: [a.json, {path: b.xlsx, columns: {prompt: q}}]
  validation: c.json
"""


def test_only_changes_of_several_sources_are_listed(config_file: Path) -> None:
    config_file.write_text(TWO_SOURCES)
    settings = non_defaults(read_config(config_file, ["data.train.1.sheet=S"]))
    assert [str(setting) for setting in settings] == [
        f"model.name = tiny  ({config_file}:1)",
        f"data.train.0.path = a.json  ({config_file}:3)",
        f"data.train.1.path = b.xlsx  ({config_file}:3)",
        f"data.train.1.columns.prompt = q  ({config_file}:3)",
        "data.train.1.sheet = S  (override)",
        f"data.validation.path = c.json  ({config_file}:4)",
    ]


def test_a_line_is_that_of_the_value_and_not_of_a_key_of_the_same_name(config_file: Path) -> None:
    config_file.write_text("model: tiny\ntrain: {epochs: 1}\ndata: [a.json]\n")
    path = non_defaults(read_config(config_file))[1]
    assert (path.key, path.origin) == ("data.train.0.path", f"{config_file}:3")


@pytest.mark.parametrize("pattern", ["**/*.jsonl", "*.py", "persona/*.jsonl", "columns.py"])
def test_only_named_sets_of_the_package_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, base={"model": "m", "data": pattern}).data.train[0].path == pattern


def test_names_that_look_like_a_home_folder_or_are_too_long_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~$book.xlsx", 300 * "x", "a\0b"):
        assert load_config(None, base={"model": "m", "data": name}).data.train[0].path == name
    assert load_config(None, base={"model": "m", "data": {"train": "d", "template": 300 * "x"}})


def test_paths_here_beside_the_file_or_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "both.json").touch()
    (there / "both.json").touch()
    (there / "beside.json").touch()
    (there / "run.yaml").write_text("model: tiny\ndata: [both.json, beside.json, persona, nowhere.json]\n")
    monkeypatch.chdir(here)
    both, beside, shipped, nowhere = (source.path for source in load_config(Path("../there/run.yaml")).data.train)
    assert (both, Path(beside), nowhere) == ("both.json", Path("../there/beside.json"), "nowhere.json")
    assert Path(shipped).is_dir()
    assert Path(shipped).is_absolute()


def test_a_model_folder_beside_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub" / "mine").mkdir(parents=True)
    (tmp_path / "sub" / "mine" / "config.json").touch()
    (tmp_path / "sub" / "run.yaml").write_text("model: mine\ndata: x.json\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("sub/run.yaml")).model.name == str(Path("sub/mine"))


def test_arguments_are_split_into_file_and_overrides() -> None:
    assert split_arguments(["run.yaml", "a=1", "~b"]) == (Path("run.yaml"), ["a=1", "~b"])
    assert split_arguments(["a=1", "~b"]) == (None, ["a=1", "~b"])
    assert split_arguments(["~/run.yaml"]) == (Path("~/run.yaml"), [])
    for path in ("runs/lr=1e-4/config.yaml", "./a=b.yaml", "~user/run.yaml"):
        assert split_arguments([path, "a=1"]) == (Path(path), ["a=1"])
    for override in ("data.system=a/b\n=c", "=3", "train..epochs=3"):
        assert split_arguments([override]) == (None, [override])
    assert split_arguments([]) == (None, [])


@given(st.text())
def test_any_text_survives_as_an_override(text: str) -> None:
    assert load_config(None, [as_override("data.system", text)], {"model": "m", "data": "d"}).data.system == text


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    system=st.none() | texts,
    rate=st.none() | st.floats(min_value=1e-12, max_value=10),
    target=texts | st.lists(texts),
    validation=st.none()
    | st.floats(0, 0.99)
    | st.integers(0, 1000)
    | st.sampled_from(["v.json", "no", "1"]).map(lambda path: {"path": path}),
    output=st.none() | st.sampled_from(["no", "1e-4", "null", "~", "true", "2024-01-01", "a: b", "# x", "[x", "'", ""]),
)
def test_a_dumped_config_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    system: str | None,
    rate: float | None,
    target: str | list[str],
    validation: object,
    output: str | None,
) -> None:
    config = RunConfig.model_validate(
        {
            "model": "m",
            "data": {"train": ["a.json", {"path": "b.xlsx", "sheet": "1"}], "system": system, "validation": validation},
            "lora": {"target": target},
            "train": {"learning_rate": rate},
            "output": output,
        }
    )
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8", newline="")
    assert load_config(path) == config


def test_json_schema_describes_every_key() -> None:
    sections = json_schema()["$defs"].values()
    fields = [field for section in sections for field in section["properties"].values()]
    assert len(fields) > 40
    assert all("description" in field for field in fields)


def test_a_recipe_can_be_named_instead_of_a_file() -> None:
    assert load_config(Path("smollm2-135m-instruct/lora-persona")).model.name == "smollm2-135m-instruct"


def test_errors_are_usage_errors_with_exit_code_2(config_file: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(config_file, ["train.epochs=none"])
    assert caught.value.exit_code == 2
