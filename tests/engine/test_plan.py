"""The plan: exact counts, activations as autograd really keeps them, and a way out where a run cannot fit."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, MambaConfig, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from tests.tiny import seeing_config, tiny_config, tiny_model
from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared, prepare
from tunewright.data.sampler import Sampler
from tunewright.engine import fit
from tunewright.engine import plan as planning
from tunewright.engine.activations import DecoderMemory, _Ledger
from tunewright.engine.plan import Plan, plan_training
from tunewright.engine.tunings import Tuned, load_for_training, trainable, write_weights
from tunewright.errors import UsageError
from tunewright.forest.build import build_forest, distinct_tokens
from tunewright.forest.model import ForestModel, plain_model
from tunewright.models.load import eos_ids, load_tokenizer
from tunewright.models.recompute import recompute_layers


@dataclass
class Case:
    """A model folder with data, and the settings of a run on them."""

    folder: Path
    data: Path

    def config(self, tuning: str = "lora", dtype: str = "float32", max_length: int = 400, **train: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": {"name": str(self.folder), "dtype": dtype},
                "data": {"train": str(self.data), "max_length": max_length, "drop_bad_rows": True},
                "method": {"tuning": tuning},
                "lora": {"rank": 4},
                "train": {"batch_size": 4, "epochs": 2, **train},
            }
        )

    def prepared(self, config: RunConfig) -> Prepared:
        tokenizer = load_tokenizer(self.folder)
        return prepare(config, tokenizer, eos_ids(self.folder, tokenizer), Path.cwd())

    def plan(self, config: RunConfig) -> Plan:
        return plan_training(config, self.folder, self.prepared(config))

    def model(self, config: RunConfig) -> Tuned:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.model.dtype]
        return load_for_training(self.folder, config, dtype, None)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = save_tiny(tiny_tokenizer("chatml"), tmp_path_factory.mktemp("model"))
    data = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [
        {"instruction": f"What is boat {n}?", "output": f"The Heron {n}. " + "She sails at noon. " * (n % 9)}
        for n in range(40)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Case(folder, data)


@pytest.fixture(autouse=True)
def _no_probe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe takes a second on one core; one test looks at it."""
    if "probe" not in request.node.name:
        monkeypatch.setattr(planning, "probe_rate", lambda dtype: 1e11)


def steps(config: RunConfig, prepared: Prepared) -> list[list[Any]]:
    settings = config.train
    sampler = Sampler.over(prepared.train, settings)
    return [[prepared.train[index] for index in sampler.step(step)] for step in range(sampler.total_steps)]


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_their_bytes_are_exact(case: Case, tuning: str, dtype: str) -> None:
    config = case.config(tuning, dtype)
    plan, model = case.plan(config), case.model(config)
    trained = [parameter for _, parameter in trainable(model)]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    adapters = 0 if tuning == "full" else sum(parameter.numel() for parameter in trained)
    assert plan.parameters == sum(parameter.numel() for parameter in model.parameters()) - adapters
    assert plan.trainable_parameters == sum(parameter.numel() for parameter in trained)
    assert plan.weights_bytes == sum(parameter.nbytes for parameter in frozen)
    # The weight, its gradient, and what AdamW keeps of it.
    optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert plan.training_state_bytes == sum(tensor.nbytes for tensor in [*trained, *trained, *moments])


