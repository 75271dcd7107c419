"""Self-attention of T5's encoder over examples that lie end to end, each seeing itself alone.

Shapes besides docs/notation.md: N encoder tokens of a micro-batch, prompts included; H heads, W width of a head, I = H x W.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.cpu_attention import compiled_attention
from pretrain.cpu_kernels import kernels_for

# Queries, keys, values, each [N, I], to what attention mixes, [N, I].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

RUN_SCORES = 1_000_000  # of all heads: with those of more examples a run leaves a core's cache
RUN_PADDING = 0.05  # largest share of a run that is padding


@dataclass(frozen=True)
class Run:
    """Neighbouring examples whose attention is computed at once, as [B, L].

    Attributes:
        start, stop: its tokens among the micro-batch's N.
        examples: B of the run.
        longest: L of the run.
        places: [stop - start] place of each token in [B * L]; None where nothing is padded.
        lengths_B: [B] int64 tokens of each example.
    """

    start: int
    stop: int
    examples: int
    longest: int
    places: Tensor | None
    lengths_B: Tensor

    def heads(self, flat_NI: Tensor, width: int) -> Tensor:
        """The run's part of [N, I] as [B * H, L, W], zero at padding; of one example, a view."""
        flat = flat_NI[self.start : self.stop]
        if self.places is not None:
            flat = flat.new_zeros(self.examples * self.longest, flat.shape[1]).index_copy_(
                0, self.places, flat
            )
        heads_BHLW = flat.view(self.examples, self.longest, -1, width).transpose(1, 2)
        return heads_BHLW.reshape(-1, self.longest, width)

    def put_product(self, left: Tensor, right: Tensor, flat_NI: Tensor) -> None:
        """Write the product of [B * H, L, S] and [B * H, S, W] into the run's part of [N, I]."""
        here, width = flat_NI[self.start : self.stop], right.shape[-1]
        if self.examples == 1:
            torch.bmm(left, right, out=here.view(self.longest, -1, width).transpose(0, 1))
            return
        heads = torch.bmm(left, right).view(self.examples, -1, self.longest, width)
        rows = heads.transpose(1, 2)
        if self.places is None:
            here.view(rows.shape).copy_(rows)
        else:
            torch.index_select(rows.reshape(-1, flat_NI.shape[1]), 0, self.places, out=here)

    def bias(self, bias_HR: Tensor) -> Tensor:
        """Bias of the run's scores, [B * H, L, L], smallest at padding, from that by distance, [H, 2 M - 1]."""
        middle = bias_HR.shape[1] // 2
        # Query i and key j are j - i apart: windows of L distances, the last one first.
        near_HR = bias_HR[:, middle + 1 - self.longest : middle + self.longest]
        bias_HLL = near_HR.unfold(1, self.longest, 1).flip(1)
        if self.examples == 1:
            return bias_HLL
        bias_BHLL = bias_HLL.expand(self.examples, *bias_HLL.shape)
        if self.places is not None:
            beyond_BL = torch.arange(self.longest, device=bias_HR.device) >= self.lengths_B[:, None]
            bias_BHLL = bias_BHLL.masked_fill(beyond_BL[:, None, None, :], -torch.inf)
        return bias_BHLL.reshape(-1, self.longest, self.longest)


def make_runs(lengths_B: NDArray[np.int64], heads: int, device: torch.device) -> list[Run]:
    """Cut examples into runs of like lengths whose scores fit a core's cache.

    Args:
        lengths_B: [B] encoder tokens of each example, in the order in which they lie; sorted ones make better runs.
        heads: H.
        device: where index tensors go.
    """
    bounds, tokens = [0], 0
    for number, length in enumerate(lengths_B.tolist()):
        first = bounds[-1]
        longest = max(length, int(lengths_B[first:number].max(initial=0)))
        size = (number + 1 - first) * longest
        if number > first and (
            heads * size * longest > RUN_SCORES or tokens + length < (1 - RUN_PADDING) * size
        ):
            bounds.append(number)
            tokens = 0
        tokens += length
    starts = np.concatenate([[0], np.cumsum(lengths_B)])
    runs = []
    for low, high in itertools.pairwise([*bounds, len(lengths_B)]):
        lengths = lengths_B[low:high]
        longest = int(lengths.max())
        there = np.arange(longest) < lengths[:, None]
        places = None
        if not there.all():
            places = torch.from_numpy(np.flatnonzero(there)).to(device, non_blocking=True)
        in_run_B = torch.from_numpy(lengths.astype(np.int64)).to(device, non_blocking=True)
        runs.append(Run(int(starts[low]), int(starts[high]), high - low, longest, places, in_run_B))
    return runs


