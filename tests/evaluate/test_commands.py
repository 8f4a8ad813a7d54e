"""`tunewright eval` and `tunewright compare` on made-up runs, as a user calls them."""

import json
import shutil
from pathlib import Path

import pytest

from tests.evaluate.made_up import make_run, metric
from tunewright.cli.app import main
from tunewright.evaluate.comparison import distinct_names, flatten


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `one` and `two`; `two` has another rank and has a checkpoint too."""
    root = tmp_path_factory.mktemp("commands")
    metrics = [metric(step, 3 - step / 100) for step in range(1, 61)]
    make_run(root, "one", metrics)
    make_run(root, "two", metrics[:30], lora={"rank": 2}, train={"forest_tokens": 100})
    return root


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leave:
        main(list(words))
    out, err = capsys.readouterr()
    assert isinstance(leave.value.code, int)
    return leave.value.code, out, err


def test_eval_prints_the_table_and_renews_the_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "one"
    code, out, _ = call(capsys, "eval", str(run))
    assert code == 0
    report = json.loads((run / "report.json").read_text("utf-8"))
    base, tuned = report["base"]["validation_loss"], report["tuned"]["validation_loss"]
    assert base != tuned
    line = next(line for line in out.splitlines() if line.startswith("validation loss"))
    assert line.split()[2:] == [f"{base:.3f}", f"{tuned:.3f}", f"{tuned - base:+.3f}"]
    assert f"\n{report['summary']}\n" in out
    assert (run / "report.md").is_file()


def test_eval_on_other_data_leaves_the_report_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = runs / "other.json"
    other.write_text(json.dumps([{"instruction": "Who?", "output": "The keeper."}] * 3), encoding="utf-8")
    (runs / "two" / "report.json").unlink(missing_ok=True)
    code, out, _ = call(capsys, "eval", str(runs / "two"), "--data", str(other), "--json", "evaluate.max_new_tokens=5")
    assert code == 0
    printed = json.loads(out)
    assert printed["data"]["sources"] == ["other.json"]
    assert (printed["tuned"]["prompts"], printed["tuned"]["max_new_tokens"]) == (1, 5)
    assert not (runs / "two" / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.validation=0.6"], "data.validation: "),
        (["train.seed=7"], "train.seed: "),
        (["data.template=chatml"], "data.template: "),
        (["data.system=Be brief."], "data.system: "),
        (["~data.system"], "data.system: "),
        (["--data", "other.json", "data.template=chatml"], "data.template: "),
        (["--data", "other.json", "data.validation=2"], "data.validation: "),
        (["--data", "other.json", "data.train.weight=2"], "data.train.weight: "),
        (["evaluate.at_end=false"], "evaluate.at_end: "),
    ],
)
def test_eval_of_a_run_lets_only_the_measuring_be_set(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(runs)
    Path("other.json").write_text(json.dumps([{"instruction": "Who?", "output": "The keeper."}] * 3), encoding="utf-8")
    report = runs / "two" / "report.json"
    report.write_bytes(b"as it was")
    code, _, err = call(capsys, "eval", "two", *words)
    assert (code, report.read_bytes()) == (2, b"as it was")
    assert err.startswith(f"error: {message}two is measured as it was trained, and only evaluate.prompts, ")
    report.unlink()


def test_eval_measures_all_rows_of_other_data_read_as_named(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    Path("few.json").write_text((runs / "data.json").read_text("utf-8"), encoding="utf-8")
    make_run(runs, "few", data={"train": {"path": str(runs / "few.json"), "max_samples": 12}})
    Path("other.json").write_text(json.dumps([{"ask": f"Who, {n}?", "say": f"I {n}."} for n in range(20)]))
    named = ("data.train.columns.prompt=ask", "data.train.columns.response=say")
    quick = ("evaluate.prompts=1", "evaluate.max_new_tokens=1")
    code, out, err = call(capsys, "eval", "few", "--data", "other.json", "--json", *named, *quick)
    assert code == 0, err
    assert json.loads(out)["data"]["examples"] == 20


def test_eval_of_a_plain_model_is_the_base_of_the_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(runs / "data.json"), "--json", "model.dtype=float32", "data.system=Be brief."]
    _, out, _ = call(capsys, "eval", str(runs / "model"), *words, "evaluate.max_new_tokens=4")
    plain = json.loads(out)
    _, out, _ = call(capsys, "eval", str(runs / "one"), *words, "evaluate.max_new_tokens=4", "evaluate.prompts=32")
    assert set(plain) == {"base", "summary", "warnings"}
    base = json.loads(out)["base"]
    assert plain["base"].pop("reply_tokens") == base.pop("reply_tokens")
    assert plain["base"] == pytest.approx(base)


@pytest.mark.parametrize(
    "setting",
    [
        *("lora.rank=4", "train.seed=7", "train.epochs=1", "chat.temperature=0", "evaluate.at_end=false"),
        *("output=elsewhere", "samples.prompts=[Who?]", "data.validation=3", "data.train.weight=2"),
        *("data.train.num_samples=5", "data.train.path=other.json", "method.tuning=full"),
    ],
)
def test_eval_of_a_plain_model_refuses_what_would_change_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    key = setting.partition("=")[0]
    code, _, err = call(capsys, "eval", str(runs / "model"), "--data", str(runs / "data.json"), setting)
    data, model = runs / "data.json", runs / "model"
    assert code == 2
    assert err.startswith(f"error: {key}: {model} is measured on {data} and not trained, and only evaluate.prompts, ")


def test_eval_of_a_plain_model_takes_what_bears_on_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(runs / "data.json"), "--json", "evaluate.max_new_tokens=1", "train.forest_tokens=64"]
    own = ["data.train.max_samples=9", "data.train.columns.prompt=instruction", "model.source=local"]
    code, out, err = call(capsys, "eval", str(runs / "model"), *words, *own, "evaluate.prompts=20")
    assert code == 0, err
    assert json.loads(out)["base"]["prompts"] == 9


def test_eval_refuses_what_it_cannot_measure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "eval", str(runs / "model"))
    assert (code, "name the data: --data FILE" in err) == (2, True)
    code, _, err = call(capsys, "eval", str(runs / "one"), "--data", str(runs / "absent.json"))
    assert (code, "there is no file" in err) == (2, True)
    code, _, err = call(capsys, "eval", str(runs / "one"), "--checkpoint", "7")
    assert (code, "step-7 does not exist" in err) == (2, True)
    moved = runs / "changed"
    shutil.copytree(runs / "one", moved)
    text = (moved / "config.yaml").read_text("utf-8")
    sha = json.loads((moved / "report.json").read_text("utf-8"))["run"]["data_sha256"]
    (moved / "config.yaml").write_text(text.replace(sha, "0" * 64), encoding="utf-8")
    code, _, err = call(capsys, "eval", str(moved))
    shutil.rmtree(moved)
    assert (code, "have changed since it was trained" in err) == (2, True)


def test_compare_shows_only_what_differs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = runs / "curves.png"
    code, out, _ = call(capsys, "compare", str(runs / "one"), str(runs / "two"), "--plot", str(picture))
    assert code == 0
    rows = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines() if line}
    assert rows["lora.rank"] == ["8", "2"]
    assert rows["steps"] == ["60", "30"]
    assert rows["samples/s"] == ["8.00", "8.00"]
    assert not [name for name in rows if name.startswith(("train.", "data.", "model.", "output"))]
    assert picture.read_bytes().startswith(b"\x89PNG")

    _, out, _ = call(capsys, "compare", str(runs / "two"), str(runs / "one"), "--json")
    two, one = json.loads(out)
    assert (two["settings"], one["settings"]) == ({"lora.rank": 2}, {"lora.rank": 8})
    assert one["training_loss"] == pytest.approx(sum(3 - step / 100 for step in range(51, 61)) / 10)


def test_compare_refuses(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "compare", str(runs / "one"))[0] == 2
    assert call(capsys, "compare", str(runs / "one"), str(runs / "one"))[0] == 2
    code, _, err = call(capsys, "compare", str(runs / "one"), str(runs / "model"))
    assert (code, "is not a run" in err) == (2, True)


def test_flatten() -> None:
    one = {"train": {"seed": 1}, "data": {"train": [{"path": "a"}]}, "list": [1, 2]}
    assert flatten(one) == {"train.seed": 1, "data.train.path": "a", "list": [1, 2]}
    assert flatten({"train": [{"path": "a"}, {"path": "b"}]}) == {"train.0.path": "a", "train.1.path": "b"}


def test_distinct_names() -> None:
    assert distinct_names([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert distinct_names([Path("/a/run"), Path("/b/run")]) == ["a/run", "b/run"]
