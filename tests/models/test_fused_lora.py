"""The fused LoRA linear equals PEFT's own, in outputs and all gradients, and steps aside where it must."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from tests.tiny import tiny_model
from tunewright.config.schema import LoraConfig
from tunewright.models.adapters import add_lora, load_adapter
from tunewright.models.fused_lora import FEW_ROWS, FusedLoraLinear, together

WIDE, NARROW = 24, 10


def layers(dtype: torch.dtype, bias: bool = True, **settings: Any) -> tuple[Linear, FusedLoraLinear]:
    """PEFT's layer and the fused one on the same weights, with float32 (float64) adapters that are not zero."""
    found = []
    for kind in (Linear, FusedLoraLinear):
        torch.manual_seed(0)
        base = nn.Linear(WIDE, NARROW, bias=bias, dtype=dtype).requires_grad_(False)
        config = peft.LoraConfig(r=4, lora_alpha=6, **settings)
        layer = kind(base, "default", config=config, r=4, lora_alpha=6)
        layer.to(torch.float64 if dtype == torch.float64 else torch.float32)
        layer.base_layer.to(dtype)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if "lora_" in name and "dropout" not in name:
                    parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) / 4)
        found.append(layer)
    return found[0], found[1]


def run(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, and the gradients of the input and of everything trained."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    out.backward(upstream.to(out.dtype))
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"out": out.detach(), "x": x.grad, **gradients}


def sample(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, WIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 5), ()])
def test_equals_peft(dtype: torch.dtype, limit: float, bias: bool, shape: tuple[int, ...]) -> None:
    plain, fused = layers(dtype, bias)
    x = sample(*shape, dtype=dtype)
    expected, actual = run(plain, x), run(fused, x)
    assert set(actual) == set(expected) == {"out", "x", "lora_A.default.weight", "lora_B.default.weight"}
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert actual[name].shape == tensor.shape
        assert distance(actual[name], tensor) < limit, name


def test_bfloat16_is_within_its_rounding_of_float32() -> None:
    """As near to the float32 result as PEFT's own arithmetic is, give or take the rounding of one product more."""
    plain, fused = layers(torch.bfloat16)
    exact, _ = layers(torch.float32)
    exact.load_state_dict(fused.state_dict())
    x = sample(200, dtype=torch.bfloat16)
    truth, theirs, ours = run(exact, x.float()), run(plain, x), run(fused, x)
    for name, tensor in truth.items():
        assert ours[name].dtype == theirs[name].dtype
        assert distance(ours[name], tensor) < 2 * distance(theirs[name], tensor) + 2**-8, name


@pytest.mark.parametrize("count", [1, 2])
def test_gradcheck(count: int) -> None:
    fused = [layers(torch.float64)[1] for _ in range(count)]
    adapters = [p for layer in fused for p in (layer.lora_A["default"].weight, layer.lora_B["default"].weight)]
    x = sample(3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: together(fused, x), (x, *adapters))


@pytest.mark.parametrize("reason", [None, "disabled"])
def test_together_is_each_alone(reason: str | None) -> None:
    """Of layers with different ranks and widths; also where one of them steps aside."""
    torch.manual_seed(0)
    alone = [layers(torch.float64, bias)[1] for bias in (True, False)]
    config = peft.LoraConfig(r=3, lora_alpha=1, init_lora_weights=False)
    alone.append(FusedLoraLinear(nn.Linear(WIDE, 5).requires_grad_(False), "default", config=config, r=3, lora_alpha=1))
    alone[2].to(torch.float64)
    if reason == "disabled":
        alone[1].enable_adapters(False)
    x = sample(6, dtype=torch.float64)

    def gradients(outputs: tuple[Tensor, ...], x: Tensor) -> list[Tensor | None]:
        parameters = [p for layer in alone for p in layer.parameters() if p.requires_grad]
        return list(torch.autograd.grad(sum(out.sin().sum() for out in outputs), [x, *parameters], allow_unused=True))

    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = tuple(layer(one) for layer in alone)
    actual = together(alone, other)
    for ours, theirs in zip([*actual, *gradients(actual, other)], [*expected, *gradients(expected, one)], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_frozen_input_gets_no_gradient_and_adapters_do() -> None:
    _, fused = layers(torch.float32)
    fused(sample(5, dtype=torch.float32)).sum().backward()
    assert fused.lora_A["default"].weight.grad is not None
    assert fused.base_layer.weight.grad is None


def is_fused(layer: FusedLoraLinear, x: Tensor) -> bool:
    node = layer(x).grad_fn
    names = set()
    while node is not None:
        names.add(type(node).__name__)
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return any("LoraLinear" in name for name in names)


def test_plain_layers_are_fused() -> None:
    """Guards the tests below: without their conditions the fused function runs."""
    for dtype in (torch.float32, torch.bfloat16):
        assert is_fused(layers(dtype)[1], sample(3, dtype=dtype).requires_grad_())


@pytest.mark.parametrize("reason", ["dropout", "dora", "disabled", "merged", "two adapters", "lora bias", "subclass"])
def test_peft_runs_where_the_fused_arithmetic_does_not_apply(reason: str) -> None:
    settings = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}, "lora bias": {"lora_bias": True}}
    plain, fused = layers(torch.float32, **settings.get(reason, {}))
    for layer in (plain, fused):
        if reason == "disabled":
            layer.enable_adapters(False)
        elif reason == "merged":
            layer.merge()
        elif reason == "two adapters":
            torch.manual_seed(5)
            second = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False)
            layer.update_layer("second", 2, lora_alpha=3, config=second)
            layer.set_adapter(["default", "second"])
        elif reason == "subclass":
            layer.base_layer.__class__ = type("Quantised", (nn.Linear,), {})
    x = sample(9, dtype=torch.float32).requires_grad_()
    assert not is_fused(fused, x)
    torch.manual_seed(4)
    expected = plain(x)
    torch.manual_seed(4)
    assert torch.equal(fused(x), expected)


