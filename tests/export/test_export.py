import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.engine.test_checkpoint import largest_file
from tests.folders import SYSTEM, tiny_folder, tiny_run
from tunewright.chat.partner import open_partner
from tunewright.data.examples import Message
from tunewright.data.template import ChatTemplate
from tunewright.errors import RunError, UsageError
from tunewright.export import write
from tunewright.export.proof import logits_of, prove
from tunewright.export.write import export_adapter, export_model, size_in_bytes
from tunewright.models.adapters import load_adapter
from tunewright.models.load import load_model, load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_exported_model_is_the_tuned_one(tmp_path: Path, model: Path, tuning: str) -> None:
    run = tiny_run(tmp_path / "run", model, tuning)
    done = export_model(run, tmp_path / "out")

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    base = load_model(model, torch.float32)
    tuned = load_adapter(base, run.adapter_path) if tuning == "lora" else load_model(run.model_path, torch.float32)
    ids = [[5, 9, 80, 33, 7, 12, 60]]
    difference = (logits_of(exported, ids)[0] - logits_of(tuned, ids)[0]).abs().max()
    assert difference < 0.05 * logits_of(tuned, ids)[0].std()
    assert done.proof is not None
    assert done.proof.difference < 0.02 < 0.1 < done.proof.effect
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_merge_rounds_once(tmp_path: Path, model: Path) -> None:
    """Every merged weight is the float32 sum rounded to the stored type, bit for bit."""
    run = tiny_run(tmp_path / "run", model)
    export_model(run, tmp_path / "out")
    written, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(model / "model.safetensors")
    adapter = load_file(run.adapter_path / "adapter_model.safetensors")
    scale = run.config.lora.alpha / run.config.lora.rank
    for name, weight in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        delta = torch.zeros(())
        if f"{key}.lora_A.weight" in adapter:
            delta = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"] * scale
        assert torch.equal(written[name], (weight.float() + delta).bfloat16()), name


