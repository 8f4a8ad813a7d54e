"""The `flex` backend: its blocks and its mask function show what the dense mask shows, in few compiled kernels.

Gradients of whole models are compared in the tests of law (a), compiled kernels on a GPU in tests/gpu.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention

from tests.forest.test_layout import long_sequences
from tests.tiny import random_sequences
from tunewright.forest.attention import reference_attention
from tunewright.forest.build import Forest, build_forest
from tunewright.forest.flex import BLOCK, block_list, flexible_attention, has_flex, padded
from tunewright.forest.layout import ForestLayout, best_backend

LENGTHS = (20, 60, 100, 30)


def some_forest(seed: int, count: int) -> Forest:
    return build_forest(random_sequences(seed, count, longest=60, alphabet=40))


def dense(mask: BlockMask) -> Tensor:
    """Bool [T, T] as a kernel sees it: all of the blocks listed as full, and the mask function in partial ones."""
    length = mask.seq_lengths[0]
    function = create_mask(mask.mask_mod, None, None, length, length, device="cpu")[0, 0]
    listed = torch.zeros(2, length, length, dtype=torch.bool)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    counts = (mask.kv_num_blocks, mask.full_kv_num_blocks)
    for seen, number, indices in zip(listed, counts, (mask.kv_indices, mask.full_kv_indices), strict=True):
        for block, count in enumerate(number[0, 0].tolist()):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            for other in indices[0, 0, block, :count].tolist():
                assert not bool(seen[rows, other * BLOCK].any())  # listed once
                seen[rows, other * BLOCK : (other + 1) * BLOCK] = True
    assert not bool((listed[0] & listed[1]).any())
    return (listed[0] & function) | listed[1]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), window=st.none() | st.integers(1, 70) | st.just(2**40))
def test_blocks_show_what_the_dense_mask_shows(seed: int, count: int, window: int | None) -> None:
    layout = ForestLayout(some_forest(seed, count), "cpu", "flex")
    assert torch.equal(dense(layout.block_mask(window)), layout.dense_mask(window))


def test_distant_blocks_are_left_out() -> None:
    """Of long separate sequences none sees another's blocks, and a window also hides the own distant ones."""
    sequences = random_sequences(0, count=6, longest=900, alphabet=40)
    forest = padded(build_forest(sequences))
    blocks = block_list(forest, None)
    both = blocks.partly | blocks.wholly
    assert both.sum() < 0.7 * np.tril(np.ones_like(both)).sum()
    assert blocks.wholly.any()
    narrow = block_list(forest, 8)
    assert not narrow.wholly.any()
    assert narrow.partly.sum() <= 3 * len(narrow.partly)


@pytest.mark.parametrize("count", [1, 9, 40, 80])
def test_padding_is_roots_without_a_loss(count: int) -> None:
    plain = some_forest(3, count)
    longer = padded(plain)
    rows, added = len(plain), len(longer) - len(plain)
    assert len(longer) % BLOCK == 0
    assert 0 <= added < max(BLOCK, rows / 16)
    assert padded(longer) is longer
    pairs = [(longer.input_ids, plain.input_ids), (longer.position_ids, plain.position_ids)]
    assert all(np.array_equal(long[:rows], short) for long, short in pairs)
    assert np.array_equal(longer.edge_row, plain.edge_row)
    mask = ForestLayout(longer).dense_mask()
    assert torch.equal(mask[:rows, :rows], ForestLayout(plain).dense_mask())
    assert torch.equal(mask[rows:], torch.eye(len(longer), dtype=torch.bool)[rows:])


def tensors(length: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, length, 8), (2, length, 8), (2, length, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("softcap", "with_sinks"), [(None, False), (3.0, False), (None, True)])
def test_equals_the_reference_in_float64(window: int | None, softcap: float | None, with_sinks: bool) -> None:
    layout = ForestLayout(build_forest(long_sequences()), "cpu", "flex")
    inputs = tensors(len(layout.forest), torch.float64)
    sinks = torch.linspace(-1, 2, 4, dtype=torch.float64, requires_grad=True) if with_sinks else None
    outs = [
        flexible_attention(*inputs, layout.block_mask(window), 0.4, softcap, sinks),
        reference_attention(*inputs, layout, 0.4, window, softcap, sinks),
    ]
    upstream = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaves = inputs if sinks is None else [*inputs, sinks]
    found, expected = ([out, *torch.autograd.grad(out, leaves, upstream)] for out in outs)
    for actual, exact in zip(found, expected, strict=True):
        assert torch.allclose(actual, exact, rtol=1e-11, atol=1e-12)


def test_two_kernels_serve_all_lengths_and_windows() -> None:
    """One for the first length, one for all others: a new mask function for each forest must not make a new one."""
    compilations = 0

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal compilations
        compilations += 1
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, fullgraph=True, backend=counted)
    for count in LENGTHS:
        layout = ForestLayout(some_forest(count, count), "cpu", "flex")
        query, key, value = (tensor.detach() for tensor in tensors(len(layout.forest), torch.float32))
        for window in (None, 5):
            mask = layout.block_mask(window)
            out = compiled(query[None], key[None], value[None], None, mask, 0.4, enable_gqa=True)
            expected = reference_attention(query, key, value, layout, 0.4, window)
            assert torch.allclose(out[0].transpose(0, 1), expected, atol=1e-5)
    torch._dynamo.reset()
    assert compilations == 2


def test_masks_are_built_once_per_window() -> None:
    layout = ForestLayout(some_forest(0, 20), "cpu", "flex")
    assert layout.block_mask(3) is layout.block_mask(3)
    assert layout.block_mask(3) is not layout.block_mask(None)


def test_it_is_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_backend(torch.device("cpu")) == "cpu"
    assert best_backend(torch.device("mps")) == "reference"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not has_flex(torch.device("cuda"))
    assert best_backend(torch.device("cuda")) == "reference"
