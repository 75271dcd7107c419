"""Attention of packed examples by torch's fused flex attention, for GPUs: scores never reach memory.

Shapes are those of the padded micro-batch and of a table of biases that ends where T5's distances no longer count, so that one
compilation serves a whole run. Flex attention has no backward on a CPU; there this computes forward only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pretrain.packed_attention import distance_bias

BLOCK = 128  # queries, and keys, of a block of the mask: the size that torch's kernels default to


def round_up(tokens: int, multiple: int) -> int:
    """The next multiple, to which a micro-batch is filled up so that few shapes are compiled."""
    return -(-tokens // multiple) * multiple


class FlexAttention:
    """Attention within each example, position bias included.

    Args:
        model: a T5 or mT5, frozen.
        lengths_B: [B] tokens of each example, end to end.
        tokens: N with what the micro-batch is filled up with, a multiple of `BLOCK`; the rest sees itself alone.
    """

    def __init__(self, model: Any, lengths_B: NDArray[np.int64], tokens: int) -> None:
        attention = model.encoder.block[0].layer[0].SelfAttention
        self.width = int(model.config.d_kv)
        # T5 tells no distances apart from here on, on either side (Raffel et al. 2020, 2.1): the table ends there.
        self.farthest = int(attention.relative_attention_max_distance)
        self.bias_HR = distance_bias(model, self.farthest + 1).contiguous()
        lengths = np.append(lengths_B, tokens - lengths_B.sum())
        device = self.bias_HR.device
        self.example_N = torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)).to(
            device, non_blocking=True
        )
        self.mask = _block_mask(lengths, device, self._same)

    def __call__(self, query_NI: Tensor, key_NI: Tensor, value_NI: Tensor) -> Tensor:
        """[N, I] mixed values; T5 does not scale its scores."""
        query, key, value = (
            flat.view(1, flat.shape[0], -1, self.width).transpose(1, 2)
            for flat in (query_NI, key_NI, value_NI)
        )
        bias_HR, farthest = self.bias_HR, self.farthest

        def biased(score: Tensor, _b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + bias_HR[head, (k - q).clamp(-farthest, farthest) + farthest]

        # Within a compiled block it is fused with it; by itself it is compiled where there is a kernel for it.
        alone = query_NI.device.type != "cpu" and not torch.compiler.is_compiling()
        fused: Any = compiled(flex_attention) if alone else flex_attention
        mixed: Tensor = fused(query, key, value, score_mod=biased, block_mask=self.mask, scale=1.0)
        return mixed.transpose(1, 2).reshape(query_NI.shape)

    def _same(self, _b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.example_N[q] == self.example_N[k]


@functools.cache
def compiled(function: Any) -> Any:
    """`function` compiled for each size of a micro-batch that comes.

    Beyond torch's own limit of 8 it would go on uncompiled, with all scores in memory.
    """
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False)


def _block_mask(lengths: NDArray[np.int64], device: torch.device, same: Callable[..., Tensor]) -> BlockMask:
    """Which blocks of keys each block of queries looks into: those of the examples that the block touches."""
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    blocks = int(bounds[-1]) // BLOCK
    firsts = np.arange(blocks) * BLOCK
    # The example of a block's first and of its last query; of equal bounds (an empty one) the later.
    low = bounds[np.searchsorted(bounds, firsts, side="right") - 1] // BLOCK
    high = -(-bounds[np.searchsorted(bounds, firsts + BLOCK - 1, side="right")] // BLOCK)
    counts = (high - low).astype(np.int32)
    indices = np.minimum(low[:, None] + np.arange(blocks), blocks - 1).astype(np.int32)
    return BlockMask.from_kv_blocks(
        torch.from_numpy(counts)[None, None].to(device, non_blocking=True),
        torch.from_numpy(indices)[None, None].to(device, non_blocking=True),
        BLOCK_SIZE=BLOCK,
        mask_mod=same,
    )
