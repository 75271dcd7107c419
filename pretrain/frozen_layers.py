"""T5's layers without weights of their own to learn: each keeps for the way back only what the prompt's gradient needs.

Where `torch.compile` runs they are plain formulas, which it fuses. Elsewhere the gate has a backward of its own that keeps less,
and on a CPU the norm has one in few passes: torch's `rms_norm` takes five times as long there in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5LayerNorm

from pretrain.cpu_kernels import kernels_for


class _NormOnCpu(torch.autograd.Function):
    """x / rms(x) x weight over the last dimension; the weight learns nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        kernels = kernels_for(x, weight)
        if kernels is not None:
            normed, scale = kernels.norm(x, weight, eps)
            ctx.save_for_backward(x, weight, scale)
            return normed
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = torch.rsqrt(norm.square().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)  # x * scale is float32 at least

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        kernels = kernels_for(grads[0], x, weight)
        if kernels is not None:
            return kernels.norm_backward(grads[0], x, weight, scale), None, None
        grad = grads[0] * weight
        along = (grad * x).sum(-1, keepdim=True, dtype=scale.dtype)
        along.mul_(scale.pow(3)).div_(-x.shape[-1])
        return (grad * scale).addcmul_(x, along).to(x.dtype), None, None


class FrozenNorm(torch.nn.Module):
    """T5's layer norm: no mean, no bias. [..., D] -> [..., D]."""

    def __init__(self, weight: torch.nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normed `hidden`, in its dtype."""
        if hidden.device.type != "cpu":
            return F.rms_norm(hidden, hidden.shape[-1:], self.weight, self.variance_epsilon)
        normed: Tensor = _NormOnCpu.apply(hidden, self.weight, self.variance_epsilon)
        return normed


class _GatedGelu(torch.autograd.Function):
    """gelu(gate) x up; keeps the two, and not the gelu."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        kernels = kernels_for(gate, up)
        return kernels.gated_gelu(gate, up) if kernels else F.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        kernels = kernels_for(grad, gate, up)
        if kernels:
            return kernels.gated_gelu_backward(grad, gate, up)
        through = torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh")
        return through, F.gelu(gate, approximate="tanh").mul_(grad)


def middle_of(dense: Any, normed: Tensor) -> Tensor:
    """What the last layer of a feed-forward block reads: relu(x W) or act(x W0) x (x W1).

    Args:
        dense: T5's feed-forward module, gated or not.
        normed: [..., D].
    """
    if not hasattr(dense, "wi_0"):
        return _activated(dense, dense.wi(normed))
    gate, up = dense.wi_0(normed), dense.wi_1(normed)
    # torch.compile finds out by itself what it need not keep, and fuses the plain formula.
    if isinstance(dense.act, NewGELUActivation) and not torch.compiler.is_compiling():
        gated: Tensor = _GatedGelu.apply(gate, up)
        return gated
    return _activated(dense, gate) * up


def _activated(dense: Any, gate: Tensor) -> Tensor:
    if isinstance(dense.act, NewGELUActivation):
        return F.gelu(gate, approximate="tanh")  # the same formula in one kernel
    if isinstance(dense.act, torch.nn.ReLU):
        return F.relu_(gate)  # of a linear layer's output, which nothing else reads
    activated: Tensor = dense.act(gate)
    return activated


class _FrozenProduct(torch.autograd.Function):
    """x W^T; keeps the parameter W itself. F.linear keeps a view of it, and with the view what ZeRO 3 has gathered."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grads[0] @ weight, None


class FrozenLinear(torch.nn.Module):
    """A linear layer without bias that keeps neither its input nor a gathered weight. [..., K] -> [..., M]."""

    def __init__(self, weight_MK: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_MK

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs` times the weight."""
        outputs: Tensor = _FrozenProduct.apply(inputs, self.weight)
        return outputs


def freeze_linears(model: torch.nn.Module) -> None:
    """Put a `FrozenLinear` of the same weight in the place of each linear layer: for ZeRO 3.

    DeepSpeed's own remedy against kept weights (`memory_efficient_linear`) keeps every input instead.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear and child.bias is None:
                setattr(module, name, FrozenLinear(child.weight))


def freeze_norms(model: torch.nn.Module) -> None:
    """Put a `FrozenNorm` of the same weight in the place of each of T5's layer norms."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, T5LayerNorm):
                setattr(module, name, FrozenNorm(child.weight, child.variance_epsilon))
