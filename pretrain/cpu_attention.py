"""Self-attention over examples that lie end to end by compiled loops (`cpu_attention.cpp`), in bfloat16 on a CPU.

Each head of an example is computed where it lies, without padding and without a copy of the heads.

Shapes besides docs/notation.md: N encoder tokens of a micro-batch, prompts included; H heads, W width of a head, I = H x W.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.cpu_kernels import Kernels, address, kernels_for

BEYOND = 15  # numbers after a row of the table: the last vector of biases may reach beyond it


def compiled_attention(lengths_B: NDArray[np.int64], bias_HR: Tensor, width: int) -> CompiledAttention | None:
    """`CompiledAttention`, where there is one for this width, these numbers and this processor."""
    kernels = kernels_for(bias_HR)
    if kernels is None or width % 32 or not kernels.library.attention_available():
        return None
    return CompiledAttention(lengths_B, bias_HR, width, kernels)


class CompiledAttention:
    """Attention head by head of each example; computes in float32 what lies between bfloat16 inputs of products.

    Args:
        lengths_B: [B] encoder tokens of each example, in the order in which they lie.
        bias_HR: [H, 2 M - 1] position bias by distance, M at least the longest example; learns nothing.
        width: W, a multiple of 32.
        kernels: compiled for a processor that has these loops.
    """

    def __init__(self, lengths_B: NDArray[np.int64], bias_HR: Tensor, width: int, kernels: Kernels) -> None:
        self.library, (self.heads, self.distances), self.width = kernels.library, bias_HR.shape, width
        self.library.attention_keeps.restype = ctypes.c_int64
        self.table_HR = torch.nn.functional.pad(bias_HR.float(), (0, BEYOND)).contiguous()
        keeps = [self.library.attention_keeps(ctypes.c_int64(length)) for length in lengths_B.tolist()]
        self.starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths_B, dtype=np.int64)]))
        self.kept_at = torch.from_numpy(np.concatenate([[0], np.cumsum(keeps, dtype=np.int64)]) * self.heads)
        self.longest = int(lengths_B.max())

    def __call__(self, query_NI: Tensor, key_NI: Tensor, value_NI: Tensor) -> Tensor:
        """[N, I] mixed values; T5 does not scale its scores."""
        shape = (int(self.starts[-1]), self.heads * self.width)
        parts = [part.contiguous() for part in (query_NI, key_NI, value_NI)]
        for part in parts:  # what is no such tensor would be read as if it were
            if part.shape != shape or part.dtype != torch.bfloat16 or part.device.type != "cpu":
                raise ValueError(f"expected bfloat16 {[*shape]} on the CPU, got {part.dtype} {[*part.shape]} on {part.device}")  # fmt: skip
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            mixed: Tensor = _Compiled.apply(*parts, self)
            return mixed
        return self.mix(parts, None)

    def mix(self, parts: list[Tensor], kept: Tensor | None) -> Tensor:
        """What `parts`, queries, keys and values, mix to; probabilities go to `kept`, if it is there."""
        mixed_NI = torch.empty_like(parts[0])
        tensors = [*parts, self.table_HR, self.starts, self.kept_at, kept, mixed_NI]
        self._call(self.library.attention_forward, tensors, self.table_HR.shape[1], self.distances // 2)
        return mixed_NI

    def mix_back(self, parts: list[Tensor], grad_NI: Tensor, kept: Tensor) -> list[Tensor]:
        """The gradients of `parts` from that of what `mix` gave, which filled `kept`."""
        grads = [torch.empty_like(part) for part in parts]
        tensors = [*parts, grad_NI, self.starts, self.kept_at, kept, *grads]
        self._call(self.library.attention_backward, tensors)
        return grads

    def _call(self, function: Any, tensors: Sequence[Tensor | None], *more: int) -> None:
        numbers = (len(self.starts) - 1, self.heads, self.width, self.longest, *more)
        pointers = [None if tensor is None else address(tensor) for tensor in tensors]
        function(*pointers, *map(ctypes.c_int64, numbers))


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_NI: Tensor, key_NI: Tensor, value_NI: Tensor, by: CompiledAttention
    ) -> Tensor:
        parts = [query_NI, key_NI, value_NI]
        kept = torch.empty(2 * int(by.kept_at[-1]), dtype=torch.bfloat16)
        ctx.by = by
        ctx.save_for_backward(*parts, kept)
        return by.mix(parts, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        *parts, kept = ctx.saved_tensors
        query_NI, key_NI, value_NI = ctx.by.mix_back(parts, grads[0].contiguous(), kept)
        return query_NI, key_NI, value_NI, None
