"""ls, cp, show, runs and doctor: what they print, in words and as JSON."""

import json
import sys
from pathlib import Path
from typing import get_args

import pytest

from tests.runs.test_folder import make_run
from tunewright.cli.doctor import packages_found
from tunewright.cli.ls import FORMATS
from tunewright.cli.output import cells, print_table
from tunewright.config.load import load_config
from tunewright.config.schema import SourceConfig
from tunewright.recipes import FOLDER, recipe_names
from tunewright.runs import provenance
from tunewright.units import duration

PERSONA = "smollm2-135m-instruct/lora-persona"


# ls


def test_ls_names_everything(tunewright) -> None:
    done = tunewright("ls")
    assert done.code == 0
    for name in [*recipe_names(), "smollm2-135m-instruct", "baichuan2", *FORMATS]:
        assert name in done.out


def test_ls_templates_shows_each_with_an_example(tunewright) -> None:
    listing = {item["template"]: item for item in json.loads(tunewright("ls", "templates", "--json").out)}
    assert listing["llama2"]["example"] == "<s>[INST] <<SYS>>⏎Be brief.⏎<</SYS>>⏎⏎Hi! [/INST] Hello. </s>"
    assert listing["llama2"]["stop"] == "end of text"
    assert listing["llama3"]["stop"] == "<|eot_id|>"
    assert "baichuan2" in tunewright("ls", "templates").out


def test_ls_json(tunewright) -> None:
    listing = json.loads(tunewright("ls", "--json").out)
    assert [entry["recipe"] for entry in listing["recipes"]] == recipe_names()
    assert json.loads(tunewright("ls", "models", "--json").out) == listing["models"]
    assert set(listing) == {"recipes", "models", "templates", "formats"}


def test_ls_formats_are_those_of_the_config() -> None:
    assert {"auto", *FORMATS} == set(get_args(SourceConfig.model_fields["format"].annotation))


# cp


def test_cp_copies_a_recipe_that_runs_itself(tunewright, tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    done = tunewright("cp", PERSONA, str(target))
    assert done.code == 0
    assert f"tunewright check {target}" in done.out
    command, *rest = target.read_text(encoding="utf-8").splitlines()
    assert command == f"# tunewright train {target}"
    assert rest == (FOLDER / f"{PERSONA}.yaml").read_text(encoding="utf-8").splitlines()[1:]
    assert load_config(target) == load_config(Path(PERSONA))


def test_cp_into_a_folder_keeps_the_name(tunewright, tmp_path: Path) -> None:
    assert tunewright("cp", PERSONA, str(tmp_path)).code == 0
    assert (tmp_path / "lora-persona.yaml").is_file()


def test_cp_never_overwrites(tunewright, tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    assert tunewright("cp", PERSONA, str(target)) == (
        2,
        "",
        f"error: {target} exists already, and a copy would overwrite it; name another file\n",
    )
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lora-excel", "did you mean smollm2-135m-instruct/lora-excel?"),
        ("smollm2-135m-instruct/lora-excell", "did you mean smollm2-135m-instruct/lora-excel?"),
        ("zzz", "`tunewright ls recipes` lists them"),
    ],
)
def test_cp_of_no_recipe(tunewright, tmp_path: Path, name: str, hint: str) -> None:
    assert tunewright("cp", name, str(tmp_path)) == (2, "", f"error: there is no recipe {name!r}; {hint}\n")


def test_cp_to_where_nothing_can_be_written(tunewright, tmp_path: Path) -> None:
    target = tmp_path / "missing" / "mine.yaml"
    assert tunewright("cp", PERSONA, str(target)).err == f"error: cannot write {target}: No such file or directory\n"


# show


def test_show_prints_a_config_that_trains_the_same(tunewright, tmp_path: Path) -> None:
    done = tunewright("show", PERSONA, "train.epochs=1")
    (tmp_path / "shown.yaml").write_text(done.out, encoding="utf-8")
    assert load_config(tmp_path / "shown.yaml") == load_config(Path(PERSONA), ["train.epochs=1"])
    assert "#   train.epochs = 1.0  (override)" in done.out
    assert json.loads(tunewright("show", PERSONA, "--json").out)["model"]["name"] == "smollm2-135m-instruct"


