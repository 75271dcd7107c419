"""The frozen linear layers of a backbone in 8 or 4 bits, with a gradient for what goes in.

A prompt learns through every layer, so a quantised layer needs its backward with respect to its input, and no other.
Weights are quantised once, when they are loaded; no copy in full precision is kept.

* `int8`, `nf4`: bitsandbytes quantises blocks of weights and gives them back in the activations' dtype right before a
  product, forward and backward; products are exact. Its own 8-bit layer would keep each input for a weight's gradient
  that nobody asks for, and its 4-bit layer repacks itself under `no_grad` on some CPUs.
* `fp8`: the product itself is in FP8 on hardware that has it: weights, and for every row of activations and gradients a
  scale of its own. torchao's FP8 training keeps the weights in bfloat16, quantises them again at each step, and keeps the
  inputs, too.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import weakref
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from corpora.common.errors import UserError
from pretrain.settings import Weights

BLOCK = 64  # weights that share a scale: QLoRA's for NF4 (Dettmers et al. 2023, section 3)
FP8 = torch.float8_e4m3fn
FP8_MULTIPLE = 16  # of both sides of a weight: what torch._scaled_mm takes
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)

# The decoder's keys and values of the encoder are left whole: `t5_forward` reads their weights and never makes them.
_QUANTISED = re.compile(
    r"(encoder|decoder)\.block\.\d+\.layer\.\d+\."
    r"(SelfAttention\.[qkvo]|EncDecAttention\.[qo]|DenseReluDense\.(wi|wi_0|wi_1|wo))\.weight"
)


def is_quantised(name: str) -> bool:
    """Whether a tensor of this name is a linear layer that is quantised; embeddings, norms, biases and the head are not."""
    return _QUANTISED.fullmatch(name) is not None


def check_weights(weights: Weights, dtype: str, device: torch.device, cut: bool = False) -> None:
    """Refuse a way of holding weights that does not go with the rest, or that this machine cannot serve.

    Args:
        weights: the way.
        dtype: of what is not quantised.
        device: where they are held.
        cut: whether single weights are cut: ZeRO 3, or tensor parallel.

    Raises:
        UserError: naming what does not fit.
    """
    if weights not in get_args(Weights):
        raise UserError(f'weights is "{weights}"; expected one of {", ".join(get_args(Weights))}')
    if weights == "full":
        return
    if cut:
        raise UserError(
            f"weights {weights} cannot be cut over processes (ZeRO 3, tensor parallel); "
            "choose weights full, or ZeRO 0, where each process holds all of them"
        )
    if weights == "fp8":
        if dtype != "bfloat16":
            raise UserError(f"weights fp8 go with dtype bfloat16, not {dtype}")
        if device.type == "cuda" and (has := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
            raise UserError(
                f"weights fp8 need a GPU of compute capability 8.9 or more, this one has {has[0]}.{has[1]}; "
                "choose int8 or nf4"
            )
    elif importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"weights {weights} need bitsandbytes; install it with `pip install 'prompt-pretraining[quantise]'`"
        )


def quantised_linear(weight_MK: Tensor, weights: Weights) -> torch.nn.Module:
    """A frozen linear layer without bias from K to M features.

    Args:
        weight_MK: [M, K], on the device where it stays; let go of afterwards.
        weights: `int8`, `nf4` or `fp8`.
    """
    if weights == "fp8":
        return Fp8Linear(weight_MK)
    return BlockLinear(weight_MK, bits=8 if weights == "int8" else 4)


class BlockLinear(torch.nn.Module):
    """A linear layer whose weights are held in 8 or 4 bits and one scale for each block of 64.

    8 bits: evenly spaced, which errs less than bitsandbytes' own spacing on normal and on heavy-tailed weights.
    4 bits: NF4, its scales quantised, too (Dettmers et al. 2023).
    """

    def __init__(self, weight_MK: Tensor, bits: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_MK.shape
        self.bits = bits
        functional = _bitsandbytes()
        if bits == 8:
            code = functional.create_linear_map(signed=True, total_bits=8).to(weight_MK.device)
            packed, state = functional.quantize_blockwise(weight_MK, code=code, blocksize=BLOCK)
            held = {"scales": state.absmax, "code": state.code}
        else:
            packed, state = functional.quantize_4bit(
                weight_MK, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
            )
            second = state.state2
            held = {
                "scales": state.absmax, "offset": state.offset, "scale_scales": second.absmax, "scale_code": second.code,
            }  # fmt: skip
            self.scale_block = second.blocksize
        for name, tensor in {"packed": packed, **held}.items():
            self.register_buffer(name, tensor)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """[M, K]: the weights as they count, in `dtype`."""
        ops = torch.ops.bitsandbytes
        if self.bits == 8:
            weight_MK: Tensor = ops.dequantize_blockwise(self.packed, self.scales, self.code, BLOCK, dtype)
            return weight_MK
        scales = ops.dequantize_blockwise(
            self.scales, self.scale_scales, self.scale_code, self.scale_block, torch.float32
        )
        shape = (self.out_features, self.in_features)
        weight_MK = ops.dequantize_4bit(self.packed, scales + self.offset, BLOCK, "nf4", shape, dtype)
        return weight_MK

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., K] to [..., M]."""
        output_NM: Tensor = _BlockProduct.apply(inputs.flatten(0, -2), self)
        return output_NM if inputs.dim() == 2 else output_NM.view(*inputs.shape[:-1], -1)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"


