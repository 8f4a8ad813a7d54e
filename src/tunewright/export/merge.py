"""Fold adapters into the weights they sit on, and bring every weight to the type it is stored in.

Arithmetic is float32 whatever the stored type, and layer by layer: memory stays at the model's own size.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def stored_dtype(folder: Path) -> "torch.dtype":
    """Float type in which a model folder keeps its weights: that of its largest tensor."""
    import torch
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                tensor = file.get_slice(name)
                elements = 1
                for size in tensor.get_shape():
                    elements *= size
                sizes[tensor.get_dtype()] = sizes.get(tensor.get_dtype(), 0) + elements
    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return known.get(max(sizes, key=lambda kind: sizes[kind]), torch.bfloat16)


def merged(model: "PreTrainedModel | PeftModel", dtype: "torch.dtype") -> "PreTrainedModel":
    """The model without adapters, their effect added to the weights, everything in `dtype`; changes `model` itself.

    A merged weight is round(float32(W) + scale·B·A), rounded once. Weights may be loaded in any type that holds them.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    whole: Any = model  # transformers' wrapper around to() hides its signature from type checkers
    if isinstance(model, PeftModel):
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, LoraLayer):
                    _merge(layer, dtype)
        whole = whole.base_model.unload()
    plain: PreTrainedModel = whole.to(dtype)
    return plain


def _merge(layer: Any, dtype: "torch.dtype") -> None:
    """Add the adapters of one layer to the weight below it, or to the parameter: a mixture's experts are one layer."""
    from peft.tuners.lora.layer import ParamWrapper

    weight = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    whole = weight.float()
    for name in layer.active_adapters:
        whole = whole + layer.get_delta_weight(name).float()
    weight.data = whole.to(dtype)


def strip_remote_code(folder: Path) -> None:
    """Remove `auto_map` from the JSON files: what we write loads without anyone's Python code."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if content.pop("auto_map", None) is not None:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
