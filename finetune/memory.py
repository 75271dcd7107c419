"""The most memory that this process has held since it began to tune: of the GPU, or of the machine where there is none."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
from pathlib import Path

import torch

from pretrain.backbone import Backbone
from pretrain.devices import FILL
from pretrain.plan_memory import FUSED, activation_bytes, decoder_bytes
from pretrain.shapes import shape_of_config
from pretrain.strategy import Strategy, Workload

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc: writing it sets VmHWM back to what is held now (Linux 4.0)


def begin_peak(device: torch.device) -> None:
    """Forget what was held before. Where the system cannot, the peak is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    _trim()
    with contextlib.suppress(OSError):
        RESET.write_text(RESET_PEAK)


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak since `begin_peak`: allocated on the GPU, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        if found:
            return 1024 * int(found[1])
    return (
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )  # macOS counts bytes; no run was made there


def give_back_memory() -> None:
    """Free what nothing refers to any more, and let go of what torch and the C library keep of it."""
    gc.collect()  # engines and modules refer to themselves
    _trim()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _trim() -> None:
    """Give back to the system what the C library keeps (see `keep_freed_memory`). Elsewhere than under glibc nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


MOST_TOKENS = 16384  # of a micro-batch on a GPU; more fill no kernel better
LONG = 512  # encoder tokens of a long example: as many attention scores has each of its tokens and heads
SHARE = 0.8  # of the free memory; the rest is for what comes and goes, and for long examples' attention


def fitting_tokens(backbone: Backbone, free: float) -> int:
    """Encoder tokens of a micro-batch whose way back fits a GPU's free memory, by the numbers of `ppt plan`.

    Args:
        backbone: loaded there.
        free: bytes.

    Returns:
        A multiple of 1,024, at least one.
    """
    shape = shape_of_config(backbone.model.config.to_dict(), backbone.name)
    strategy = Strategy(dtype=str(backbone.model.dtype).removeprefix("torch."))
    work = Workload()
    token = activation_bytes(shape, strategy, work, 1.0, FUSED) + decoder_bytes(shape, strategy, work, 1.0)
    return min(MOST_TOKENS, max(FILL, int(SHARE * free / token) // FILL * FILL))


def training_tokens(backbone: Backbone, free: float) -> int:
    """Encoder tokens of a micro-batch of full tuning that fit a GPU's free memory.

    A layer that trains keeps its inputs and, where padding is left out, the heads in two orders: more than the frozen
    one that `ppt plan` counts.

    Args:
        backbone: that trains.
        free: bytes, without what its gradients and its optimiser will take.

    Returns:
        A multiple of 256, at least one.
    """
    shape = backbone.model.config
    inner = shape.num_heads * shape.d_kv
    numbers = 10 * shape.d_model + 12 * inner + 4 * shape.d_ff + 3 * shape.num_heads * LONG
    token = shape.num_layers * numbers * backbone.model.dtype.itemsize
    return min(MOST_TOKENS, max(256, int(SHARE * free / token) // 256 * 256))
