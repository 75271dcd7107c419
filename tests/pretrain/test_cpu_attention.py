"""Compiled attention gives what float64 gives, to bfloat16's rounding, each example by itself; where it cannot be, runs serve."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from pretrain import cpu_kernels
from pretrain.cpu_attention import CompiledAttention, compiled_attention
from pretrain.packed_attention import Attend, GroupedAttention, attention_within

ROUNDING = 2**-8  # half a unit in bfloat16's last place, relative
SLACK = 1.1  # for float32's own rounding

here = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def compiled() -> None:
    if compiled_attention(np.array([1]), torch.zeros(1, 1, dtype=torch.bfloat16), 32) is None:
        pytest.skip("this processor does not multiply pairs of bfloat16, or has matrix units")


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=rng) * scale).bfloat16()


def inputs(tokens: int, inner: int, scale: float = 0.3) -> list[Tensor]:
    """Queries, keys, values, and the gradient of what they mix to."""
    return [drawn(tokens, inner, seed=seed, scale=scale if seed < 2 else 1.0) for seed in range(4)]


def made(lengths: list[int], heads: int, width: int, beyond: int = 0) -> tuple[Tensor, CompiledAttention]:
    bias_HR = drawn(heads, 2 * (max(lengths) + beyond) - 1, seed=9)
    by = compiled_attention(np.array(lengths), bias_HR, width)
    assert by is not None
    return bias_HR, by


def computed(by: Attend, parts: list[Tensor]) -> list[Tensor]:
    """What attention mixes, and the gradients of queries, keys and values."""
    *qkv, grad_NI = parts
    qkv = [part.clone().requires_grad_() for part in qkv]
    mixed_NI = by(*qkv)
    return [mixed_NI.detach(), *torch.autograd.grad(mixed_NI, qkv, grad_NI)]


def exact(parts: list[Tensor], bias_HR: Tensor, width: int) -> list[tuple[Tensor, Tensor]]:
    """The same of one example in float64, and how far rounding to bfloat16 what goes into products and comes out may take it."""
    query, key, value, grad = (part.double().view(len(part), -1, width).transpose(0, 1) for part in parts)
    places, middle = torch.arange(len(parts[0])), bias_HR.shape[1] // 2
    bias_HLL = bias_HR.double()[:, middle + places[None, :] - places[:, None]]
    weights = (query @ key.mT + bias_HLL).softmax(-1)
    weights_grad = grad @ value.mT
    scores_grad = weights * (weights_grad - (weights * weights_grad).sum(-1, keepdim=True))
    # Probabilities are rounded, thence their sum with their gradients; then the scores' gradient itself.
    off = 2 * scores_grad.abs() + weights * (weights * weights_grad.abs()).sum(-1, keepdim=True)
    pairs = [
        (weights @ value, weights @ value.abs()),
        (scores_grad @ key, off @ key.abs()),
        (scores_grad.mT @ query, off.mT @ query.abs()),
        (weights.mT @ grad, weights.mT @ grad.abs()),
    ]
    flat: Callable[[Tensor], Tensor] = lambda heads: heads.transpose(0, 1).reshape(len(parts[0]), -1)  # noqa: E731
    return [(flat(this), SLACK * ROUNDING * flat(may + this.abs()) + 1e-5) for this, may in pairs]


@here
@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    width=st.sampled_from([32, 64, 96, 128]),
    beyond=st.integers(0, 20),
    scale=st.sampled_from([0.01, 0.3, 3.0]),
)
def test_mixed_values_and_gradients_are_those_of_float64(
    lengths: list[int], heads: int, width: int, beyond: int, scale: float
) -> None:
    bias_HR, by = made(lengths, heads, width, beyond)
    parts = inputs(sum(lengths), heads * width, scale)
    ours = computed(by, parts)
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        own = [part[start : start + length] for part in parts]
        for number, (this, off) in enumerate(exact(own, bias_HR, width)):
            assert ((ours[number][start : start + length].double() - this).abs() <= off).all(), number


@here
@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", range(4))
def test_a_spoilt_number_spoils_its_example_and_no_other(spoilt: float, which: int) -> None:
    lengths = [17, 33, 40, 1]
    _, by = made(lengths, 2, 32)
    parts = inputs(sum(lengths), 64)
    clean = computed(by, parts)
    parts[which][17 + 32, 5] = spoilt  # the last token of the second
    dirty = computed(by, parts)
    for one, other in zip(dirty, clean, strict=True):
        assert torch.equal(one[:17], other[:17]) and torch.equal(one[50:], other[50:])
    inside = [one[17:50] for one in dirty]
    assert not (inside[0] if which < 3 else inside[1]).isfinite().all()
    assert any(part.isnan().any() for part in inside)


@here
def test_neither_threads_nor_neighbours_change_a_bit() -> None:
    lengths = [61, 40, 128, 1, 77]
    bias_HR, by = made(lengths, 3, 64)
    parts, before, all_found = inputs(sum(lengths), 192), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            all_found.append(computed(by, parts))
    finally:
        torch.set_num_threads(before)
    for other in all_found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(all_found[0], other, strict=True))
    alone = compiled_attention(np.array([128]), bias_HR, 64)
    assert alone is not None
    here_alone = computed(alone, [part[101:229] for part in parts])
    assert all(torch.equal(one[101:229], two) for one, two in zip(all_found[0], here_alone, strict=True))


@here
def test_probabilities_are_kept_for_the_way_back_alone() -> None:
    _, by = made([20, 35], 2, 32)
    parts, kept = inputs(55, 64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mixed_NI = by(*(part.requires_grad_() for part in parts[:3]))
        with torch.no_grad():
            again_NI = by(*parts[:3])
    # Even numbers of queries, whole vectors of keys.
    assert sorted(tensor.numel() for tensor in kept) == [55 * 64] * 3 + [2 * (20 * 32 + 36 * 48)]
    assert torch.equal(mixed_NI, again_NI)


@here
def test_tensors_that_lie_otherwise_are_the_same_to_it() -> None:
    _, by = made([20, 35], 2, 32)
    parts = inputs(55, 64)
    apart = [torch.stack([part, part], -1)[..., 0] for part in parts]
    assert not any(part.is_contiguous() for part in apart)
    for one, other in zip(computed(by, apart), computed(by, parts), strict=True):
        assert torch.equal(one, other)


@here
@pytest.mark.parametrize("wrong", [torch.zeros(55, 64), torch.zeros(54, 64, dtype=torch.bfloat16)])
def test_what_it_cannot_read_is_refused(wrong: Tensor) -> None:
    _, by = made([20, 35], 2, 32)
    with pytest.raises(ValueError, match=r"expected bfloat16 \[55, 64\] on the CPU, got"):
        by(*inputs(55, 64)[:2], wrong)


def model_of(width: int, dtype: torch.dtype) -> Any:
    config = T5Config(vocab_size=8, d_model=16, d_kv=width, d_ff=8, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(config).to(dtype)


@here
def test_other_widths_and_numbers_go_run_by_run() -> None:
    lengths_B = np.array([3, 5])
    for width, dtype, kind in (
        (64, torch.bfloat16, CompiledAttention), (32, torch.bfloat16, CompiledAttention),
        (48, torch.bfloat16, GroupedAttention), (64, torch.float32, GroupedAttention),
    ):  # fmt: skip
        assert isinstance(attention_within(model_of(width, dtype), lengths_B), kind)


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    cpu_kernels._loaded.cache_clear()
    yield
    cpu_kernels._loaded.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for an early x86-64")
@pytest.mark.parametrize("compiler", [True, False])
def test_without_a_compiler_or_such_a_processor_runs_serve_and_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled_anew: None, compiler: bool
) -> None:
    lengths_B, model = np.array([30, 47]), model_of(32, torch.bfloat16)
    parts = inputs(77, 64)
    first = attention_within(model, lengths_B)
    usual = computed(first, parts)
    cpu_kernels._loaded.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if compiler:
        flags = tuple("-march=x86-64" if flag == "-march=native" else flag for flag in cpu_kernels.FLAGS)
        monkeypatch.setattr(cpu_kernels, "FLAGS", flags)
    else:
        monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    by = attention_within(model, lengths_B)
    assert isinstance(by, GroupedAttention) and (by.kernels is not None) == compiler
    for one, other in zip(computed(by, parts), usual, strict=True):
        assert (one.float() - other.float()).norm() < 0.02 * other.float().norm()
