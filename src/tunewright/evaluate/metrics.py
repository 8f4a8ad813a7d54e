"""What an evaluation counts: pure functions from arrays and token ids to numbers.

Loss numbers come from scored tokens (teacher-forced, the training mask), reply numbers from generated token ids
without their stop token. Every number's exact definition stands at its function.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.loops import loop_period

if TYPE_CHECKING:
    from tunewright.forest.score import Scores

Tokens = Sequence[int]

DISTINCT_BUDGET = 256  # tokens that distinct-n looks at, the same for every model compared


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """Teacher-forced numbers over one set of held-out sequences.

    `validation_loss` in nats per supervised token, each by its weight as in training; `bits_per_byte` over the bytes of
    the answers' text, whatever the weights; `stop_probability_median` and `stop_argmax_share` at the positions whose
    right next token ends an answer.
    The last three are None where nothing was there to measure.
    """

    validation_loss: float
    perplexity: float
    supervised_tokens: int
    bits_per_byte: float | None
    stop_probability_median: float | None
    stop_argmax_share: float | None


@dataclass(frozen=True, slots=True)
class ReplyMetrics:
    """Numbers over generated replies; rates are shares of `prompts`, lengths are in tokens."""

    prompts: int
    stops: int
    loops: int
    stop_rate: float
    truncation_rate: float
    loop_rate: float
    seq_rep_4_mean: float
    seq_rep_4_p95: float
    distinct_1: float | None
    distinct_2: float | None
    reply_tokens: dict[str, float]


def evaluate_loss(scores: "Scores", stop_ids: Collection[int], text_bytes: int | None = None) -> LossMetrics:
    """Loss, perplexity, bits per byte and stop probability of the scored tokens of a whole set.

    `text_bytes` are the UTF-8 bytes of the supervised text without special tokens; the stop tokens' nll is left out of
    bits per byte for the same reason. Raises ValueError when there is no token.
    """
    nll = scores.nll
    if len(nll) == 0:
        raise ValueError("no supervised token to evaluate")
    ends = np.isin(scores.targets, np.fromiter(stop_ids, dtype=np.int64))
    loss = scores.mean
    return LossMetrics(
        validation_loss=loss,
        perplexity=perplexity(loss),
        supervised_tokens=len(nll),
        bits_per_byte=bits_per_byte(float(nll[~ends].sum()), text_bytes) if text_bytes else None,
        stop_probability_median=float(np.median(np.exp(-nll[ends]))) if ends.any() else None,
        stop_argmax_share=float(np.mean(scores.correct[ends])) if ends.any() else None,
    )


def evaluate_replies(replies: Sequence[Tokens], stopped: Sequence[bool]) -> ReplyMetrics:
    """Rates of generated replies: token ids without the stop token, and whether each ended by one.

    Raises ValueError when there is no reply.
    """
    if not replies:
        raise ValueError("no reply to evaluate")
    count = len(replies)
    stops = sum(stopped)
    loops = sum(loop_period(reply) is not None for reply in replies)
    repetition = [seq_rep(reply, 4) for reply in replies]
    return ReplyMetrics(
        prompts=count,
        stops=stops,
        loops=loops,
        stop_rate=stops / count,
        truncation_rate=1 - stops / count,
        loop_rate=loops / count,
        seq_rep_4_mean=float(np.mean(repetition)),
        seq_rep_4_p95=float(np.percentile(repetition, 95)),
        distinct_1=distinct(replies, 1),
        distinct_2=distinct(replies, 2),
        reply_tokens=length_quantiles(replies),
    )


def perplexity(loss: float) -> float:
    """exp of the mean nll per token, weighted as in training; infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(nll: float, text_bytes: int) -> float:
    """Summed nll in nats over the UTF-8 bytes it explains, in bits: comparable across tokenizers."""
    return nll / (math.log(2) * text_bytes)


def seq_rep(ids: Tokens, n: int) -> float:
    """Share of repeated n-grams in one reply, 1 - unique / all (arXiv 1908.04319); 0 when shorter than n."""
    grams = _ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(replies: Sequence[Tokens], n: int, budget: int = DISTINCT_BUDGET) -> float | None:
    """Unique n-grams / all n-grams over a set of replies (arXiv 1510.03055).

    The number falls with the amount of text, so exactly the first `budget` tokens of the set are looked at;
    None when it holds fewer. N-grams do not cross replies.
    """
    grams: list[tuple[int, ...]] = []
    left = budget
    for reply in replies:
        grams += _ngrams(reply[:left], n)
        left -= min(left, len(reply))
    return len(set(grams)) / len(grams) if left == 0 and grams else None


def length_quantiles(replies: Sequence[Tokens]) -> dict[str, float]:
    """Median, 5th and 95th percentile and maximum of the reply lengths in tokens."""
    lengths = [len(reply) for reply in replies]
    p5, p50, p95 = (float(value) for value in np.percentile(lengths, [5, 50, 95]))
    return {"p5": p5, "p50": p50, "p95": p95, "max": float(max(lengths))}


def answer_limit(reference_lengths: Sequence[int]) -> int:
    """Token budget of a generated answer: four times the 99th percentile of the references' lengths.

    Kept between 32, so that a loop has room to show, and 512.
    """
    return int(np.clip(math.ceil(4 * float(np.percentile(reference_lengths, 99))), 32, 512))


def _ngrams(ids: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
