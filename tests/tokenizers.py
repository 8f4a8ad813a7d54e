"""Tiny fast tokenizers made in code, with special tokens and chat templates in the styles of well-known models.

tokenizer = tiny_tokenizer("llama3")     # STYLES names them all
save_tiny(tokenizer, tmp_path)           # a model folder as far as the tokenizer and config.json go
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_config

SENTENCES = [
    "The lighthouse keeper writes every ship into her book before the fog comes down.",
    "What is the name of the red boat that sails at noon? It's the Heron, and she's late again.",
    "Numbers 1, 2, 3 and 4567; code like x = f(y)[0]  # and comments.",
    "A question has an answer, an answer has an end, and the end is a token of its own.",
    "雾降下来之前，灯塔看守人把每一条船写进她的本子里。",
    "你是谁？我是守灯塔的人，今天风很大。",
    "问题要有回答，回答要有结尾。",
    "A line and a gap\n\n" * 12,  # so that two newlines become one token
]

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN2 = (
    """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help with everything.<|im_end|>\n' }}{% endif -%}
"""
    + CHATML
)

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

INST = """\
{%- set state = namespace(system='') %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set state.system = message.content + '\n\n' %}
    {%- elif message.role == 'user' %}{{ '[INST] ' + state.system + message.content + ' [/INST]' }}
        {%- set state.system = '' %}
    {%- else %}{{ ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""

MARKED = """\
{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Drops the thoughts of all answers but the last, so earlier answers change when the dialog goes on.
THINKING = """\
{% for message in messages %}{% set content = message.content %}
{%- if message.role == 'assistant' and not loop.last %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Never says where an answer ends.
ENDLESS = """\
{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""

_IM_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_IM_EXTRA = ["<|im_start|>"]
_LLAMA3_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}

STYLES: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "chatml": (CHATML, _IM_TOKENS, _IM_EXTRA),
    "qwen2": (QWEN2, _IM_TOKENS, _IM_EXTRA),
    "llama3": (LLAMA3, _LLAMA3_TOKENS, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "inst": (INST, {"bos_token": "<s>", "eos_token": "</s>"}, []),
    "marked": (MARKED, _IM_TOKENS, _IM_EXTRA),
}


def tiny_tokenizer(style: str = "chatml", chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a style; "inst" splits as SentencePiece does, the others as byte-level BPE."""
    template, named, extra = STYLES[style]
    backend = _sentencepiece_like() if style == "inst" else _byte_level()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend), extra_special_tokens=extra, **named
    )
    if "bos_token" in named:
        bos = (named["bos_token"], tokenizer.convert_tokens_to_ids(named["bos_token"]))
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]
        )
    tokenizer.chat_template = template if chat_template is None else chat_template
    return tokenizer


def save_tiny(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    **shape: Any,
) -> Path:
    """Write the tokenizer, and a model of random weights small enough for tests; returns the folder."""
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = tiny_config(family, **{"vocab_size": len(tokenizer), "tie_word_embeddings": False, **ids, **shape})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


@lru_cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"'(?:s|t|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


@lru_cache
def _sentencepiece_like() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(SENTENCES, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    state["model"].update(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer.to_str()
