"""A GGUF file becomes a plain model folder: config, safetensors, tokenizer, chat template, generation config.

transformers reads the blocks and the vocabulary; what it loses is put back here (how digits are split before merging,
Llama 3's rope scaling) or refused by name, so that a converted model never differs from its original in silence.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import UsageError
from tunewright.models.cache import Notify, build_once, cache_root, to_stderr
from tunewright.models.load import quiet

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FORMAT = "v1"  # part of the cache folder's name; a change of the conversion gets a new one

# `tokenizer.ggml.pre` values whose text is split by GPT-2's pattern alone, and those that cut out each digit first
# (llama.cpp, src/llama-vocab.cpp).
_GPT2_PATTERN = {"default", "gpt-2", "gpt2", "olmo", "jais", "mpt", "phi-2", "trillion"}
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# Turn-end tokens by which chat models finish an answer although the file names another token as its end.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>")


def gguf_folder(path: Path, notify: Notify = to_stderr) -> Path:
    """Folder of a user's GGUF file, converted on first use; path, size and time of change recognise the file."""
    stat = path.stat()
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def build(aside: Path) -> None:
        notify(f"Converting {path.name} to safetensors (once) …")
        convert_gguf(path, aside)

    return build_once(cache_root() / "models" / "gguf" / f"{path.stem}-{key}-{FORMAT}", build, notify)


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder`, which exists.

    Quantised files are stored in bfloat16: rounding to it is an order of magnitude finer than the quantisation was,
    bfloat16 training sees the same values either way, and the folder is half as large and as slow to read as in
    float32. Files of floats keep their type. Raises UsageError for what cannot be converted exactly.
    """
    reader = _open(path)
    with quiet():
        tokenizer = _read_tokenizer(path, reader)
        model = _read_model(path, reader)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.generation_config = _generation_config(model.config, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _open(path: Path) -> "GGUFReader":
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise UsageError(f"{path}: not a readable GGUF file ({error}); was the download complete?") from error


def _field(reader: "GGUFReader", key: str) -> Any:
    """Value of a metadata key; None when the file has no such key."""
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _read_model(path: Path, reader: "GGUFReader") -> "PreTrainedModel":
    """The dequantised model, free of everything that marks it as a GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    architecture = _field(reader, "general.architecture")
    rope = _rope_scaling(path, reader)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            dtype=_stored_dtype(reader),
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UsageError(
            f"{path}: transformers cannot convert a GGUF of architecture {architecture!r} ({error}); "
            "use the model's safetensors folder or hub id instead"
        ) from error
    config = type(loaded.config).from_dict(_clean_config(loaded.config.to_dict(), rope))
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    # Buffers such as the rope frequencies are not in the state dict and are not saved: they may stay on meta.
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model


def _clean_config(config: dict[str, Any], rope: dict[str, Any] | None) -> dict[str, Any]:
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "_model_name_or_path")}
    for key, value in config.items():
        if key.endswith("_eps") and isinstance(value, float):
            config[key] = float(f"{value:.6g}")  # GGUF holds 1e-05 as a float32: 9.999999747378752e-06
    if rope is not None:
        config["rope_parameters"] = {**config["rope_parameters"], **rope}
    return config


def _stored_dtype(reader: "GGUFReader") -> "torch.dtype":
    """Type of the widest tensor if that is a float, else bfloat16."""
    import torch
    from gguf import GGMLQuantizationType as Type

    widest = max(reader.tensors, key=lambda tensor: tensor.n_elements)
    floats = {Type.F32: torch.float32, Type.F16: torch.float16}
    return floats.get(widest.tensor_type, torch.bfloat16)


def _rope_scaling(path: Path, reader: "GGUFReader") -> dict[str, Any] | None:
    """Llama 3's rope scaling, which GGUF keeps as a table of divisors; other scalings are refused.

    A model that stretches its positions but is loaded without that looks fine and answers badly.
    """
    import numpy as np

    architecture = _field(reader, "general.architecture")
    table = next((tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    kind = _field(reader, f"{architecture}.rope.scaling.type")
    if table is not None:
        base = _field(reader, f"{architecture}.rope.freq_base") or 10_000.0
        rope: dict[str, Any] = {
            "rope_type": "llama3",
            "factor": float(np.max(table)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if np.allclose(_llama3_divisors(rope, base, len(table)), table, rtol=1e-4):
            return rope
    elif kind in (None, "none") or architecture == "gpt-oss":
        return None
    raise UsageError(
        f"{path}: the file scales rope positions ({kind or 'rope_freqs table'}) in a way that is lost in conversion; "
        "use the model's safetensors folder or hub id instead"
    )


def _llama3_divisors(rope: dict[str, Any], base: float, count: int) -> "np.ndarray":
    """What Llama 3.1's rope scaling divides each frequency by, [count]; the published rule with its smooth middle."""
    import numpy as np

    wavelength = 2 * np.pi * base ** (np.arange(count) / count)
    length, low, high = (rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    smooth = np.clip((length / wavelength - low) / (high - low), 0.0, 1.0)
    divisors: np.ndarray = 1.0 / ((1.0 - smooth) / rope["factor"] + smooth)
    return divisors


def _read_tokenizer(path: Path, reader: "GGUFReader") -> "PreTrainedTokenizerBase":
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UsageError(
            f"{path}: its tokenizer cannot be rebuilt ({error}); use the model's safetensors folder or hub id instead"
        ) from error
    for key in ("is_local", "local_files_only"):  # how it was loaded just now, nothing to keep in tokenizer_config.json
        tokenizer.init_kwargs.pop(key, None)
    split = _field(reader, "tokenizer.ggml.pre")
    backend = tokenizer.backend_tokenizer
    if _field(reader, "tokenizer.ggml.model") != "gpt2" or split is None or not _splits_like_gpt2(backend.to_str()):
        return tokenizer
    if split in _DIGITS_THEN_GPT2:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif split not in _GPT2_PATTERN:
        raise UsageError(
            f"{path}: transformers does not know how its tokenizer splits text ({split!r}) and would encode it "
            "differently than in training; use the model's safetensors folder or hub id instead"
        )
    return tokenizer


def _splits_like_gpt2(backend_json: str) -> bool:
    """Whether transformers fell back to GPT-2's pattern, as it does for every split it has no entry for."""
    splitter = json.loads(backend_json)["pre_tokenizer"]
    return splitter is not None and splitter["type"] == "ByteLevel" and bool(splitter["use_regex"])


def _generation_config(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> Any:
    """A generation config that names every stop id and no sampling."""
    from transformers import GenerationConfig

    template = tokenizer.chat_template or ""
    stops = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    if isinstance(config.eos_token_id, int):
        stops.add(config.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    stops |= {vocabulary[token] for token in _TURN_ENDS if token in vocabulary and token in template}
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id,
    )
