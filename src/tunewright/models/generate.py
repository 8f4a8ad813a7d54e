"""Answers from a model: many at once, or one as a stream of text. Sampling is what the caller says and nothing else.

Works on a plain model and on one with adapters, in the middle of training too: mode, attention and random state
are put back as they were.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION
from tunewright.forest.model import attention_implementation, evaluation_mode, plain_model
from tunewright.models.load import own_attention

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 16  # fixed, not read off free memory: what is sampled then depends on the seed alone
_CACHE_BYTES = 1 << 30  # keys and values of one batch stay below this


@dataclass(slots=True)
class Answer:
    """Generated `ids` and their `text`, both without the stop token; `length` means it was cut."""

    ids: list[int]
    text: str
    finish: Literal["stop", "length"]


def generate(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[Answer]:
    """An answer for each prompt (token ids), in their order.

    Prompts of similar length share a left-padded batch of `batch_size` (default 16, fewer where the cache of keys and
    values would pass 1 GiB); one that nearly fills the context shares none, and so cuts no other answer short.
    Temperature 0 takes the likeliest token. Each batch is seeded by `seed` and its place, so the answers depend on the
    arguments only. Raises UsageError for a prompt that is empty or fills the context.
    """
    base: Any = plain_model(model)  # its generate() is beyond type checkers
    limits = [_new_tokens(base, prompt, max_new_tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    with answering(model):
        while order:
            limit = limits[order[0]]
            size = batch_size or _batch_size(base, len(prompts[order[min(_BATCH, len(order)) - 1]]) + limit)
            chosen = [index for index in order[:size] if limits[index] == limit]  # a beginning: shorter ones come first
            order = order[len(chosen) :]
            config = _config(stop_ids, limit, temperature, top_p)
            with torch.random.fork_rng(_devices(base)):
                torch.manual_seed(seed + len(answers))
                rows = base.generate(
                    **_left_padded([prompts[i] for i in chosen], base.device), generation_config=config
                )
            start = max(len(prompts[i]) for i in chosen)
            for index, row in zip(chosen, rows[:, start:].tolist(), strict=True):
                answers[index] = _answer(tokenizer, row, stop_ids)
    return [answers[index] for index in range(len(prompts))]


def stream(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str | Answer]:
    """Text of one answer piece by piece as it becomes decodable, then the Answer itself.

    The pieces joined are the answer's text. The model works in a thread; closing the iterator (or Ctrl-C in its
    consumer) ends that work at the next token. Same arguments, same answer as `generate`.
    """
    base: Any = plain_model(model)  # its generate() is beyond type checkers
    limit = _new_tokens(base, prompt, max_new_tokens)
    config = _config(stop_ids, limit, temperature, top_p)
    tokens: queue.Queue[int | BaseException | None] = queue.Queue()
    cancelled = threading.Event()

    def work() -> None:
        try:
            with torch.random.fork_rng(_devices(base)):
                torch.manual_seed(seed)
                base.generate(
                    **_left_padded([prompt], base.device),
                    generation_config=config,
                    streamer=_Tokens(tokens, len(prompt)),
                    stopping_criteria=StoppingCriteriaList([_Cancelled(cancelled)]),
                )
            tokens.put(None)
        except BaseException as error:  # noqa: BLE001  # handed over to the consumer, which raises it
            tokens.put(error)

    with answering(model):
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            yield from _pieces(tokenizer, tokens, stop_ids)
        finally:
            cancelled.set()
            worker.join()


@contextmanager
def answering(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """The model ready to answer: eval mode, an attention that knows key caches, no sampling habits of its own.

    The rows of a batch that the first token is read from lie apart, and torch would multiply each with a copy of a
    frozen output layer of its own; so they are brought together.
    """
    base = plain_model(model)
    attention, habits = base.config._attn_implementation, base.generation_config
    answers_by = own_attention(base) if attention == FOREST_ATTENTION else attention
    with attention_implementation(base, answers_by), evaluation_mode(base):
        base.generation_config = GenerationConfig()  # generate() would fill what we leave open from the model's own
        output: nn.Module = base.get_output_embeddings()
        together = output.register_forward_pre_hook(lambda _, rows: rows[0].contiguous())
        try:
            yield
        finally:
            together.remove()
            base.generation_config = habits


def _config(stop_ids: Sequence[int], limit: int, temperature: float, top_p: float) -> GenerationConfig:
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=limit, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0], use_cache=True, **sampling
    )


def _new_tokens(model: Any, prompt: Sequence[int], wanted: int) -> int:
    """How many tokens may be added to the prompt."""
    context: int = model.config.get_text_config().max_position_embeddings
    if not prompt:
        raise UsageError("A prompt is empty: there is nothing to answer")
    if len(prompt) >= context:
        raise UsageError(f"A prompt of {len(prompt):,} tokens fills the model's context of {context:,}; shorten it")
    return min(wanted, context - len(prompt))


def _batch_size(model: Any, length: int) -> int:
    config = model.config.get_text_config()
    # Models without grouped heads give no key-value count or head size; the plain width is their upper bound.
    heads = config.to_dict().get("num_key_value_heads") or config.num_attention_heads
    width = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    per_token: int = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    return max(1, min(_BATCH, _CACHE_BYTES // (per_token * length)))


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, int64 [len(prompts), longest]; the ends are aligned, padding is masked."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _devices(model: Any) -> list[torch.device]:
    """Whose random state to keep besides the CPU's."""
    return [model.device] if model.device.type == "cuda" else []


def _answer(tokenizer: "PreTrainedTokenizerBase", row: list[int], stop_ids: Sequence[int]) -> Answer:
    """The row up to its first stop token; what follows that is padding."""
    end = next((index for index, token in enumerate(row) if token in stop_ids), None)
    ids = row[:end]
    return Answer(ids, _decode(tokenizer, ids), "length" if end is None else "stop")


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Text of the tokens; a character that is not whole at the end, as where the length limit cut it, is left out."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def _pieces(
    tokenizer: "PreTrainedTokenizerBase", tokens: "queue.Queue[int | BaseException | None]", stop_ids: Sequence[int]
) -> Iterator[str | Answer]:
    """Text as tokens arrive; a character spread over several tokens is shown when its last one is there."""
    ids: list[int] = []
    shown = ""
    finish: Literal["stop", "length"] = "length"
    while (token := tokens.get()) is not None:
        if isinstance(token, BaseException):
            raise token
        if token in stop_ids:
            finish = "stop"
            continue
        ids.append(token)
        text = _decode(tokenizer, ids)
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    yield Answer(ids, shown, finish)


class _Tokens(BaseStreamer):
    """Puts each new token of one sequence into a queue; generate() sends the prompt first."""

    def __init__(self, tokens: "queue.Queue[int | BaseException | None]", prompt_length: int) -> None:
        self.tokens = tokens
        self.waiting_for_prompt = prompt_length > 0

    def put(self, value: torch.Tensor) -> None:
        if self.waiting_for_prompt:
            self.waiting_for_prompt = False
            return
        for token in value.flatten().tolist():
            self.tokens.put(token)

    def end(self) -> None:
        """Nothing to do: the thread itself says when it is done, after restoring the random state."""


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)
