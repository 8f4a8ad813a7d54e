"""Work D compares like with like: DPO on forests has the losses of one sequence at a time, and those of TRL."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.folders import tiny_folder
from tests.tokenizers import SENTENCES

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
# TRL's environment takes minutes to make: this is where one is kept, if one is.
ENVIRONMENTS = Path(os.environ.get("BENCHMARK_ENVIRONMENTS", REPOSITORY / ".benchmark-environments")).absolute()
# The high rate makes wrong gradients show in the next loss, and 3 steps of 8 pass the end of the 20 usable pairs.
SETTINGS = {"batch_size": 8, "steps": 3, "warmup": 1, "learning_rate": 2e-3, "max_length": 300, "seed": 42}


def rows() -> list[dict[str, Any]]:
    """Pairs of which some share their prompt and one goes on an earlier answer; then two that are of no use."""

    def row(asked: list[dict[str, str]], better: str, worse: str) -> dict[str, Any]:
        return {"conversations": asked, "chosen": said("gpt", better), "rejected": said("gpt", worse)}

    def said(speaker: str, words: str) -> dict[str, str]:
        return {"from": speaker, "value": words}

    found = []
    for i in range(20):
        asked = [said("human", f"{SENTENCES[i % 6]}?")]
        if i == 3:
            asked += [said("gpt", SENTENCES[0]), said("human", "And then?")]
        found.append(row(asked, " ".join(SENTENCES[: i % 4]) or "Yes.", f"No, {i}. {SENTENCES[i % 7]}"))
    return [*found, row(asked, "The same.", "The same."), row(asked, "Yes.", "No. " * 300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    tiny_folder(path / "model", "qwen2", torch.float32)
    (path / "pairs.json").write_text(json.dumps(rows()), encoding="utf-8")
    return path


@pytest.fixture
def work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder to prepare, with the programs importable as they import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(folder)
    facts = {"objective": "dpo", "model": "model", "data": "pairs.json", "system": "You keep a lighthouse."}
    settings = {**SETTINGS, **facts, "dtype": "float32", "forest_tokens": 150}
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


def one_sequence_at_a_time(work: Path, model_folder: Path) -> list[float]:
    """Loss of each step by plain transformers and PEFT, with log-softmax and the loss written out."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(work / "adapter"), is_trainable=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=SETTINGS["learning_rate"], weight_decay=0.0)
    with np.load(work / "rows.npz") as arrays:
        ids, weights, offsets, order = (arrays[name] for name in ("ids", "weights", "offsets", "order"))

    def log_prob(index: int) -> torch.Tensor:
        span = slice(offsets[index], offsets[index + 1])
        tokens = torch.from_numpy(ids[span].astype(np.int64))
        answer = torch.from_numpy(weights[span] != 0)[1:]
        log_probs = model(input_ids=tokens[None]).logits[0, :-1].double().log_softmax(-1)
        return log_probs.gather(1, tokens[1:, None])[:, 0][answer].sum()

    losses = []
    for step in order:
        optimizer.zero_grad()
        total = 0.0
        for better, worse in step.reshape(-1, 2):
            with torch.no_grad(), model.disable_adapter():
                before = log_prob(better) - log_prob(worse)
            loss = torch.log1p(torch.exp(-0.1 * (log_prob(better) - log_prob(worse) - before))) / (len(step) // 2)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(total)
    return losses


def test_losses_are_those_of_one_sequence_at_a_time(work: Path, folder: Path) -> None:
    import contestants
    from stopwatch import Stopwatch

    facts = contestants.prepare_work(work)
    assert (facts["examples"], facts["left_out"]) == (20, 2)
    steps = facts["steps"]
    assert all(few < many for few, many in zip(steps["distinct_tokens"], steps["tokens"], strict=True))
    expected = one_sequence_at_a_time(work, folder / "model")
    assert expected[0] == pytest.approx(np.log(2), rel=1e-6), "the adapters are zero at first"
    assert max(expected) - min(expected) > 0.05, "the losses move by far more than they may differ"
    for precomputed in (False, True):
        losses, details = contestants.train_tunewright(work, Stopwatch(0.0), precomputed)
        assert losses == pytest.approx(expected, rel=1e-5)
        # Some prompts stand in two forests, as no forest may have more than 150 tokens.
        assert all(a >= b for a, b in zip(details["step_computed_tokens"], steps["distinct_tokens"], strict=True))


def test_both_answers_are_trained_to_their_stop_and_nothing_else_is(work: Path) -> None:
    import contestants

    from tunewright.models.load import load_tokenizer

    contestants.prepare_work(work)
    encoded, _ = contestants._rows(work)
    tokenizer = load_tokenizer(Path("model"))
    for i, row in enumerate(rows()[:20]):
        better, worse = encoded[2 * i], encoded[2 * i + 1]
        for one, side in ((better, "chosen"), (worse, "rejected")):
            trained = one.weights != 0
            assert tokenizer.decode(one.input_ids[trained].tolist()) == row[side]["value"] + "<|im_end|>"
            assert trained[-1]
            assert (np.diff(trained.astype(int)) == 1).sum() == 1
        prompt = int((better.weights == 0).sum())
        assert np.array_equal(better.input_ids[:prompt], worse.input_ids[:prompt])
        text = tokenizer.decode(better.input_ids[:prompt].tolist())
        assert text.count("You keep a lighthouse.") == 1
        assert all(turn["value"] in text for turn in row["conversations"])


def test_pairs_stay_together_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from pairs import group_pairs

    from tests.tiny import encoded
    from tunewright.forest.build import distinct_tokens

    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 60, 10).tolist() for _ in range(4)]
    answers = [rng.integers(3, 60, rng.integers(2, 9)).tolist() for _ in range(24)]
    sequences = [encoded((ids := prompts[i // 2 % 4] + answers[i]), [1.0] * len(ids)) for i in range(24)]
    groups = group_pairs(sequences, 60)
    assert sorted(index for group in groups for index in group) == list(range(24))
    for group in groups:
        assert all(
            worse == better + 1 and better % 2 == 0 for better, worse in zip(group[::2], group[1::2], strict=True)
        )
        assert distinct_tokens([sequences[index] for index in group]) <= 60
    assert 1 < len(groups) < 12
    assert len(group_pairs(sequences, 1)) == 12, "a pair that is too long stands alone"
    assert len({index // 2 % 4 for index in groups[0]}) < 4, "equal prompts are neighbours"


def test_peers_may_compute_in_bfloat16_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers
    from transformers import TrainingArguments

    config = {"train": {"batch_size": 8, "max_steps": 1, "learning_rate": 1e-4}}
    arguments = TrainingArguments(**peers._arguments(config, tmp_path), bf16=True)
    assert arguments.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def run_driver(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(BENCHMARKS / "sft_vs_trainer.py"), "--objective", "dpo", "--model", "model"]
    return subprocess.run([*program, *options], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--contestants", "tunewright", "trainer"), "no trainer for dpo"),
        (("--contestants", "tunewright", "trl-nockpt"), "must have trl"),
    ],
)
def test_unusable_contestants_end_it_at_once(folder: Path, options: tuple[str, ...], message: str) -> None:
    done = run_driver(folder, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (ENVIRONMENTS / "trl" / "installed.txt").is_file(), reason=f"no TRL in {ENVIRONMENTS}")
def test_the_losses_are_trls(folder: Path) -> None:
    """TRL's own DPOTrainer, with and without what it offers, and on the pairs that are made where none are given."""
    contestants = ("tunewright", "tunewright-precomputed", "trl", "trl-nockpt-precomputed")
    work = [text for name in SETTINGS for text in (f"--{name.replace('_', '-')}", str(SETTINGS[name]))]
    kept = ("--environments", str(ENVIRONMENTS), "--output", "results.json", "--dtype", "float32", "--threads", "1")
    done = run_driver(folder, *work, *kept, "--max-length", "400", "--contestants", *contestants)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert results["settings"]["data"] == "preferences.jsonl"
    first, *others = ([*run["losses"]] for run in results["contestants"].values())
    assert max(first) - min(first) > 0.05
    for losses in others:
        assert losses == pytest.approx(first, rel=1e-5)
