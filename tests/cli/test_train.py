"""`train` and `resume` from the command line to the finished run folder, on tiny saved models."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openpyxl
import orjson
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Command
from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.cli.app import main
from tunewright.config.load import load_config
from tunewright.runs.checkpoints import fault
from tunewright.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread", "no_probe")

STEPS = 6
SMALL = (
    "data.validation=4",
    "data.max_length=200",
    "train.batch_size=4",
    "train.learning_rate=0.01",
    f"train.max_steps={STEPS}",
    "train.save_steps=2",
    "samples.max_new_tokens=4",
    "evaluate.prompts=2",
    "evaluate.max_new_tokens=4",
)
TIMES = {"seconds", "step_seconds", "samples_per_second", "tokens_per_second", "memory_bytes", "peak_memory_bytes"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_tokenizer("chatml"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than a run of these tests reads, so that it ends in the middle of an epoch."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [{"instruction": f"What is the name of boat {n}?", "output": f"It's the Heron {n}."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "documents.jsonl"
    rows = [{"text": f"The keeper writes ship {n} into her book before the fog comes down."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def words(model: Path, data: Path, output: Path, *settings: str) -> list[str]:
    return ["train", "--model", str(model), "--data", str(data), "--output", str(output), *SMALL, *settings]


def metrics(run: Path) -> list[dict[str, Any]]:
    return RunFolder(run).metrics()


def without_times(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in metrics(run)]


def status(run: Path) -> dict[str, Any]:
    return orjson.loads((run / "status.json").read_bytes())


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


# A whole run


@pytest.mark.parametrize(
    ("stage", "tuning", "dtype"),
    [
        ("sft", "lora", "float32"),
        ("sft", "full", "bfloat16"),
        ("pt", "lora", "bfloat16"),
        ("pt", "full", "float32"),
    ],
)
def test_a_run_leaves_everything_the_design_lists(
    tunewright: Command,
    model: Path,
    questions: Path,
    documents: Path,
    tmp_path: Path,
    stage: str,
    tuning: str,
    dtype: str,
) -> None:
    run = tmp_path / "run"
    settings = (f"method.stage={stage}", f"method.tuning={tuning}", f"model.dtype={dtype}", "train.keep_checkpoints=2")
    done = tunewright(*words(model, questions if stage == "sft" else documents, run, *settings))
    assert done.code == 0, done.err
    assert f"tunewright chat {run}" in done.out

    check_config(run, stage, tuning, dtype)
    check_metrics(run)
    check_plan(run)
    assert (run / "template.jinja").read_text(encoding="utf-8") == tiny_tokenizer("chatml").chat_template
    assert orjson.loads((run / "stop.json").read_bytes())["stop_ids"] == [tiny_tokenizer("chatml").eos_token_id]
    assert [folder.name for folder in RunFolder(run).checkpoints()] == ["step-6", "step-4"]
    assert all(fault(folder) is None for folder in RunFolder(run).checkpoints())
    state = status(run)
    assert (state["state"], state["step"], state["total_steps"], state["reason"]) == ("done", STEPS, STEPS, None)
    assert state["ended"] >= state["started"]

    report = orjson.loads((run / "report.json").read_bytes())
    for side in ("base", "tuned"):
        assert {"validation_loss", "perplexity"} <= set(report[side])
        assert ("stop_rate" in report[side]) == ("loop_rate" in report[side]) == (stage == "sft")
    assert report["tuned"]["validation_loss"] < report["base"]["validation_loss"]
    assert report["base"]["validation_loss"] == pytest.approx(metrics(run)[0]["validation_loss"], rel=0.01)
    assert report["tuned"]["validation_loss"] == pytest.approx(metrics(run)[-1]["validation_loss"], rel=0.01)
    assert (run / "report.md").read_text(encoding="utf-8").startswith("# ")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")

    if stage == "sft":
        samples = RunFolder(run).samples()
        assert {sample["step"] for sample in samples} == {0, 2, 4, 6}
        assert {frozenset(sample) for sample in samples} == {frozenset({"step", "question", "answer", "finish"})}
        assert len(samples) == 4 * len({sample["question"] for sample in samples})
    log = (run / "log.txt").read_text(encoding="utf-8")
    assert "validation loss" in log
    assert log.rstrip().endswith("done")

    weights = check_weights(run, model, tuning)
    repeated = tmp_path / "again"
    assert tunewright("train", str(run / "config.yaml"), f"output={repeated}").code == 0
    assert without_times(repeated) == without_times(run)
    again = check_weights(repeated, model, tuning)
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def check_config(run: Path, stage: str, tuning: str, dtype: str) -> None:
    config = load_config(run / "config.yaml")
    assert (config.method.stage, config.method.tuning, config.model.dtype) == (stage, tuning, dtype)
    assert config.train.forest_tokens is not None
    provenance = RunFolder(run).provenance
    assert provenance["command"].startswith("tunewright ")
    assert provenance["versions"]["torch"] == torch.__version__
    assert len(provenance["data_sha256"]) == 64


def check_metrics(run: Path) -> None:
    before, *steps = metrics(run)
    assert before["step"] == 0
    assert "loss" not in before
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    for record in steps:
        assert {"loss", "learning_rate", "grad_norm", "samples", "tokens", "supervised_tokens", *TIMES} <= set(record)
        assert record["samples"] == 4
        assert 0 < record["distinct_tokens"] <= record["tokens"]
        assert ("validation_loss" in record) == (record["step"] % 2 == 0)
    assert steps[-1]["loss"] < steps[0]["loss"]
    for tag, key in (("train/loss", "loss"), ("validation/loss", "validation_loss")):
        expected = [(record["step"], pytest.approx(record[key])) for record in (before, *steps) if key in record]
        assert scalars(run, tag) == expected


def check_plan(run: Path) -> None:
    written = orjson.loads((run / "plan.json").read_bytes())
    assert written["steps"] == STEPS
    assert written["peak_bytes"] > written["weights_bytes"] + written["training_state_bytes"] > 0
    assert written["measured"]["peak_memory_bytes"] > 0
    assert written["measured"]["step_seconds"] == metrics(run)[1]["step_seconds"]


def check_weights(run: Path, model: Path, tuning: str) -> dict[str, torch.Tensor]:
    """Loads in plain PEFT or transformers, differs from the base model, and equals the last checkpoint."""
    import peft
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[7, 8, 9, 10]])
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plain = base(ids).logits
    if tuning == "lora":
        assert not (run / "model").exists()
        name = "adapter/adapter_model.safetensors"
        tuned = peft.PeftModel.from_pretrained(base, str(run / "adapter"))
    else:
        assert not (run / "adapter").exists()
        name = "model/model.safetensors"
        tuned, info = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32, output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"]
    assert not torch.allclose(tuned(ids).logits, plain, atol=1e-3)
    saved = load_file(run / name)
    checkpoint = load_file(RunFolder(run).checkpoint_path(STEPS) / name)
    assert saved.keys() == checkpoint.keys()
    assert all(torch.equal(saved[key], tensor) for key, tensor in checkpoint.items())
    return saved


def test_an_excel_sheet_without_a_config(
    tunewright: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = openpyxl.Workbook()
    book.active.append(["问题", "回答"])
    for n in range(30):
        book.active.append([f"灯塔{n}在哪里？", f"灯塔{n}在海边。"])
    book.save(tmp_path / "coach.xlsx")
    monkeypatch.chdir(tmp_path)
    done = tunewright("train", "--model", str(model), "--data", "coach.xlsx", *SMALL)
    assert done.code == 0, done.err
    assert "coach.xlsx: 30 rows" in done.out
    assert "(guessed)" in done.out
    run = tmp_path / "runs" / "coach"
    assert status(run)["state"] == "done"
    # What repeats it needs neither the guesses nor this folder.
    monkeypatch.chdir("/")
    assert tunewright("train", str(run / "config.yaml"), f"output={tmp_path / 'again'}").code == 0
    assert without_times(tmp_path / "again") == without_times(run)


def test_without_a_report_the_curve_is_still_drawn(
    tunewright: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    done = tunewright(*words(model, questions, tmp_path / "run", "evaluate.at_end=false", "train.max_steps=2"))
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run" / "report.json").exists()
    assert status(tmp_path / "run")["state"] == "done"


def test_validation_rows_that_are_trained_on_are_told(
    model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunewright.cli.progress import Progress
    from tunewright.cli.train import show_ready
    from tunewright.engine.start import make_ready

    few = tmp_path / "few.jsonl"
    few.write_text("".join(questions.read_text(encoding="utf-8").splitlines(keepends=True)[:7]), encoding="utf-8")
    data = {"train": str(questions), "validation": {"path": "few.jsonl"}, "max_length": 200}
    config = load_config(None, [], {"model": str(model), "data": data, "output": str(tmp_path / "run")})
    with Progress() as progress:
        show_ready(make_ready(config, tmp_path), progress)
    (told,) = (line for line in capsys.readouterr().out.splitlines() if "trained on too" in line)
    assert told.startswith("  ! 7 validation rows are trained on too (few.jsonl:1, :2, :3, :4, :5, …), so validation")
    assert told.endswith("will look better than the model is: hold out a file of other rows")


def test_ranked_rows_are_told_to_teach_the_better_answer_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunewright.cli.progress import Progress
    from tunewright.cli.train import show_ready
    from tunewright.engine.start import make_ready

    rows = [{"prompt": f"Boat {n}?", "chosen": f"The Heron {n}.", "rejected": "No."} for n in range(12)]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = load_config(
        None, [], {"model": str(model), "data": {"train": "ranked.jsonl"}, "output": str(tmp_path / "run")}
    )
    with Progress() as progress:
        show_ready(make_ready(config, tmp_path), progress)
    told = capsys.readouterr().out
    assert "  12 rows rank a better and a worse answer: method.stage sft learns the better one alone; nothing" in told


# Interrupted and resumed

LONG = ("train.max_steps=60", "train.epochs=10", "train.save_steps=8", "lora.dropout=0.2", "train.evaluate_steps=1000")


@pytest.fixture(scope="module")
def whole(model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert exit_code(words(model, questions, run, *LONG)) == 0
    return run


def assert_same_end(run: Path, whole: Path) -> None:
    assert without_times(run) == without_times(whole)
    for name in ("adapter/adapter_model.safetensors", "optimizer.safetensors", "random.safetensors"):
        for folder in ("checkpoints/step-60", *(["."] if name.startswith("adapter") else [])):
            expected, actual = load_file(whole / folder / name), load_file(run / folder / name)
            assert expected.keys() == actual.keys()
            assert all(torch.equal(actual[key], value) for key, value in expected.items()), name
    assert [(s["step"], s["answer"]) for s in RunFolder(run).samples()] == [
        (s["step"], s["answer"]) for s in RunFolder(whole).samples()
    ]
    assert [step for step, _ in scalars(run, "train/loss")] == list(range(1, 61))
    assert status(run)["state"] == "done"


def send_when(path: Path, lines: int, send: Any) -> None:
    """Call `send` once metrics.jsonl has so many lines."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            send()
            return
        time.sleep(0.001)