def test_dropout_is_fused_in_evaluation() -> None:
    plain, fused = layers(torch.float32, lora_dropout=0.5)
    x = sample(9, dtype=torch.float32).requires_grad_()
    assert torch.allclose(fused.eval()(x), plain.eval()(x), atol=1e-6)
    assert is_fused(fused, x)


# In models


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_peft_uses_the_registered_class_everywhere(family: str, tmp_path: Path) -> None:
    fresh = add_lora(tiny_model(family, attention="eager"), LoraConfig(rank=2), seed=1)
    fresh.save_pretrained(str(tmp_path))
    loaded = load_adapter(tiny_model(family, attention="eager"), tmp_path)
    for model in (fresh, loaded):
        found = adapted(model)
        assert len(found) == 2 * 7
        assert {type(module) for module in found.values()} == {FusedLoraLinear}


def test_a_model_gives_what_peft_alone_gives_and_learns_the_same(tmp_path: Path) -> None:
    ours = add_lora(tiny_model("qwen2"), LoraConfig(rank=3, alpha=9), seed=1)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    ours.save_pretrained(str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(tiny_model("qwen2"), str(tmp_path), is_trainable=True)
    assert {type(module) for module in adapted(theirs).values()} == {Linear}
    ids = torch.tensor([[5, 9, 20, 33, 7], [3, 3, 4, 8, 50]])
    losses = [model(input_ids=ids, labels=ids).loss for model in (ours, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    actual = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert distance(actual[name], gradient) < 1e-4, name


PLAIN = """
import sys, torch, peft, transformers
from transformers import AutoModelForCausalLM
model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
torch.save(model(torch.tensor([[5, 9, 20]])).logits, sys.argv[3])
assert not any(name.startswith("tunewright") for name in sys.modules)
"""


def test_saved_adapters_are_plain_peft(tmp_path: Path) -> None:
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    model = add_lora(base, LoraConfig(rank=3), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    model.save_pretrained(str(tmp_path / "adapter"))
    saved = (tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert "unewright" not in saved
    assert "custom" not in saved
    assert json.loads(saved)["peft_type"] == "LORA"
    out = tmp_path / "logits.pt"
    subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "base"), str(tmp_path / "adapter"), str(out)],
        check=True,
        cwd=tmp_path,
    )
    with torch.no_grad():
        assert torch.allclose(torch.load(out), model(torch.tensor([[5, 9, 20]])).logits, atol=1e-5)


def test_few_rows_without_gradients_are_adapted_in_float32() -> None:
    """As answers are computed token by token; no less exact than the fused product, and no adapter is narrowed."""
    _, fused = layers(torch.bfloat16)
    x = sample(3, 1, dtype=torch.bfloat16)
    down, up = fused.lora_A["default"].weight, fused.lora_B["default"].weight
    with torch.no_grad():
        plain = nn.functional.linear(x, fused.base_layer.weight, fused.base_layer.bias)
        exact = (plain + 1.5 * (x.float() @ down.T @ up.T)).to(torch.bfloat16)
        wide = plain.double() + 1.5 * (x.double() @ down.double().T @ up.double().T)
        few = fused(x)
        (also,) = together([fused], x)
    assert few.dtype == torch.bfloat16
    assert few.shape == exact.shape
    assert torch.equal(few, exact)
    assert torch.equal(also, exact)
    narrow = fused(x).detach()
    assert not torch.equal(narrow, exact)
    assert distance(few, wide) <= distance(narrow, wide)


def test_many_rows_are_adapted_alike_with_and_without_gradients() -> None:
    _, fused = layers(torch.bfloat16)
    x = sample(FEW_ROWS + 1, dtype=torch.bfloat16)
    with torch.no_grad():
        without = fused(x)
    assert torch.equal(without, fused(x).detach())
