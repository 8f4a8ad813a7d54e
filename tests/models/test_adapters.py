from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tests.tiny import seeing_config, tiny_model
from tunewright.config.schema import LoraConfig
from tunewright.errors import RunError, UsageError
from tunewright.models.adapters import add_lora, linear_names, load_adapter

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[5, 9, 20, 33, 7]])


def adapted_names(model: torch.nn.Module) -> set[str]:
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A" in name}


def test_all_linear_leaves_the_output_layer_out_and_trains_float32_adapters_only() -> None:
    model = add_lora(tiny_model("qwen2", torch.bfloat16), LoraConfig(rank=3, alpha=12, dropout=0.25), seed=1)
    assert adapted_names(model) == set(ALL)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name and parameter.dtype == torch.float32 for name, parameter in trained.items())
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (3, 4.0, 0.25)
    assert layer.get_base_layer().weight.dtype == torch.bfloat16


def test_fresh_adapters_change_nothing_and_depend_on_the_seed_alone() -> None:
    plain = tiny_model()(IDS).logits
    state = torch.get_rng_state()
    first = add_lora(tiny_model(), LoraConfig(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again, other = add_lora(tiny_model(), LoraConfig(), seed=1), add_lora(tiny_model(), LoraConfig(), seed=2)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    assert torch.equal(first(IDS).logits, plain)


def test_named_targets() -> None:
    assert linear_names(tiny_model()) == ALL
    model = add_lora(tiny_model(), LoraConfig(target=["q_proj", "v_proj"]), seed=1)
    assert adapted_names(model) == {"q_proj", "v_proj"}
    assert adapted_names(add_lora(tiny_model(), LoraConfig(target="o_proj"), seed=1)) == {"o_proj"}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (["q_proj", "v_porj"], "no linear layer 'v_porj'; did you mean v_proj"),
        ("W_pack", "It has q_proj, k_proj"),
        (["lm_head"], "output layer 'lm_head'"),
        ([], "the list is empty"),
    ],
)
def test_wrong_targets_are_refused(target: list[str] | str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        add_lora(tiny_model(), LoraConfig(target=target), seed=1)


def test_saved_adapter_comes_back_the_same(tmp_path: Path) -> None:
    model = add_lora(tiny_model(), LoraConfig(), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    model.save_pretrained(tmp_path)
    loaded = load_adapter(tiny_model(dtype=torch.bfloat16), tmp_path)
    trained = [parameter for name, parameter in loaded.named_parameters() if "lora_" in name]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    again = load_adapter(tiny_model(), tmp_path, trainable=True)
    assert torch.equal(again(IDS).logits, model.eval()(IDS).logits)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in again.named_parameters())


def test_an_adapter_that_does_not_fit_or_is_pickled_is_refused(tmp_path: Path) -> None:
    add_lora(tiny_model(), LoraConfig(), seed=1).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    whole = load_file(weights)
    dropped = {name: tensor for name, tensor in whole.items() if "layers.1.mlp.up_proj" not in name}
    save_file(dropped, weights)
    with pytest.raises(RunError, match=r"2 tensors differ, first .*up_proj"):
        load_adapter(tiny_model(), tmp_path)
    save_file({name: torch.zeros(2, 2) for name in whole}, weights)
    with pytest.raises(RunError, match="does not fit"):
        load_adapter(tiny_model(), tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UsageError, match="pickle"):
        load_adapter(tiny_model(), tmp_path)
    with pytest.raises(UsageError, match="adapter_config.json is missing"):
        load_adapter(tiny_model(), tmp_path / "none")


def seeing_model() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(seeing_config())
    return model


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "down_proj"]])
def test_of_a_model_that_sees_the_language_model_alone_is_adapted(target: str | list[str], tmp_path: Path) -> None:
    plain = seeing_model()
    linear = [name for name, layer in plain.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert any("vision_tower" in name and name.endswith("q_proj") for name in linear)
    expected = {name for name in linear if ".language_model." in name}
    if target != "all-linear":
        expected = {name for name in expected if name.endswith(tuple(target))}
    assert linear_names(plain) == ALL

    model = add_lora(plain, LoraConfig(target=target), seed=1)
    prefix = "base_model.model."
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {prefix + name for name in expected}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapter(seeing_model(), tmp_path)
    assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("target", ["fc1", ["q_proj", "out_proj"]])
def test_layers_of_a_vision_tower_are_no_targets(target: str | list[str]) -> None:
    with pytest.raises(UsageError, match=r"no linear layer '(fc1|out_proj)'; .*It has q_proj, k_proj"):
        add_lora(seeing_model(), LoraConfig(target=target), seed=1)


def test_models_with_other_layer_classes_get_adapters_by_all_linear() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    assert {"c_attn", "c_fc", "c_proj"} == adapted_names(add_lora(model, LoraConfig(), seed=1))