class _BlockProduct(torch.autograd.Function):
    """inputs @ weight.T; nothing is saved: the weights are given back a second time in the backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: BlockLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(inputs, layer.weight_in(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight_in(grad.dtype), None


@functools.cache
def _bitsandbytes() -> Any:
    """bitsandbytes' functions; while it is imported it warns of kernels for inference that nothing here calls."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes.functional

    return bitsandbytes.functional


class Fp8Linear(torch.nn.Module):
    """A linear layer whose product is computed in FP8 (e4m3), forward and backward.

    Weights are quantised once, with a scale for each row, in the two layouts that the two products need (Hopper's
    kernels contract along rows only): two bytes a weight, as many as bfloat16, and no time to turn them around.
    """

    def __init__(self, weight_MK: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_MK.shape
        if self.out_features % FP8_MULTIPLE or self.in_features % FP8_MULTIPLE:
            raise UserError(
                f"weights fp8: a layer has {self.in_features} x {self.out_features} weights; FP8 products need "
                f"multiples of {FP8_MULTIPLE}: choose int8 or nf4"
            )
        forward_MK, scales_M1 = rows_to_fp8(weight_MK)
        backward_KM, scales_K1 = rows_to_fp8(weight_MK.t().contiguous())
        self.register_buffer("forward_MK", forward_MK)
        self.register_buffer("scales_1M", scales_M1.t().contiguous())
        self.register_buffer("backward_KM", backward_KM)
        self.register_buffer("scales_1K", scales_K1.t().contiguous())

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., K] bfloat16 to [..., M]."""
        fp8_NK, scales_N1 = _inputs_to_fp8(inputs)
        held = (self.forward_MK, self.scales_1M, self.backward_KM, self.scales_1K)
        output_NM: Tensor = _Fp8Product.apply(inputs.flatten(0, -2), fp8_NK, scales_N1, *held)
        return output_NM if inputs.dim() == 2 else output_NM.view(*inputs.shape[:-1], -1)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.in_features}, {self.out_features}, {FP8}"


def rows_to_fp8(values_NK: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 values [N, K] and a scale for each row [N, 1], float32; a row's largest value becomes FP8's largest."""
    largest_N1 = values_NK.abs().amax(1, keepdim=True).float()
    scales_N1 = (largest_N1 / torch.finfo(FP8).max).clamp_min(torch.finfo(torch.float32).tiny)
    return (values_NK.float() / scales_N1).to(FP8), scales_N1


def _to_fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """`rows_to_fp8` of [..., K], in one kernel instead of six where there is a compiler for the device's."""
    values_NK = values.flatten(0, -2)
    if values.is_cuda and not torch.compiler.is_compiling():
        return _compiled_rows_to_fp8()(values_NK)
    return rows_to_fp8(values_NK)


@functools.cache
def _compiled_rows_to_fp8() -> Any:
    has_compiler = importlib.util.find_spec("triton") is not None
    return torch.compile(rows_to_fp8, dynamic=True) if has_compiler else rows_to_fp8


_latest: tuple[weakref.ref[Tensor], int, tuple[Tensor, Tensor]] | None = None


def _inputs_to_fp8(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """`_to_fp8` of a layer's inputs; once where several layers take the same, as q, k and v do."""
    global _latest
    if torch.compiler.is_compiling():  # the compiler sees for itself what is computed twice
        return _to_fp8(inputs.detach())
    if _latest is None or _latest[0]() is not inputs or _latest[1] != inputs._version:
        _latest = (weakref.ref(inputs), inputs._version, _to_fp8(inputs.detach()))
    return _latest[2]


class _Fp8Product(torch.autograd.Function):
    """inputs @ weight.T in FP8; saved are the weights, nothing of the inputs."""

    @staticmethod
    def forward(ctx: Any, inputs_NK: Tensor, fp8_NK: Tensor, scales_N1: Tensor, *held: Tensor) -> Tensor:
        forward_MK, scales_1M, backward_KM, scales_1K = held
        ctx.save_for_backward(backward_KM, scales_1K)
        return _fp8_product(fp8_NK, scales_N1, forward_MK, scales_1M, inputs_NK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor | None, ...]:
        backward_KM, scales_1K = ctx.saved_tensors
        fp8_NM, scales_N1 = _to_fp8(grad_NM)
        grad_NK = _fp8_product(fp8_NM, scales_N1, backward_KM, scales_1K, grad_NM.dtype)
        return grad_NK, None, None, None, None, None, None


def _fp8_product(
    left: Tensor, scales_left: Tensor, right: Tensor, scales_right: Tensor, dtype: Any
) -> Tensor:
    """left @ right.T, scaled by row and column; sums in the tensor cores' own precision, as FP8 training does forward."""
    product: Tensor = torch._scaled_mm(
        left, right.t(), scale_a=scales_left, scale_b=scales_right, out_dtype=dtype, use_fast_accum=True
    )
    return product
