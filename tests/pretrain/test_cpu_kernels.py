"""The compiled loops give what float64 gives, to bfloat16's rounding, and what cannot compile computes on without them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import cpu_kernels
from pretrain.cpu_kernels import Kernels, kernels_for
from pretrain.frozen_layers import FrozenNorm
from pretrain.packed_attention import GroupedAttention, make_runs

ROUNDING = 2**-8  # half a unit in bfloat16's last place, relative


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = kernels_for(torch.zeros(1, dtype=torch.bfloat16))
    assert found is not None, "g++ is needed to test"
    return found


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=rng) * scale).bfloat16()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    beyond=st.integers(0, 9),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_softmax_adds_each_distance_its_bias_and_gives_padding_nothing(
    kernels: Kernels, lengths: list[int], heads: int, beyond: int, scale: float
) -> None:
    longest = max(lengths)
    scores = drawn(len(lengths) * heads, longest, longest, scale=scale)
    bias_HR = drawn(heads, 2 * (longest + beyond) - 1, seed=1, scale=scale)
    places = torch.arange(longest)
    bias_HLL = bias_HR.double()[:, longest + beyond - 1 + places[None, :] - places[:, None]]
    exact = scores.double().view(len(lengths), heads, longest, longest) + bias_HLL
    there_BL = places < torch.tensor(lengths)[:, None]
    exact = exact.masked_fill(~there_BL[:, None, None, :], -torch.inf).softmax(-1)
    kernels.softmax_with_bias(scores, bias_HR, torch.tensor(lengths))
    found = scores.double().view_as(exact)
    assert ((found - exact).abs() <= ROUNDING * exact + 1e-30).all()
    assert not found.masked_select(~there_BL[:, None, None, :]).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.sampled_from([1e-3, 1.0, 1e4]))
def test_norms_and_their_gradients_are_those_of_float64(rows: int, width: int, scale: float) -> None:
    x, weight, grad = drawn(rows, width, scale=scale), drawn(width, seed=1), drawn(rows, width, seed=2)
    ours = x.clone().requires_grad_()
    normed = FrozenNorm(torch.nn.Parameter(weight, requires_grad=False), 1e-6)(ours)
    normed.backward(grad)
    exact_x = x.double().requires_grad_()
    exact = exact_x * torch.rsqrt(exact_x.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    exact.backward(grad.double())
    assert ours.grad is not None and exact_x.grad is not None
    assert ((normed.double() - exact).abs() <= 1.01 * ROUNDING * exact.abs() + 1e-30).all()
    # Where terms cancel, what is left is as exact as the terms.
    terms = (grad.double() * weight.double()).abs() * torch.rsqrt(x.double().square().mean(-1, keepdim=True))
    assert ((ours.grad.double() - exact_x.grad).abs() <= ROUNDING * (exact_x.grad.abs() + 1e-4 * terms.amax(-1, keepdim=True))).all()  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([0.03, 1.0, 5.0, 300.0]))
def test_gated_gelu_and_its_gradients_are_those_of_float64(kernels: Kernels, n: int, scale: float) -> None:
    gate, up, grad = drawn(n, scale=scale), drawn(n, seed=1), drawn(n, seed=2)
    exact_gate, exact_up = gate.double().requires_grad_(), up.double().requires_grad_()
    exact = torch.nn.functional.gelu(exact_gate, approximate="tanh") * exact_up
    exact.backward(grad.double())
    assert exact_gate.grad is not None and exact_up.grad is not None
    found = kernels.gated_gelu(gate, up)
    to_gate, to_up = kernels.gated_gelu_backward(grad, gate, up)
    # Beyond -5 gelu is smaller than 1e-6 and its tail is rounded like 1.
    floor = 1e-6 * max(1.0, scale)
    for ours, theirs in ((found, exact), (to_up, exact_up.grad), (to_gate, exact_gate.grad)):
        assert ((ours.double() - theirs).abs() <= 1.02 * ROUNDING * theirs.abs() + floor).all()


def test_a_spoilt_gate_spoils_nothing_else(kernels: Kernels) -> None:
    gate, up = drawn(40), drawn(40, seed=1)
    gate[7] = torch.nan
    found = kernels.gated_gelu(gate, up)
    assert found[7].isnan() and int(found.isnan().sum()) == 1
    assert int(kernels.gated_gelu_backward(up, gate, up)[0].isnan().sum()) == 1


def test_a_spoilt_number_stays_one_and_spoils_no_other_row(kernels: Kernels) -> None:
    scores, bias_HR = drawn(2, 5, 5), drawn(2, 9, seed=1)
    scores[1, 2, 3] = torch.nan
    kernels.softmax_with_bias(scores, bias_HR, torch.tensor([5]))
    assert scores[1, 2].isnan().all() and int(scores.isnan().sum()) == 5
    x = drawn(3, 8)
    x[0, 1], x[1, 1] = torch.nan, torch.inf
    normed, _ = kernels.norm(x, torch.ones(8, dtype=torch.bfloat16), 1e-6)
    assert normed[0].isnan().all() and normed[1, 1].isnan() and normed[2].isfinite().all()


def test_the_number_of_threads_changes_no_bit(kernels: Kernels) -> None:
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        scores = drawn(12, 61, 61)
        kernels.softmax_with_bias(scores, drawn(4, 121, seed=1), torch.tensor([61, 40, 1]))
        normed, scales = kernels.norm(drawn(77, 40), drawn(40, seed=1), 1e-6)
        back = kernels.norm_backward(drawn(77, 40, seed=2), drawn(77, 40), drawn(40, seed=1), scales)
        found.append((scores, normed, back))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def attend(lengths: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """What attention mixes, and the gradients of queries, keys and values."""
    inputs = [drawn(sum(lengths), 12, seed=seed).to(dtype).requires_grad_() for seed in range(3)]
    bias_HR = drawn(3, 2 * max(lengths) - 1, seed=3).to(dtype)
    by = GroupedAttention(make_runs(np.array(lengths), 3, torch.device("cpu")), bias_HR, 4)
    assert (by.kernels is None) == (dtype != torch.bfloat16)
    mixed = by(*inputs)
    return [mixed, *torch.autograd.grad(mixed, inputs, drawn(sum(lengths), 12, seed=4).to(dtype))]


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [19, 20, 20], [1, 30]])
def test_attention_is_that_of_torchs_operators_in_float32(lengths: list[int]) -> None:
    for ours, exact in zip(attend(lengths, torch.bfloat16), attend(lengths, torch.float32), strict=True):
        assert (ours.float() - exact).norm() < 0.01 * exact.norm()


def test_other_tensors_are_left_to_torch() -> None:
    half = torch.zeros(4, 4, dtype=torch.bfloat16)
    assert kernels_for(half) is not None
    assert kernels_for(half, torch.zeros(4)) is None
    assert kernels_for(half.T[:, :2]) is None


def test_without_a_compiler_it_computes_on_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    cpu_kernels._loaded.cache_clear()
    try:
        norm = FrozenNorm(torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16), requires_grad=False), 1e-6)
        first, second = norm(drawn(3, 8)), norm(drawn(3, 8))
    finally:
        cpu_kernels._loaded.cache_clear()
    assert torch.equal(first, second)
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "compiled kernels" in line]
    assert len(lines) == 1 and "no-compiler" in lines[0]
    monkeypatch.delenv("CXX")
    torch.testing.assert_close(norm(drawn(3, 8)), first, rtol=2 * ROUNDING, atol=0)


def test_they_are_compiled_once_for_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append(command) or run(command, **options))  # fmt: skip
    first = cpu_kernels._built()
    second = cpu_kernels._built()
    assert first == second and first.parent == tmp_path / "prompt-pretraining"
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert sum("--version" not in command for command in calls) == 1
