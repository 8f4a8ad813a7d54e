"""tunewright's part of work D, preference pairs: how they are encoded, and DPO on forests of them.

Both answers of a pair stand in one forest, so their prompt is computed once. The reference is the same model with its
adapters off, on the same forest. The loop around it is the smallest that does what the peers do: there is no stage
`dpo` yet, of which all this is the arithmetic.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from peers import BETA
from stopwatch import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tunewright.config.schema import RunConfig
    from tunewright.data.examples import Encoded, FlatSet, Preference
    from tunewright.data.template import ChatTemplate
    from tunewright.forest.layout import ForestLayout


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sequence 2i is the better answer of pair i with its prompt, sequence 2i + 1 the worse one."""

    sequences: "FlatSet"
    left_out: int
    sha256: str

    def __len__(self) -> int:
        return len(self.sequences) // 2

    def order(self, config: "RunConfig") -> np.ndarray:
        """The sequences of each step, int64 [steps, 2 · batch]: pairs in the order that a run would take rows in."""
        from tunewright.data.sampler import Sampler

        train = config.train
        sampler = Sampler(len(self), train.batch_size, train.epochs, train.seed, train.max_steps)
        pairs = np.array([sampler.step(step) for step in range(sampler.total_steps)])
        return (2 * pairs[:, :, None] + np.arange(2)).reshape(len(pairs), -1)


def encode_pairs(config: "RunConfig", tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int]) -> Pairs:
    """All rows that are pairs, by the template that dialogs go through. Raises UsageError where there are none.

    Left out is what is no pair, what a template can't say, and a pair with an answer too long for `data.max_length`.
    """
    from tunewright.data.encode import make_job
    from tunewright.data.examples import EncodedSet
    from tunewright.data.formats import BadRow, for_stage, read_example
    from tunewright.data.load import find_sources, hash_files, read_sources
    from tunewright.data.pack import Chunk
    from tunewright.errors import UsageError

    job, template = make_job(config, tokenizer, stop_ids, Path.cwd())
    assert template is not None, "answers are learnt, and without a template make_job refuses that"
    sources = find_sources(config.data, Path.cwd())
    sequences: list[Encoded] = []
    left_out = 0
    for chunk in read_sources(sources, "dpo"):
        if not isinstance(chunk, Chunk):
            continue  # an account of how the file is read
        for place, row in zip(chunk.places, chunk.rows, strict=True):
            try:
                example: Any = for_stage(read_example(row, chunk.layout, config.data.system, place), "dpo")
                sequences += _encode(example, template, job.data.max_length)
            except BadRow:
                left_out += 1
    if not sequences:
        raise UsageError(f"{config.data.train[0].path}: none of {left_out} rows is a pair that can be trained on")
    files = [file.path for source in sources for file in source.files]
    return Pairs(EncodedSet.build(sequences, ()), left_out, hash_files(files))


def _encode(pair: "Preference", template: "ChatTemplate", max_length: int) -> "tuple[Encoded, Encoded]":
    """The prompt with each answer, which alone is trained and ends with its stop token. Raises BadRow."""
    from dataclasses import replace

    from tunewright.data.examples import Dialog, Encoded
    from tunewright.data.formats import BadRow
    from tunewright.data.template import Refused

    said = tuple(replace(turn, weight=0.0) for turn in pair.prompt)
    both: list[Encoded] = []
    dialogs = [Dialog((*said, answer), pair.place, pair.tools) for answer in (pair.chosen, pair.rejected)]
    for result in template.attempt_many(dialogs):
        if isinstance(result, Refused):
            raise BadRow(result.reason)
        (whole,) = result.sequences  # one trained answer is trained in one sequence
        trained = np.flatnonzero(whole.weights)
        if not len(trained) or trained[-1] - trained[0] + 1 != len(trained):
            raise BadRow("the answer is not one stretch of trained tokens")
        # What the template writes behind the stop token changes nothing before it.
        end = trained[-1] + 1
        both.append(Encoded(whole.input_ids[:end], whole.weights[:end]))
    chosen, rejected = both
    if max(len(chosen), len(rejected)) > max_length:
        raise BadRow("longer than data.max_length")
    first, other = (np.flatnonzero(one.weights)[0] for one in both)
    if first != other or not np.array_equal(chosen.input_ids[:first], rejected.input_ids[:first]):
        raise BadRow("the prompt tokenises differently before the two answers, which the peers' rows cannot say")
    return chosen, rejected


def train_pairs(
    config: "RunConfig", rows: "FlatSet", order: np.ndarray, forest_tokens: int, precomputed: bool, watch: Stopwatch
) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, its forward, backward and update timed; `precomputed` has the reference before the first."""
    import torch

    from tunewright.engine.memory import bound_product_caches, keep_freed_memory
    from tunewright.engine.tunings import load_for_training, trainable
    from tunewright.errors import RunError
    from tunewright.forest.build import build_forest
    from tunewright.forest.model import ForestModel, plain_model
    from tunewright.forest.proof import prove_forest
    from tunewright.objectives.preference import dpo_loss

    bound_product_caches()
    model: Any = load_for_training(Path(config.model.name), config, torch.__dict__[config.model.dtype], None)
    prove_forest(plain_model(model))
    forest_model = ForestModel(model)
    parameters = [parameter for _, parameter in trainable(model)]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.train.weight_decay, fused=True
    )
    keep_freed_memory()
    model.train()

    def forests(step: np.ndarray) -> "Iterator[tuple[ForestLayout, int]]":
        sequences = [rows[int(index)] for index in step]
        for group in group_pairs(sequences, forest_tokens):
            yield forest_model.layout(build_forest([sequences[index] for index in group])), len(group)

    def reference(layout: "ForestLayout", count: int) -> "Tensor":
        with torch.no_grad(), model.disable_adapter():
            return forest_model.log_probs(layout, count)

    known = [[reference(*forest) for forest in forests(step)] for step in order] if precomputed else []
    losses: list[float] = []
    computed: list[int] = []
    watch.mark()
    for number, step in enumerate(order):
        optimizer.zero_grad(set_to_none=True)
        loss, tokens = 0.0, 0
        for place, (layout, count) in enumerate(forests(step)):
            before = known[number][place] if known else reference(layout, count)
            now = forest_model.log_probs(layout, count)
            part = dpo_loss(now.view(-1, 2), before.view(-1, 2), BETA).sum() / (len(step) // 2)
            part.backward()
            loss += part.item()
            tokens += len(layout.forest)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm)
        if not torch.isfinite(norm):
            raise RunError(f"step {number + 1}: the gradient is not finite")
        optimizer.step()
        watch.mark()
        losses.append(loss)
        computed.append(tokens)
        print(f"  step {number + 1}: loss {loss:.4f}", file=sys.stderr, flush=True)
    return losses, {"forest_tokens": forest_tokens, "step_computed_tokens": computed}


def group_pairs(sequences: "Sequence[Encoded]", max_tokens: int) -> list[list[int]]:
    """Indices of sequences (0 and 1 are a pair, 2 and 3, …) whose forests have at most `max_tokens` rows each.

    Pairs stay together, however long; those that begin alike are neighbours.
    """
    from tunewright.forest.build import distinct_tokens

    alike = sorted(range(0, len(sequences), 2), key=lambda index: sequences[index].input_ids.tolist())
    groups: list[list[int]] = []
    for index in alike:
        wider = [*(groups[-1] if groups else ()), index, index + 1]
        if groups and distinct_tokens([sequences[one] for one in wider]) <= max_tokens:
            groups[-1] = wider
        else:
            groups.append([index, index + 1])
    return groups
