"""Write a small llama as a GGUF file the way llama.cpp's converter does, so that reading it back can be checked."""

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tests.tokenizers import tiny_tokenizer

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_llama(tokenizer: PreTrainedTokenizerBase, **changes: object) -> LlamaForCausalLM:
    settings: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def write_gguf(
    path: Path,
    pre: str = "smollm",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    rope_table: np.ndarray | None = None,
    rope_type: str | None = None,
    model: LlamaForCausalLM | None = None,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Write `path`; returns the model and tokenizer that went into it."""
    tokenizer = tiny_tokenizer("qwen2")
    model = model or tiny_llama(tokenizer)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if rope_type is not None:
        writer.add_string("llama.rope.scaling.type", rope_type)
    _add_tokenizer(writer, tokenizer, pre)
    if rope_table is not None:
        writer.add_tensor("rope_freqs.weight", rope_table.astype(np.float32))
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            _add_tensor(writer, name, tensor, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def _add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, pre: str) -> None:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _add_tensor(
    writer: GGUFWriter, name: str, tensor: torch.Tensor, config: LlamaConfig, kind: GGMLQuantizationType
) -> None:
    values = tensor.float().numpy()
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, inner = stem.split(".", 3)
        stem = f"blk.{layer}.{_NAMES[inner]}"
        if inner.endswith(("q_proj", "k_proj")):
            values = _permute(values, config.num_attention_heads if "q_proj" in inner else config.num_key_value_heads)
    else:
        stem = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}[stem]
    if values.ndim == 1 or kind == GGMLQuantizationType.F32:
        writer.add_tensor(f"{stem}.weight", np.ascontiguousarray(values))
    else:
        writer.add_tensor(f"{stem}.weight", quantize(values, kind), raw_dtype=kind)


def _permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring rows where transformers rotates halves."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
