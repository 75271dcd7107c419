"""T5's forward pass over examples of mixed lengths without padding the dense work.

The tokens of a batch lie end to end, [N, D]; only the inside of attention is spread to [B, L] and gathered again. It works
on the weights of a `T5ForConditionalGeneration` (or mT5) and gives what that model gives (a test holds it to rounding), without
dropout. transformers' own forward spends about half of its time on a small model on padding and on overhead.

Shapes besides docs/notation.md: N encoder tokens of a batch, M decoder tokens of a batch, H heads, I = heads x width of a head.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

# What one more group costs, in attention scores of one head. Measured on a CPU: two groups of a 1,024-token batch
# take a quarter off forward and backward, three or more gain nothing.
GROUP_COST = 40_000
MAX_GROUPS = 8


class _Spread(torch.autograd.Function):
    """[N, ...] tokens end to end -> [B * L, ...] with padding; its gradient only gathers."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, to_padded: Tensor, to_flat: Tensor) -> Tensor:
        ctx.save_for_backward(to_flat)
        return flat.index_select(0, to_padded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Padding rows are copies of row 0 that no score sees: their gradient is zero and is left out.
        (to_flat,) = ctx.saved_tensors
        return grads[0].index_select(0, to_flat), None, None


class _Gather(torch.autograd.Function):
    """[B * L, ...] with padding -> [N, ...] end to end; the gradient of padding is zero."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, to_flat: Tensor) -> Tensor:
        ctx.save_for_backward(to_flat)
        ctx.rows = padded.shape[0]
        return padded.index_select(0, to_flat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (to_flat,) = ctx.saved_tensors
        (grad,) = grads
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, to_flat, grad), None


@dataclass
class Side:
    """One side (encoder or decoder) of a group of examples: where its tokens lie in the batch."""

    start: int  # first of its tokens in the batch
    stop: int
    examples: int  # B
    longest: int  # L or T
    to_padded: Tensor | None  # [B * L] token of each padded place; None where nothing is padded
    to_flat: Tensor | None  # [N] padded place of each token
    bias: Tensor  # [B, 1, 1, L] 0 at tokens, -inf at padding

    def spread(self, flat: Tensor) -> Tensor:
        """[N, ...] of the batch -> [B * L, ...] of this group."""
        flat = flat[self.start : self.stop]
        if self.to_padded is None or self.to_flat is None:
            return flat
        spread: Tensor = _Spread.apply(flat, self.to_padded, self.to_flat)
        return spread

    def gather(self, padded: Tensor) -> Tensor:
        """[B * L, ...] -> [N, ...] of this group."""
        if self.to_flat is None:
            return padded
        gathered: Tensor = _Gather.apply(padded, self.to_flat)
        return gathered


def make_side(lengths_B: NDArray[np.int64], start: int, device: torch.device) -> Side:
    """Lay out examples of the given lengths whose first token is number `start` of the batch."""
    examples, longest, total = len(lengths_B), int(lengths_B.max()), int(lengths_B.sum())
    present = np.arange(longest) < lengths_B[:, None]
    bias = torch.zeros(examples, 1, 1, longest)
    if total == examples * longest:
        return Side(start, start + total, examples, longest, None, None, bias.to(device))
    bias.masked_fill_(torch.from_numpy(~present)[:, None, None, :], float("-inf"))
    to_flat = np.flatnonzero(present)
    to_padded = np.zeros(examples * longest, dtype=np.int64)
    to_padded[to_flat] = np.arange(total)
    return Side(
        start,
        start + total,
        examples,
        longest,
        torch.from_numpy(to_padded).to(device),
        torch.from_numpy(to_flat).to(device),
        bias.to(device),
    )


@dataclass
class Layout:
    """How a batch's tokens are grouped for attention: one encoder and one decoder side a group."""

    groups: list[tuple[Side, Side]]


def _bounds(lengths_B: NDArray[np.int64], count: int) -> list[int]:
    """Cut examples into `count` runs of about equally many tokens; the runs' first examples and the end."""
    ends = np.cumsum(lengths_B)
    cuts = np.searchsorted(ends, np.arange(1, count) * ends[-1] / count, side="left") + 1
    return sorted({0, *cuts.tolist(), len(lengths_B)})


def _scores(lengths_B: NDArray[np.int64], bounds: list[int]) -> int:
    """Attention scores of one head over all runs, padding included."""
    return sum((high - low) * int(lengths_B[high - 1]) ** 2 for low, high in itertools.pairwise(bounds))


def make_layout(
    lengths_B: NDArray[np.int64], target_lengths_B: NDArray[np.int64], device: torch.device
) -> Layout:
    """Group examples, which stand in order of length, so that little of attention is padding.

    Args:
        lengths_B: [B] encoder tokens of each example.
        target_lengths_B: [B] decoder tokens of each example.
        device: where the index tensors go.
    """
    bounds = min(
        (_bounds(lengths_B, count) for count in range(1, min(MAX_GROUPS, len(lengths_B)) + 1)),
        key=lambda bounds: _scores(lengths_B, bounds) + GROUP_COST * len(bounds),
    )
    groups, at, target_at = [], 0, 0
    for low, high in itertools.pairwise(bounds):
        encoder = make_side(lengths_B[low:high], at, device)
        decoder = make_side(target_lengths_B[low:high], target_at, device)
        groups.append((encoder, decoder))
        at, target_at = encoder.stop, decoder.stop
    return Layout(groups)


_distances: dict[tuple[int, bool, int, int, str], Tensor] = {}


def position_bias(attention: Any, length: int, bidirectional: bool) -> Tensor:
    """T5's relative position bias, [H, L, L], with the causal mask where it is not bidirectional."""
    weight = attention.relative_attention_bias.weight
    buckets, far = attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    key = (length, bidirectional, buckets, far, str(weight.device))
    bucket_LL = _distances.get(key)
    if bucket_LL is None:
        places = torch.arange(length, device=weight.device)
        bucket_LL = T5Attention._relative_position_bucket(
            places[None, :] - places[:, None], bidirectional, buckets, far
        )
        if len(_distances) > 512:
            _distances.clear()
        _distances[key] = bucket_LL
    bias_HLL = F.embedding(bucket_LL, weight).permute(2, 0, 1)
    if not bidirectional:
        above = torch.ones(length, length, dtype=torch.bool, device=weight.device).triu(1)
        bias_HLL = bias_HLL.masked_fill(above, float("-inf"))
    return bias_HLL


def _heads(flat: Tensor, side: Side, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[N, parts * I] -> `parts` tensors [B * H, L, I / H]."""
    spread = side.spread(flat).view(side.examples, side.longest, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return spread.reshape(parts, side.examples * heads, side.longest, spread.shape[-1]).unbind(0)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, side: Side) -> Tensor:
    """Attention of [B * H, L, W] inputs with an added bias [B * H, L or 1, keys]; back to [N, I]."""
    weights = torch.softmax(torch.baddbmm(bias.to(query.dtype), query, key.mT), dim=-1, dtype=torch.float32)
    mixed = torch.bmm(weights.to(value.dtype), value)
    mixed = mixed.view(side.examples, -1, side.longest, value.shape[-1]).transpose(1, 2)
    return side.gather(mixed.reshape(side.examples * side.longest, -1))


def _norm(hidden: Tensor, layer_norm: Any) -> Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:], layer_norm.weight, layer_norm.variance_epsilon)


def _feed_forward(hidden: Tensor, layer: Any, gelu: bool) -> Tensor:
    inside, dense = _norm(hidden, layer.layer_norm), layer.DenseReluDense
    if hasattr(dense, "wi_0"):
        gate = F.linear(inside, dense.wi_0.weight)
        gate = F.gelu(gate, approximate="tanh") if gelu else F.relu(gate)
        return hidden + F.linear(gate * F.linear(inside, dense.wi_1.weight), dense.wo.weight)
    middle = F.linear(inside, dense.wi.weight)
    return hidden + F.linear(F.gelu(middle, approximate="tanh") if gelu else F.relu(middle), dense.wo.weight)


def _cat(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _self_attention(hidden: Tensor, layer: Any, sides: list[Side], biases: list[Tensor]) -> Tensor:
    attention = layer.SelfAttention
    fused = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
    flat = F.linear(_norm(hidden, layer.layer_norm), fused)
    mixed = []
    for side, bias in zip(sides, biases, strict=True):
        query, key, value = _heads(flat, side, 3, attention.n_heads)
        mixed.append(_attend(query, key, value, bias, side))
    return hidden + F.linear(_cat(mixed), attention.o.weight)


def _cross_attention(hidden: Tensor, layer: Any, encoded: Tensor, layout: Layout) -> Tensor:
    attention = layer.EncDecAttention
    heads = attention.n_heads
    queries = F.linear(_norm(hidden, layer.layer_norm), attention.q.weight)
    flat = F.linear(encoded, torch.cat([attention.k.weight, attention.v.weight]))
    mixed = []
    for encoder, decoder in layout.groups:
        (query,) = _heads(queries, decoder, 1, heads)
        key, value = _heads(flat, encoder, 2, heads)
        bias = encoder.bias.expand(-1, heads, -1, -1).reshape(-1, 1, encoder.longest)
        mixed.append(_attend(query, key, value, bias, decoder))
    return hidden + F.linear(_cat(mixed), attention.o.weight)


def _biases(stack: Any, sides: list[Side], bidirectional: bool) -> list[Tensor]:
    attention = stack.block[0].layer[0].SelfAttention
    found = []
    for side in sides:
        bias = position_bias(attention, side.longest, bidirectional) + side.bias
        found.append(bias.reshape(-1, side.longest, side.longest))
    return found


def _is_gelu(model: Any) -> bool:
    name = model.config.dense_act_fn
    if name not in ("gelu_new", "gelu", "relu"):
        raise ValueError(f"feed-forward activation {name} is not supported; expected relu or gelu")
    return bool(name != "relu")


def encode(model: Any, input_ids_N: Tensor, layout: Layout) -> Tensor:
    """The encoder's output, [N, D], after its final norm."""
    stack, gelu = model.encoder, _is_gelu(model)
    sides = [encoder for encoder, _ in layout.groups]
    biases = _biases(stack, sides, True)
    hidden = F.embedding(input_ids_N, model.shared.weight)
    for block in stack.block:
        hidden = _self_attention(hidden, block.layer[0], sides, biases)
        hidden = _feed_forward(hidden, block.layer[1], gelu)
    return _norm(hidden, stack.final_layer_norm)


def decode(model: Any, encoded_ND: Tensor, decoder_ids_M: Tensor, layout: Layout) -> Tensor:
    """The decoder's output, [M, D], after its final norm."""
    stack, gelu = model.decoder, _is_gelu(model)
    sides = [decoder for _, decoder in layout.groups]
    biases = _biases(stack, sides, False)
    hidden = F.embedding(decoder_ids_M, model.shared.weight)
    for block in stack.block:
        hidden = _self_attention(hidden, block.layer[0], sides, biases)
        hidden = _cross_attention(hidden, block.layer[1], encoded_ND, layout)
        hidden = _feed_forward(hidden, block.layer[2], gelu)
    return _norm(hidden, stack.final_layer_norm)


def head(model: Any, hidden: Tensor) -> Tensor:
    """Vocabulary logits [..., V] of decoder (or encoder) outputs, with the scaling of a tied head."""
    if model.config.scale_decoder_outputs:
        hidden = hidden * (model.config.d_model**-0.5)
    return F.linear(hidden, model.lm_head.weight)
