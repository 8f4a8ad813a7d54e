import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig, PreTrainedModel

from tests.tiny import VOCABULARY, tiny_model
from tests.tokenizers import tiny_tokenizer
from tunewright.config.schema import LoraConfig
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.model import plain_model
from tunewright.models import generate as module
from tunewright.models.adapters import add_lora
from tunewright.models.generate import Answer, generate, stream

TOKENIZER = tiny_tokenizer("chatml")
STOPS = (5, 17)
PROMPTS = [[7, 8, 9], [20, 21, 22, 23, 24, 25, 26, 27, 28], [33], [40, 41, 42, 43], [7, 8, 9, 10], [50, 3]]


def one_by_one(model: PreTrainedModel, prompt: list[int], limit: int) -> tuple[list[int], str]:
    """Greedy without cache, batch or padding: the whole sequence again for each token."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in STOPS:
            return ids[len(prompt) : -1], "stop"
    return ids[len(prompt) :], "length"


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-window", "gemma3"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_left_padded_batches_equal_one_prompt_at_a_time(family: str, batch_size: int | None) -> None:
    model = tiny_model(family).eval()
    answers = generate(model, TOKENIZER, PROMPTS, STOPS, 12, batch_size=batch_size)
    expected = [one_by_one(model, prompt, 12) for prompt in PROMPTS]
    assert [(answer.ids, answer.finish) for answer in answers] == expected
    assert all(answer.text == TOKENIZER.decode(answer.ids, skip_special_tokens=True) for answer in answers)


def test_both_ways_to_finish_occur() -> None:
    answers = generate(tiny_model().eval(), TOKENIZER, [[i] for i in range(20, 50)], STOPS, 12)
    assert {answer.finish for answer in answers} == {"stop", "length"}
    assert all(len(answer.ids) == 12 for answer in answers if answer.finish == "length")
    assert all(not set(STOPS) & set(answer.ids) for answer in answers)


def test_the_models_own_habits_do_not_leak_in() -> None:
    model = tiny_model().eval()
    expected = generate(model, TOKENIZER, PROMPTS, STOPS, 16)
    habits = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=3, repetition_penalty=5.0, eos_token_id=30, min_new_tokens=4
    )
    model.generation_config = habits
    assert generate(model, TOKENIZER, PROMPTS, STOPS, 16) == expected
    assert model.generation_config is habits
    sampled = generate(model, TOKENIZER, PROMPTS, STOPS, 16, temperature=1.0, seed=4)
    model.generation_config = GenerationConfig()
    assert generate(model, TOKENIZER, PROMPTS, STOPS, 16, temperature=1.0, seed=4) == sampled


def test_sampling_reaches_beyond_the_likeliest_fifty() -> None:
    """transformers' default of top_k = 50 would silence the rest of the vocabulary."""
    model = tiny_model().eval()
    answers = generate(model, TOKENIZER, [[9]] * 3000, (VOCABULARY - 1,), 1, temperature=50.0, batch_size=3000)
    assert len({answer.ids[0] for answer in answers if answer.ids}) > 52