def test_of_a_model_that_sees_only_what_text_passes_through_is_trained(case: Case, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.save_pretrained(tmp_path)
    settings = seeing_config(vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    seeing = Case(tmp_path, case.data)
    config = seeing.config("full")
    plan, model = seeing.plan(config), seeing.model(config)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any("vision_tower" in name for name in frozen)
    assert frozen == {name for name, _ in model.named_parameters() if ".language_model." not in name}
    trained = [parameter for _, parameter in trainable(model)]
    assert plan.parameters == model.num_parameters()
    assert plan.trainable_parameters == sum(parameter.numel() for parameter in trained)
    assert plan.training_state_bytes == 4 * sum(parameter.nbytes for parameter in trained)
    assert plan.weights_bytes == sum(model.get_parameter(name).nbytes for name in frozen)
    # Its matrix products are those of the language model, too.
    alone = tmp_path / "alone"
    tokenizer.save_pretrained(alone)
    settings.text_config.save_pretrained(alone)
    assert plan.step_flops == Case(alone, case.data).plan(config.model_copy()).step_flops
    # What stays as it is, is written with the rest.
    write_weights(model, tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_steps_and_tokens_are_those_of_the_data(case: Case) -> None:
    config = case.config(max_steps=10)
    plan, all_steps = case.plan(config), steps(config, case.prepared(config))
    assert plan.steps == len(all_steps) == 10
    assert plan.tokens_per_step == pytest.approx(sum(len(one) for step in all_steps for one in step) / 10)
    assert plan.distinct_tokens_per_step == pytest.approx(sum(map(distinct_tokens, all_steps)) / 10)
    assert plan.total_seconds == pytest.approx(10 * plan.step_seconds)
    assert plan.dtype == "float32"


def really_kept(model: Tuned, step: list[Any], autocast: bool) -> int:
    """Bytes of all tensors that autograd keeps for the backward of one forest, or attention; weights left out."""
    held: dict[int, Tensor] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no address is used twice
        return tensor

    model.train()
    forest_model = ForestModel(plain_model(model))
    layout = forest_model.layout(build_forest(step))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        rows = keep(forest_model.loss_hidden(layout))
    dtype = torch.bfloat16 if autocast or model.dtype == torch.bfloat16 else torch.float32
    for bucket in layout.buckets(None, dtype).buckets:
        keep(bucket.bias)
    del rows
    return sum(tensor.untyped_storage().nbytes() for address, tensor in held.items() if address not in weights)


def narrowed(model: Tuned) -> int:
    """Bytes of the bfloat16 copies of the decoder's linear weights, which autocast keeps."""
    linears = [layer for layer in plain_model(model).model.modules() if isinstance(layer, torch.nn.Linear)]
    return sum(2 * layer.weight.numel() for layer in linears)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(case: Case, tuning: str, dtype: str) -> None:
    config = case.config(tuning, dtype)
    prepared, plan, model = case.prepared(config), case.plan(config), case.model(config)
    largest = max(steps(config, prepared), key=distinct_tokens)
    assert plan.forest_tokens >= distinct_tokens(largest)
    autocast = (tuning, dtype) == ("full", "bfloat16")
    kept = really_kept(model, largest, autocast) - (narrowed(model) if autocast else 0)
    assert plan.activation_bytes == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", ["off", "full", 3])
def test_the_peak_of_full_tuning_is_what_a_step_takes(
    case: Case, tmp_path: Path, dtype: str, recompute: str | int
) -> None:
    """In a model whose weights outweigh its activations, so that a narrowed copy of them too many or too few shows."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 10}
    large = Case(save_tiny(tiny_tokenizer("chatml"), tmp_path, **wide), case.data)
    config = large.config("full", dtype, batch_size=8, recompute=recompute)
    prepared, plan, model = large.prepared(config), large.plan(config), large.model(config)
    recompute_layers(plain_model(model), recompute)  # type: ignore[arg-type]  # one of the two words, or a number
    model.train()
    forest = build_forest(max(steps(config, prepared), key=distinct_tokens))
    for _, parameter in trainable(model):
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with _Ledger() as ledger:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = ForestModel(plain_model(model), backend="cpu").weighted_nll(forest)
        (forward,) = ledger.take()
        loss.backward()
        (backward,) = ledger.take()
    took = max(forward.most, forward.growth + backward.most)
    foretold = plan.activation_bytes + plan.temporary_bytes
    assert 0.98 * took < foretold < 1.12 * took


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral-window", "mixtral", "gemma2", "gemma3"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_every_family_can_be_planned(case: Case, tmp_path: Path, family: str, tuning: str) -> None:
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    tiny_config(family).save_pretrained(tmp_path)  # no weights: none are needed
    model = tiny_model(family, attention="eager")
    for dtype in ("float32", "bfloat16"):
        plan = Case(tmp_path, case.data).plan(case.config(tuning, dtype))
        assert plan.parameters == model.num_parameters()
        assert plan.activation_bytes > 0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LlamaConfig(attention_dropout=0.1), "attention_dropout to 0.1"),
        (BloomConfig(), "bloom models"),
        (MambaConfig(), "mamba models"),
    ],
    ids=["attention dropout", "bloom", "mamba"],
)
def test_what_a_forest_cannot_compute_is_refused(
    case: Case, tmp_path: Path, config: PreTrainedConfig, reason: str
) -> None:
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=reason):
        Case(tmp_path, case.data).plan(case.config())


def test_a_forest_holds_the_longest_example_whatever_was_asked(case: Case) -> None:
    longest = int(case.prepared(case.config()).train.lengths.max())
    assert case.plan(case.config(forest_tokens=1)).forest_tokens == longest
    assert case.plan(case.config(forest_tokens=longest + 7)).forest_tokens == longest + 7
    assert case.plan(case.config(batch_size=1)).forest_tokens >= longest


def with_memory(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(planning, "available_bytes", lambda: int(count))


def memory_for(case: Case, tokens: int, **train: Any) -> float:
    """Bytes that must be free for forests of so many tokens, which may be fewer than the longest example's.

    No layer is computed again unless `train` says so.
    """
    train = {"recompute": "off", **train}
    prepared = case.prepared(case.config(**train))
    longest = int(prepared.train.lengths.max())
    most = max(map(distinct_tokens, steps(case.config(**train), prepared)))
    # Of two lines, the forward's and the backward's, the higher one counts: here the one that does at `near`.
    near = min(max(tokens, longest), most - 1)
    low, high = (case.plan(case.config(**train, forest_tokens=count)).peak_bytes for count in (near, near + 1))
    return (low + (high - low) * (tokens + 0.5 - near)) / planning.USABLE


def test_less_memory_means_smaller_forests_until_one_example_no_longer_fits(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = case.config(recompute="off")
    longest = int(case.prepared(config).train.lengths.max())
    needs = {tokens: memory_for(case, tokens) for tokens in (10**6, longest + 100, longest + 10, longest + 1)}
    too_little = memory_for(case, longest - 1)
    seen = []
    for tokens, need in needs.items():
        with_memory(monkeypatch, need)
        plan = case.plan(config)
        assert longest <= plan.forest_tokens <= tokens
        assert plan.peak_bytes <= planning.USABLE * plan.available_bytes
        seen.append(plan.forest_tokens)
    assert seen == sorted(seen, reverse=True)
    with_memory(monkeypatch, too_little)
    with pytest.raises(UsageError, match=f"does not fit: one example of {longest} tokens needs about"):
        case.plan(config)


def test_a_large_step_fits_where_a_small_one_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = case.config(batch_size=2), case.config(batch_size=40, recompute="off")
    longest = int(case.prepared(small).train.lengths.max())
    with_memory(monkeypatch, memory_for(case, 2 * longest, batch_size=40))
    for config in (small, large):
        plan = case.plan(config)
        assert longest <= plan.forest_tokens
        assert plan.peak_bytes <= planning.USABLE * plan.available_bytes
    assert case.plan(large).forests_per_step > 1


def test_a_forest_size_that_was_set_must_fit_too(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    config = case.config(batch_size=40, forest_tokens=10**6, recompute="off")
    longest = int(case.prepared(config).train.lengths.max())
    with_memory(monkeypatch, memory_for(case, longest + 20, batch_size=40))
    with pytest.raises(UsageError, match=r"a forest of \d+ tokens .* set train\.forest_tokens to \d+ or less"):
        case.plan(config)
    smaller = case.plan(case.config(batch_size=40, forest_tokens=longest + 10, recompute="off"))
    assert smaller.forest_tokens == longest + 10


def test_examples_beyond_the_models_context_are_refused(case: Case, tmp_path: Path) -> None:
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    config = tiny_config("llama")
    config.max_position_embeddings = 40
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="made for at most 40; set data.max_length to 40 or less"):
        Case(tmp_path, case.data).plan(case.config())


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    quarter = planning.available_bytes()
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    if not torch.cuda.is_available():
        assert quarter == pytest.approx(planning.available_bytes() / 4, rel=0.2)


def test_no_layer_is_computed_again_where_all_fits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    walk = DecoderMemory._pass

    def noted(self: DecoderMemory, again: bool) -> Any:
        asked.append(again)
        return walk(self, again)

    monkeypatch.setattr(DecoderMemory, "_pass", noted)
    plan = case.plan(case.config())
    assert (plan.recompute, plan.recomputed_layers, plan.layers, plan.recompute_seconds) == ("off", 0, 2, 0)
    assert plan.forests_per_step == 1
    assert "no layer is computed again in the backward: all that they keep fits" in "\n".join(plan.lines())
    assert not any(asked)  # what else might be done is not even looked at


def test_the_quickest_pair_is_chosen(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forest of a step with many shared prefixes against many forests of the same."""
    config = case.config(batch_size=40)
    whole, again = (case.plan(case.config(batch_size=40, recompute=which)) for which in ("off", "full"))
    assert again.activation_bytes < whole.activation_bytes
    assert again.step_seconds == pytest.approx(whole.step_seconds + again.recompute_seconds)
    longest = int(case.prepared(config).train.lengths.max())
    with_memory(monkeypatch, memory_for(case, longest + 10, batch_size=40))
    plan, off = case.plan(config), case.plan(case.config(batch_size=40, recompute="off"))
    assert plan.recomputed_layers > 0
    assert off.forests_per_step > 1
    assert off.distinct_tokens_per_step > plan.distinct_tokens_per_step
    assert plan.peak_bytes <= planning.USABLE * plan.available_bytes
    line = next(line for line in plan.lines() if "computed again in the backward" in line)
    assert re.search(
        r"[12] of 2 layers .*: without, only \d+ tokens at once would fit, and a step take \d+% longer", line
    )
    # A second forest costs less than any layer that is computed again.
    with_memory(monkeypatch, 0.5 * (whole.peak_bytes + again.peak_bytes) / planning.USABLE)
    plan = case.plan(config)
    assert plan.recomputed_layers == 0
    assert plan.forests_per_step > 1
    assert "smaller forests cost less" in "\n".join(plan.lines())


def test_layers_are_computed_again_as_asked(case: Case) -> None:
    for which, count in (("off", 0), (1, 1), (2, 2), ("full", 2)):
        plan = case.plan(case.config(recompute=which))
        assert plan.recomputed_layers == count
        assert plan.recompute == ("full" if count == 2 else which)
        assert f"train.recompute is {which}" in "\n".join(plan.lines())
    with pytest.raises(UsageError, match="train.recompute is 3, and this model has 2 layers; set it to full"):
        case.plan(case.config(recompute=3))


def test_the_way_out_that_keeps_the_result_comes_first(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """By predicted time, whichever of the two settings it is."""
    monkeypatch.setattr(fit, "FOREST_COST", 1000)  # with it one more forest is dearer than layers computed again
    longest = int(case.prepared(case.config()).train.lengths.max())
    one_example = memory_for(case, longest - 40, batch_size=40)
    with_memory(monkeypatch, memory_for(case, longest + 10, batch_size=40))
    most = case.plan(case.config(batch_size=40, recompute="full")).forest_tokens
    with pytest.raises(UsageError, match="set train.recompute to auto"):
        case.plan(case.config(batch_size=40, forest_tokens=most, recompute="off"))
    assert case.plan(case.config(batch_size=40, forest_tokens=most)).recomputed_layers > 0
    with pytest.raises(UsageError, match=r"set train.forest_tokens to \d+ or less"):
        case.plan(case.config(batch_size=40, forest_tokens=10**6, recompute="off"))
    with_memory(monkeypatch, one_example)
    with pytest.raises(UsageError, match=f"one example of {longest} tokens .* set train.recompute to auto"):
        case.plan(case.config(batch_size=40, recompute="off"))
    assert case.plan(case.config(batch_size=40)).recomputed_layers > 0
    with pytest.raises(UsageError, match=r"set train.recompute to auto and train.forest_tokens to \d+ or less"):
        case.plan(case.config(batch_size=40, recompute="off", forest_tokens=10**6))


def test_the_way_out_is_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    config = case.config()
    longest = int(case.prepared(config).train.lengths.max())
    some, none = memory_for(case, 70, recompute="full"), memory_for(case, 0)
    for_lora = memory_for(case, longest + 1, recompute="full")
    with_memory(monkeypatch, some)
    with pytest.raises(UsageError, match="way out: set data.max_length to 64 or less, which is less than [0-9]+ of "):
        case.plan(config)
    assert case.plan(case.config(max_length=64)).forest_tokens >= 2
    with_memory(monkeypatch, none)
    for tuning in ("lora", "full"):
        with pytest.raises(UsageError, match="choose a smaller model, or a machine with more memory"):
            case.plan(case.config(tuning))
    with_memory(monkeypatch, for_lora)
    with pytest.raises(UsageError, match="set method.tuning to lora"):
        case.plan(case.config("full"))


def test_layers_that_cannot_be_computed_again_are_refused_when_asked(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaPreTrainedModel, "supports_gradient_checkpointing", False)
    plan = case.plan(case.config())
    assert (plan.layers, plan.recompute) == (0, "off")
    assert "no layer is computed again in the backward: this architecture has no such layers" in plan.lines()[3]
    assert plan.activation_bytes > 0
    for which in ("full", 1):
        with pytest.raises(UsageError, match=f"train.recompute is {which}, and this architecture's layers cannot be"):
            case.plan(case.config(recompute=which))


def test_the_probe_is_a_rate_of_this_machine() -> None:
    assert 1e8 < planning.probe_rate(torch.float32) < 1e16


def test_words(case: Case) -> None:
    text = "\n".join(case.plan(case.config()).lines())
    for words in ("parameters", "each is computed once", "in one forest", "GiB free", "time about", "GFLOP/s"):
        assert words in text


def test_what_has_no_faster_form_is_named(case: Case, tmp_path: Path) -> None:
    assert case.plan(case.config()).plain_parts == []
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    tiny_config("gpt2").save_pretrained(tmp_path)
    plan = Case(tmp_path, case.data).plan(case.config())
    assert plan.plain_parts == ["norms", "feed-forward layers", "attention layers", "the last layer"]
    assert "run as they are: norms, feed-forward layers, attention layers, the last layer" in plan.lines()[-1]


def test_for_a_gpu_its_own_memory_and_backend_are_counted(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    here = case.plan(case.config())
    asked: list[torch.device] = []

    def flex(device: torch.device) -> str:
        asked.append(device)
        return "flex"

    monkeypatch.setattr(planning, "training_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(planning, "best_backend", flex)
    there = case.plan(case.config())
    assert asked == [torch.device("cuda")]
    assert (here.process_bytes, there.process_bytes) == (planning.PROCESS_BYTES, planning.CUDA_BYTES)
    assert there.activation_bytes != here.activation_bytes
    assert there.weights_bytes == here.weights_bytes