def test_template_carries_the_system_prompt(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    export_model(run, tmp_path / "out")
    trained = ChatTemplate(load_tokenizer(model), run.template_source, run.stop_ids)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    question = [{"role": "user", "content": "Who?"}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert text == trained.render([Message("system", SYSTEM), Message("user", "Who?")], add_generation_prompt=True)
    other = [{"role": "system", "content": "Other."}, *question]
    assert tokenizer.apply_chat_template(other, tokenize=False) == trained.render(
        [Message("system", "Other."), Message("user", "Who?")]
    )
    assert SYSTEM in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_generation_config_and_shards(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    run.stop_json.write_text(json.dumps({"stop_ids": [*run.stop_ids, 7]}))
    done = export_model(run, tmp_path / "out", max_shard_size="20KB")
    config = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config["eos_token_id"] == list(run.stop_ids)
    assert 7 in config["eos_token_id"]
    assert (config["do_sample"], config["temperature"], config["top_p"], config["top_k"]) == (True, 0.6, 0.8, 0)
    assert open_partner(str(tmp_path / "out")).sampling == run.config.chat
    assert sum(name.endswith(".safetensors") for name in done.files) > 2


def test_makers_sampling_flags_that_do_not_fit_together_break_nothing(tmp_path: Path) -> None:
    """As in models published with a temperature and no sampling, which transformers does not save."""
    model = tiny_folder(tmp_path / "model")
    path = model / "generation_config.json"
    habits = {"do_sample": False, "temperature": 0.6, "top_k": 20, "typical_p": 0.5}
    path.write_text(json.dumps({**json.loads(path.read_text()), **habits}))
    for tuning in ("lora", "full"):
        run = tiny_run(tmp_path / tuning, model, tuning)
        export_model(run, tmp_path / f"{tuning}-out")
        written = GenerationConfig.from_pretrained(tmp_path / f"{tuning}-out")
        written.validate(strict=True)
        assert (written.do_sample, written.temperature, written.top_p, written.top_k) == (True, 0.6, 0.8, 0)


def test_a_greedy_run_stays_greedy(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    run.config.chat.temperature = 0
    export_model(run, tmp_path / "out")
    GenerationConfig.from_pretrained(tmp_path / "out").validate(strict=True)
    sampling = open_partner(str(tmp_path / "out")).sampling
    assert (sampling.temperature, sampling.max_new_tokens) == (0, 20)


def test_remote_code_marks_are_removed(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_other.Other"}
    (model / "config.json").write_text(json.dumps(config))
    export_model(tiny_run(tmp_path / "run", model), tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


def test_float32_export_of_a_bfloat16_base(tmp_path: Path, model: Path) -> None:
    done = export_model(tiny_run(tmp_path / "run", model), tmp_path / "out", dtype="float32")
    assert done.proof is not None
    assert done.proof.difference < 1e-5
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.float32


def test_weights_changed_on_the_way_to_disk_fail_the_proof(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break one matrix of the written file: exit 1, and neither DEST nor anything aside is left."""
    run = tiny_run(tmp_path / "run", model)
    strip = write.strip_remote_code

    def strip_and_break(folder: Path) -> None:
        strip(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= 0.5
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(write, "strip_remote_code", strip_and_break)
    with pytest.raises(RunError, match="not the trained one") as caught:
        export_model(run, tmp_path / "out")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_export_without_the_adapter_fails_the_proof(tmp_path: Path, model: Path) -> None:
    """Even where training moved the logits less than the tolerance for rounding."""
    for strength, message in ((0.5, "not the trained one"), (0.002, "rounding to bfloat16 would undo")):
        run = tiny_run(tmp_path / f"run{strength}", model, strength=strength)
        ids = [[5, 9, 80, 33, 7, 12, 60]]
        base = logits_of(load_model(model, torch.float32), ids)
        tuned = logits_of(load_adapter(load_model(model, torch.float32), run.adapter_path), ids)
        with pytest.raises(RunError, match=message):
            prove(tuned, base, base, "bfloat16")


def test_nan_fails_the_proof() -> None:
    logits = [torch.randn(3, 11)]
    with pytest.raises(RunError, match="not the trained one"):
        prove(logits, logits, [torch.full((3, 11), torch.nan)], "bfloat16")


def test_a_taken_destination_is_refused_before_any_work(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        export_model(run, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_adapter_only(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    export_adapter(run, tmp_path / "out")
    adapted = load_adapter(load_model(model, torch.float32), tmp_path / "out")
    reference = load_adapter(load_model(model, torch.float32), run.adapter_path)
    assert torch.equal(logits_of(adapted, [[5, 9, 80]])[0], logits_of(reference, [[5, 9, 80]])[0])
    full = tiny_run(tmp_path / "full", model, "full")
    with pytest.raises(UsageError, match="has no adapter"):
        export_adapter(full, tmp_path / "other")


@pytest.mark.parametrize(
    ("size", "expected"),
    [("500MB", 500_000_000), ("2GiB", 2**31), ("1.5 gb", 1_500_000_000), ("20KB", 20_000), ("1TiB", 2**40)],
)
def test_sizes_in_bytes(size: str, expected: int) -> None:
    assert size_in_bytes(size) == expected


@pytest.mark.parametrize("size", ["2", "2G", "GB", "0GB", "-1GB", "2PB", "1e3MB", ""])
def test_what_is_no_size_is_refused_before_any_work(tmp_path: Path, model: Path, size: str) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="--max-shard-size: .* is no size; write it as 500MB or 2GB"):
        export_model(tiny_run(tmp_path / "run", model), tmp_path / "out", max_shard_size=size, notify=said.append)
    assert said == []


def test_shards_in_binary_units(tmp_path: Path, model: Path) -> None:
    done = export_model(tiny_run(tmp_path / "run", model), tmp_path / "out", max_shard_size="20KiB")
    assert sum(name.endswith(".safetensors") for name in done.files) > 2


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    with largest_file(10_000), pytest.raises(RunError, match=r"out: cannot be written \(.*too large.*\); nothing was"):
        export_model(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_destination_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    with pytest.raises(UsageError, match="DEST: .*config.yaml is a file; name a new folder"):
        export_model(run, run.config_path / "out", notify=pytest.fail)