def test_sigterm_then_resume_ends_with_the_same_bits(
    tunewright: Command, model: Path, questions: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    watch = threading.Thread(
        target=send_when, args=(run / "metrics.jsonl", 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
    )
    watch.start()
    stopped = tunewright(*words(model, questions, run, *LONG))
    watch.join()
    assert stopped.code == 130, stopped.err
    assert "stopped by SIGTERM after step" in stopped.err
    assert f"tunewright resume {run}" in stopped.err
    state = status(run)
    assert state["state"] == "interrupted"
    assert 11 <= state["step"] < 60
    assert f"step-{state['step']}" in {folder.name for folder in RunFolder(run).checkpoints()}
    assert not (run / "adapter").exists()

    resumed = tunewright("resume", str(run))
    assert resumed.code == 0, resumed.err
    assert f"going on from step-{state['step']}" in resumed.out
    assert_same_end(run, whole)

    again = tunewright("resume", str(run))
    assert again.code == 2
    assert f"error: {run} is done" in again.err
    assert_same_end(run, whole)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(
    tunewright: Command, model: Path, questions: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "tunewright", *words(model, questions, run, *LONG)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    send_when(run / "metrics.jsonl", 12, process.kill)
    assert process.wait() == -signal.SIGKILL
    assert RunFolder(run).status()["state"] == "died"
    resumed = tunewright("resume", str(run))
    assert resumed.code == 0, resumed.err
    assert "going on from step-" in resumed.out
    assert_same_end(run, whole)


@pytest.mark.slow
def test_two_processes_train_as_one(model: Path, questions: Path, tmp_path: Path) -> None:
    arguments = words(model, questions, tmp_path / "two", "model.dtype=float32")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tunewright"]
    done = subprocess.run(
        [*launch, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plan\n") == 1  # one process speaks for all
    assert exit_code(words(model, questions, tmp_path / "one", "model.dtype=float32")) == 0
    for two, one in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert two["step"] == one["step"]
        for key in {"loss", "validation_loss", "grad_norm", "tokens", "samples"} & set(one):
            assert two[key] == pytest.approx(one[key], rel=1e-5), key
    assert status(tmp_path / "two")["state"] == "done"


# Refused


def test_an_infinite_loss_fails_before_the_update(
    tunewright: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ("train.learning_rate=1e30", "train.warmup=0", "model.dtype=float32")
    failed = tunewright(*words(model, questions, run, *settings))
    assert failed.code == 1
    assert "error: step 2: the loss is nan" in failed.err or "error: step 2: the loss is inf" in failed.err
    assert "stopped before the update" in failed.err
    assert "questions.jsonl:" in failed.err
    state = status(run)
    assert (state["state"], state["step"]) == ("failed", 1)
    assert "step 2" in state["reason"]
    assert [record["step"] for record in metrics(run)] == [0, 1]
    assert not (run / "adapter").exists()
    assert RunFolder(run).checkpoints() == []


def broken(tmp_path: Path, model: Path) -> Path:
    """The model without readable weights: loading it fails, so a mistake that is told came before."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(b"no weights" if file.suffix == ".safetensors" else file.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.max_stepz=3"], "did you mean max_steps"),
        (["train.max_steps=many"], "train.max_steps"),
        (["train.max_steps=0"], "train.max_steps"),
        (["method.tuning=freeze"], "method.tuning"),
        (["data.max_length=3"], "data.max_length is 3"),
        (["lora.target=W_pack"], "lora.target"),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    tunewright: Command, model: Path, questions: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    failed = tunewright(*words(broken(tmp_path, model), questions, tmp_path / "run", *settings))
    assert failed.code == 2
    assert message in failed.err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_another_run_is_refused_first(
    tunewright: Command, model: Path, questions: Path, whole: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    failed = tunewright(*words(broken(tmp_path, model), tmp_path / "no-data.jsonl", whole))
    assert failed.code == 2
    assert f"{whole} already holds a run" in failed.err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_an_output_that_cannot_be_made_is_refused_first(tunewright: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    failed = tunewright(*words(broken(tmp_path, model), tmp_path / "no-data.jsonl", tmp_path / "run.yaml" / "x"))
    assert failed.code == 2
    assert failed.err == f"error: output: {tmp_path / 'run.yaml'} is a file; name a new folder with output=DIR\n"


def test_a_model_that_cannot_be_loaded_leaves_a_failed_run(
    tunewright: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    failed = tunewright(*words(broken(tmp_path, model), questions, tmp_path / "run"))
    assert failed.code == 2
    assert "the model cannot be loaded" in failed.err
    assert status(tmp_path / "run")["state"] == "failed"


def test_train_needs_a_model_and_data(tunewright: Command, model: Path) -> None:
    for arguments in (["train"], ["train", "--model", str(model)], ["train", "--data", "x.jsonl"]):
        failed = tunewright(*arguments)
        assert failed.code == 2
        assert "train needs a config" in failed.err


def test_resume_needs_a_run(tunewright: Command, tmp_path: Path) -> None:
    missing = tunewright("resume", str(tmp_path / "nothing"))
    assert (missing.code, missing.out) == (2, "")
    assert "there is no run folder" in missing.err
    assert tunewright("resume", str(tmp_path)).code == 2


def test_resume_refuses_changed_data(tunewright: Command, model: Path, questions: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_bytes(questions.read_bytes())
    run = tmp_path / "run"
    watch = threading.Thread(
        target=send_when, args=(run / "metrics.jsonl", 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    )
    watch.start()
    assert tunewright(*words(model, data, run, *LONG, "train.max_steps=20")).code == 130
    watch.join()
    data.write_bytes(questions.read_bytes().replace(b"Heron", b"Eagle"))
    failed = tunewright("resume", str(run))
    assert failed.code == 1
    assert "has changed since" in failed.err
    data.write_bytes(questions.read_bytes())
    assert tunewright("resume", str(run)).code == 0


def test_columns_of_data_without_a_config_can_be_named(tunewright: Command, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "sheet.csv"
    data.write_text("ask,say\n" + "".join(f"Where is boat {n}?,At sea {n}.\n" for n in range(30)), encoding="utf-8")
    failed = tunewright(*words(model, data, tmp_path / "run"))
    assert failed.code == 2
    assert "name them, data.train.columns: {prompt: …, response: …}" in failed.err
    named = ("data.train.columns.prompt=ask", "data.columns.response=say")
    done = tunewright(*words(model, data, tmp_path / "run", *named, "evaluate.at_end=false", "train.max_steps=1"))
    assert done.code == 0, done.err
    assert "prompt = ask, response = say" in done.out


def test_data_replaces_the_file_of_a_config_with_its_columns(
    tunewright: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: none\ndata: {path: other.csv, columns: {prompt: q}}\n", encoding="utf-8")
    run = tmp_path / "run"
    settings = ("evaluate.at_end=false", "train.max_steps=1")
    done = tunewright("train", str(config), *words(model, questions, run, *settings)[1:])
    assert done.code == 0, done.err
    (source,) = load_config(run / "config.yaml").data.train
    assert (source.path, source.columns.prompt) == (str(questions), None)


def test_pretraining_speaks_of_windows(tunewright: Command, model: Path, documents: Path, tmp_path: Path) -> None:
    settings = ("method.stage=pt", "evaluate.at_end=false", "train.max_steps=1")
    done = tunewright(*words(model, documents, tmp_path / "run", *settings))
    assert done.code == 0, done.err
    assert "windows of the documents to train on" in done.out
    assert "stop token" not in done.out