def distance_bias(model: Any, longest: int) -> Tensor:
    """T5's position bias by distance, [H, 2 L - 1]: the first is that of a key L - 1 places before its query.

    Args:
        model: a T5 or mT5.
        longest: L.
    """
    attention = model.encoder.block[0].layer[0].SelfAttention
    embedding = attention.relative_attention_bias
    distances = torch.arange(1 - longest, longest, device=embedding.weight.device)
    buckets = attention._relative_position_bucket(
        distances,
        bidirectional=True,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: Tensor = embedding(buckets).T
    return bias


def attention_within(model: Any, lengths_B: NDArray[np.int64]) -> Attend:
    """Attention of a model's encoder within examples of the given lengths, compiled where that can be, else run by run."""
    bias_HR, width = distance_bias(model, int(lengths_B.max())).contiguous(), int(model.config.d_kv)
    compiled = compiled_attention(lengths_B, bias_HR, width)
    return compiled or GroupedAttention(make_runs(lengths_B, len(bias_HR), bias_HR.device), bias_HR, width)


class GroupedAttention:
    """Attention run by run: two batched products around a softmax, on any device.

    Args:
        runs: from `make_runs`.
        bias_HR: [H, 2 M - 1] position bias by distance, M at least the longest example; learns nothing.
        width: W.
    """

    def __init__(self, runs: list[Run], bias_HR: Tensor, width: int) -> None:
        self.runs, self.bias_HR, self.width = runs, bias_HR, width
        self.kernels = kernels_for(bias_HR)
        # Of all layers; the kernels look biases up by distance.
        self.biases = [] if self.kernels else [run.bias(bias_HR) for run in runs]

    def weights(self, number: int, query: Tensor, key: Tensor) -> Tensor:
        """What each query of run `number` gives to each key, [B * H, L, L], from [B * H, L, W] each."""
        if self.kernels is None:
            return torch.baddbmm(self.biases[number], query, key.mT).softmax(-1)
        scores = torch.bmm(query, key.mT)
        self.kernels.softmax_with_bias(scores, self.bias_HR, self.runs[number].lengths_B)
        return scores

    def __call__(self, query_NI: Tensor, key_NI: Tensor, value_NI: Tensor) -> Tensor:
        """[N, I] mixed values; T5 does not scale its scores."""
        mixed: Tensor = _Grouped.apply(query_NI, key_NI, value_NI, self)
        return mixed


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_NI: Tensor, key_NI: Tensor, value_NI: Tensor, by: GroupedAttention) -> Tensor:
        mixed_NI = torch.empty_like(query_NI)
        kept = []
        for number, run in enumerate(by.runs):
            query, key, value = (run.heads(flat, by.width) for flat in (query_NI, key_NI, value_NI))
            weights = by.weights(number, query, key)
            run.put_product(weights, value, mixed_NI)
            kept += [query, key, value, weights]
        ctx.by = by
        ctx.save_for_backward(*kept)
        return mixed_NI

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        by: GroupedAttention = ctx.by
        (grad_NI,) = grads
        query_NI, key_NI, value_NI = (torch.empty_like(grad_NI) for _ in range(3))
        kept = iter(ctx.saved_tensors)
        for run in by.runs:
            query, key, value, weights = (next(kept) for _ in range(4))
            grad = run.heads(grad_NI, by.width)
            run.put_product(weights.mT, grad, value_NI)
            scores = torch._softmax_backward_data(torch.bmm(grad, value.mT), weights, -1, weights.dtype)
            run.put_product(scores, key, query_NI)
            run.put_product(scores.mT, query, key_NI)
        return query_NI, key_NI, value_NI, None
