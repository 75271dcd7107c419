"""Compiled loops for attention and for what lies between the matrix products on a CPU, in bfloat16.

torch has no kernel of its own there for T5's norm (its `rms_norm` is a composite of seven passes), and its softmax takes the position
bias in a pass before; `cpu_kernels.cpp` has both. `cpu_attention.cpp` has all of attention, for processors that multiply pairs of bfloat16.
They are compiled by g++ when they are first used, in a second or two, and kept in the user's cache.
Where that cannot be, computing goes on in torch's operators, and a line says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from corpora.common.progress import say

SOURCES = [Path(__file__).with_name(name) for name in ("cpu_kernels.cpp", "cpu_attention.cpp")]
# No fast-math: NaN must stay NaN, and the same bits must come out on every start.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


class Kernels:
    """The loaded library; every tensor is bfloat16, contiguous and on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def softmax_with_bias(self, scores: Tensor, bias_HR: Tensor, lengths_B: Tensor) -> None:
        """softmax(scores + bias) over keys, in place.

        Args:
            scores: [B * H, L, L].
            bias_HR: [H, 2 M - 1] biases by distance, M at least L; the middle one is that of a query's own place.
            lengths_B: [B] int64; keys from an example's own length on get no weight.
        """
        heads, width = bias_HR.shape
        self.library.softmax_with_bias(
            address(scores), address(bias_HR), address(lengths_B),
            *map(ctypes.c_int64, (len(lengths_B), heads, scores.shape[-1], width, width // 2)),
        )  # fmt: skip

    def norm(self, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x / rms(x) x weight over the last dimension, and 1 / rms(x) of each row, float32 [..., 1]."""
        out, scales = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
        self.library.norm_forward(
            address(x), address(weight_D), address(out), address(scales), *_rows(x), ctypes.c_float(eps)
        )
        return out, scales

    def norm_backward(self, grad: Tensor, x: Tensor, weight_D: Tensor, scales: Tensor) -> Tensor:
        """The gradient of `x` from that of what `norm` gave."""
        out = torch.empty_like(x)
        self.library.norm_backward(
            address(grad), address(x), address(weight_D), address(scales), address(out), *_rows(x)
        )
        return out

    def gated_gelu(self, gate: Tensor, up: Tensor) -> Tensor:
        """gelu(gate) x up, gelu by its tanh formula."""
        out = torch.empty_like(gate)
        self.library.gated_gelu_forward(
            address(gate), address(up), address(out), ctypes.c_int64(gate.numel())
        )
        return out

    def gated_gelu_backward(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of `gate` and `up` from that of what `gated_gelu` gave."""
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        self.library.gated_gelu_backward(
            *map(address, (grad, gate, up, to_gate, to_up)), ctypes.c_int64(gate.numel())
        )
        return to_gate, to_up


def address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _rows(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    width = x.shape[-1]
    return ctypes.c_int64(x.numel() // width), ctypes.c_int64(width)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The kernels, where they can compute on these tensors; None: use torch's operators."""
    if any(t.device.type != "cpu" or t.dtype != torch.bfloat16 or not t.is_contiguous() for t in tensors):
        return None
    return _loaded()


@functools.cache
def _loaded() -> Kernels | None:
    try:
        return Kernels(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error).strip().splitlines()[0]
        say(f"warning: computing without compiled kernels, up to a fifth slower in bfloat16 ({reason})")
        return None


def _built() -> Path:
    """The library for this source, compiler and processor, compiled if it is not there yet."""
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    texts = [source.read_bytes() for source in SOURCES]
    parts = (*texts, " ".join(FLAGS).encode(), version, _processor().encode())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prompt-pretraining"
    path = cache / f"cpu_kernels-{name}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Several processes may compile at once: each under a name of its own, and the last one stays.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / path.name
            command = [compiler, *FLAGS, "-o", str(made), *map(str, SOURCES)]
            subprocess.run(command, capture_output=True, check=True, timeout=120)
            os.replace(made, path)
    return path


def _processor() -> str:
    """What tells processors apart: a cache may lie on a disk that machines of several kinds share."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