def test_show_a_run(tunewright, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.append_metrics({"step": 10, "loss": 1.5, "validation_loss": 1.75, "samples_per_second": 3.0})
    run.write_status("done", 10, 10)
    run.report_json.write_text('{"base": {"validation_loss": 3.0}, "tuned": {"validation_loss": 1.75, "x": null}}')
    (run.checkpoints_path / "step-10").mkdir(parents=True)
    run.adapter_path.mkdir()
    lines = [" ".join(line.split()) for line in tunewright("show", str(run.path)).out.splitlines()]
    assert lines[0] == f"{run.path}: done, step 10 of 10"
    for line in ("model tiny", "method sft lora", "train loss 1.500", "checkpoints step-10", "samples/s 3.00"):
        assert line in lines
    assert f"result {run.adapter_path}" in lines
    assert lines[-2:] == ["report base tuned", "validation_loss 3.000 1.750"]
    shown = json.loads(tunewright("show", str(run.path), "--json").out)
    assert (shown["state"], shown["checkpoints"], shown["report"]["tuned"]["validation_loss"]) == (
        "done",
        ["step-10"],
        1.75,
    )


def test_show_of_a_run_takes_no_settings(tunewright, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    done = tunewright("show", str(run.path), "train.epochs=1")
    assert done.code == 2
    assert f"tunewright show {run.config_path} train.epochs=1" in done.err
    assert tunewright("show", str(run.config_path), "train.epochs=1").code == 0


def test_show_counts_no_pause_as_training_and_no_count_as_a_fraction(tunewright, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.append_metrics({"step": 1, "loss": 1.5, "seconds": 42.0})
    run.write_status("done", 1, 1)
    status = json.loads(run.status_json.read_text())
    run.status_json.write_text(json.dumps(status | {"started": status["started"] - 86400}))
    run.report_json.write_text('{"base": {"stops": 0}, "tuned": {"stops": 5, "stop_rate": 1.0}}')
    lines = [" ".join(line.split()) for line in tunewright("show", str(run.path)).out.splitlines()]
    assert f"training time {duration(42)}" in lines
    assert "stops 0 5" in lines
    assert "stop_rate 1.000" in lines


def test_show_what_is_neither(tunewright, tmp_path: Path) -> None:
    assert tunewright("show", str(tmp_path)).code == 2
    assert "no config file" in tunewright("show", str(tmp_path / "x.yaml")).err


# runs


def test_runs_table_and_json(tunewright, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.append_metrics({"step": 1, "loss": 1.5})
    run.write_status("failed", 1, 10, "loss is not finite at step 2")
    out = tunewright("runs", str(tmp_path)).out.splitlines()
    assert out[0].split()[:3] == ["run", "state", "step"]
    assert out[1].split()[:4] == [str(run.path), "failed", "1/10", "1.500"]
    assert out[2] == f"{run.path} failed: loss is not finite at step 2"
    [listed] = json.loads(tunewright("runs", str(tmp_path), "--json").out)
    assert (listed["state"], listed["train_loss"], listed["validation_loss"]) == ("failed", 1.5, None)


def test_runs_where_there_are_none(tunewright, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tunewright("runs") == (0, "no runs in runs\n", "")
    assert tunewright("runs", "--json").out == "[]\n"
    assert tunewright("runs", "nowhere") == (2, "", "error: there is no folder nowhere\n")


# doctor


def test_doctor_finds_this_machine_ready(tunewright) -> None:
    done = tunewright("doctor", "--json")
    report = json.loads(done.out)
    assert done.code == 0, report
    assert report["ok"] is True
    found = {finding["name"] for finding in report["findings"]}
    assert {"python", "packages", "cores", "dtype", "memory", "disk", "cache"} <= found


def test_doctor_says_which_package_is_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.0.0", "peft": None}
    monkeypatch.setattr(provenance, "installed_version", lambda name: versions.get(name, "999"))
    findings = {finding.name: finding for finding in packages_found() if finding.level == "fail"}
    assert set(findings) == set(versions)
    assert findings["torch"].text.startswith("2.0.0 is too old; pip install 'torch>=")
    assert findings["peft"].text.startswith("not installed; pip install 'peft>=")


def test_doctor_without_psutil_names_it(tunewright, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tunewright.cli.doctor", "tunewright.engine.memory"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "psutil", None)
    installed = provenance.installed_version
    monkeypatch.setattr(provenance, "installed_version", lambda name: None if name == "psutil" else installed(name))
    done = tunewright("doctor")
    assert done.code == 1
    assert done.out.splitlines()[-1] == "Not ready: psutil must be put right."


def test_doctor_names_a_cache_that_cannot_be_written(tunewright, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "file" / "cache"))
    done = tunewright("doctor")
    assert done.code == 1
    assert done.out.splitlines()[-1] == "Not ready: cache must be put right."


# output


def test_tables_line_up_with_chinese_and_leave_empty_columns_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "note", "n"], [["甄嬛", "", "1"], ["abc", "", "22"]])
    assert capsys.readouterr().out == "name  n\n甄嬛  1\nabc   22\n"
    assert cells("甄嬛。") == 6