def test_seed_decides_and_training_randomness_is_untouched() -> None:
    model = tiny_model().eval()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = generate(model, TOKENIZER, PROMPTS, STOPS, 16, temperature=2.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    pieces = list(stream(model, TOKENIZER, PROMPTS[0], STOPS, 16, temperature=2.0, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert generate(model, TOKENIZER, PROMPTS, STOPS, 16, temperature=2.0, seed=1) == first
    assert generate(model, TOKENIZER, PROMPTS, STOPS, 16, temperature=2.0, seed=2) != first
    assert generate(model, TOKENIZER, PROMPTS[:1], STOPS, 16, temperature=2.0, seed=1) == [pieces[-1]]


def test_in_the_middle_of_training_everything_is_put_back() -> None:
    register_forest_attention()
    expected = generate(tiny_model().eval(), TOKENIZER, PROMPTS, STOPS, 12)
    model = add_lora(tiny_model(attention=FOREST_ATTENTION), LoraConfig(dropout=0.5), seed=1).train()
    odd = model.get_submodule("base_model.model.model.layers.0")
    odd.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    assert generate(model, TOKENIZER, PROMPTS, STOPS, 12) == expected  # fresh adapters, no dropout
    assert list(stream(model, TOKENIZER, PROMPTS[0], STOPS, 12))[-1] == expected[0]
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert model.config._attn_implementation == FOREST_ATTENTION
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_speak() -> None:
    model = add_lora(tiny_model(), LoraConfig(rank=4), seed=1)
    plain = generate(model, TOKENIZER, PROMPTS, STOPS, 12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    tuned = generate(model, TOKENIZER, PROMPTS, STOPS, 12)
    assert tuned != plain
    with model.disable_adapter():
        assert generate(model, TOKENIZER, PROMPTS, STOPS, 12) == plain


class Shapes(TorchDispatchMode):
    """Shapes of all that is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        return out


def test_a_frozen_output_layer_is_not_copied_for_each_row_of_a_batch() -> None:
    model = add_lora(tiny_model(), LoraConfig(rank=4), 0)
    with Shapes() as shapes:
        generate(model, TOKENIZER, PROMPTS, STOPS, 2)
    assert (len(PROMPTS), VOCABULARY) in shapes.seen
    copies = {(len(PROMPTS), *sizes) for sizes in ((32, VOCABULARY), (VOCABULARY, 32))}
    assert not copies & shapes.seen
    output = plain_model(model).get_output_embeddings()
    assert not output._forward_pre_hooks  # what was done for the answer is undone


def test_stream_is_generate_in_pieces() -> None:
    model = tiny_model().eval()
    for prompt in PROMPTS:
        *pieces, answer = stream(model, TOKENIZER, prompt, STOPS, 20)
        assert isinstance(answer, Answer)
        assert "".join(str(piece) for piece in pieces) == answer.text
        assert [answer] == generate(model, TOKENIZER, [prompt], STOPS, 20)


def test_half_a_character_is_held_back() -> None:
    text = "灯塔 🗼 é"
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)  # characters are spread over tokens
    tokens: module.queue.Queue[int | BaseException | None] = module.queue.Queue()
    for token in [*ids, STOPS[0], None]:
        tokens.put(token)
    *pieces, answer = module._pieces(TOKENIZER, tokens, STOPS)
    assert "".join(map(str, pieces)) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in str(piece) for piece in pieces)
    assert answer == Answer(ids, text, "stop")


def test_closing_the_stream_ends_the_work() -> None:
    model = tiny_model().train()
    answers = stream(model, TOKENIZER, [9], (VOCABULARY + 5,), 400)
    next(answers)
    before = threading.active_count()
    answers.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before - 1
    assert model.training


def test_what_fails_in_the_thread_is_raised_to_the_listener() -> None:
    with pytest.raises(IndexError):
        list(stream(tiny_model(), TOKENIZER, [VOCABULARY + 100], STOPS, 5))


def test_context_limits() -> None:
    model = tiny_model().eval()
    assert [len(a.ids) for a in generate(model, TOKENIZER, [[9] * 510], (VOCABULARY + 5,), 50)] == [2]
    with pytest.raises(UsageError, match="fills the model's context of 512"):
        generate(model, TOKENIZER, [[9] * 512], STOPS, 5)
    with pytest.raises(UsageError, match="empty"):
        generate(model, TOKENIZER, [[]], STOPS, 5)
    assert generate(model, TOKENIZER, [], STOPS, 5) == []


def test_a_prompt_that_nearly_fills_the_context_cuts_no_other() -> None:
    model, never = tiny_model().eval(), (VOCABULARY + 5,)
    alone = generate(model, TOKENIZER, [[9, 9, 9]], never, 40)
    together = generate(model, TOKENIZER, [[9] * 505, [9, 9, 9], [9] * 508, [8] * 505], never, 40)
    assert [len(answer.ids) for answer in together] == [7, 40, 4, 7]
    assert [together[1]] == alone
