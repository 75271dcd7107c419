"""The frozen backbone in host memory or on an NVMe disk while ZeRO 3 computes: DeepSpeed's `offload_param` block."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from corpora.common.errors import MachineError, UserError
from corpora.common.files import machine_errors

Offload = Literal["none", "cpu", "nvme"]
# Uses what DeepSpeed's asynchronous reads and writes are linked with.
_AIO_PROGRAM = "#include <libaio.h>\nint main() { io_context_t context = 0; return io_setup(1, &context); }\n"


def swap_folder(nvme_path: Path, out: Path) -> Path:
    """Where a run's weights lie on the disk: DeepSpeed clears its folder at each start, so each run has its own."""
    name = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:12]
    return nvme_path / f"ppt-offload-{name}"


def with_offload(
    config: dict[str, Any], offload: Offload, nvme_path: Path | None, out: Path
) -> dict[str, Any]:
    """A DeepSpeed configuration with its `offload_param` block filled in.

    Args:
        config: of ZeRO 3.
        offload: where the weights lie; `none` changes nothing.
        nvme_path: a folder on the disk, for `nvme`.
        out: the run's folder.
    """
    if offload == "none":
        return config
    block: dict[str, Any] = {"device": offload}
    if offload == "nvme":
        assert nvme_path is not None  # the settings have seen to it
        block["nvme_path"] = str(swap_folder(nvme_path, out))
    return {**config, "zero_optimization": {**config["zero_optimization"], "offload_param": block}}


def own_linears(zero: dict[str, Any]) -> dict[str, Any]:
    """A ZeRO block that leaves torch's linear layers alone unless it says otherwise.

    DeepSpeed's ZeRO 3 would replace `torch.nn.functional.linear`, for the whole process, by a function that keeps every
    input for the weight's gradient; `frozen_layers.py` has layers for frozen weights.
    """
    return {"memory_efficient_linear": False, **zero} if zero.get("stage") == 3 else zero


def fit_buffers(zero: dict[str, Any], largest: int, shards: int) -> dict[str, Any]:
    """A ZeRO block whose buffers for reading from NVMe hold a process's share of the largest weight.

    DeepSpeed's own size, 100 million numbers, is less than an 11B backbone's embedding table.

    Args:
        zero: the block `zero_optimization`.
        largest: numbers of the largest weight.
        shards: processes that ZeRO 3 shards it over.
    """
    block = zero.get("offload_param", {})
    if block.get("device") != "nvme":
        return zero
    size = -(-largest // shards) + 1  # it asks for more than the share
    return {**zero, "offload_param": {"buffer_size": size, **block}}


def check_offload(offload: Offload, nvme_path: Path | None) -> None:
    """Refuse an offload that cannot work on this machine, in seconds.

    Raises:
        UserError: `nvme_path` is no folder.
        MachineError: it cannot be written, or DeepSpeed's operator for it could not be compiled here.
    """
    if offload != "nvme":
        return
    assert nvme_path is not None
    if not nvme_path.is_dir():
        raise UserError(f"nvme_path: {nvme_path} does not exist; expected a folder on an NVMe disk")
    with machine_errors(nvme_path), tempfile.TemporaryFile(dir=nvme_path):
        pass
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise MachineError(
            "offload nvme: DeepSpeed compiles its operator with g++, which is missing: install g++"
        )
    flags, libraries = (shlex.split(os.environ.get(name, "")) for name in ("CFLAGS", "LDFLAGS"))
    command = [compiler, *flags, "-x", "c++", "-", "-o", os.devnull, *libraries, "-laio"]
    done = subprocess.run(command, input=_AIO_PROGRAM, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "libaio" in line or "laio" in line), None)
        reason = reason or (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MachineError(
            f"offload nvme: DeepSpeed reads and writes through libaio, which cannot be compiled with here "
            f"({reason.strip()[:120]}); install libaio-dev (libaio-devel), or take offload cpu"
        )


def check_dtype(zero: dict[str, Any], dtype: str, device: str) -> None:
    """Refuse weights that DeepSpeed would read back from a disk as another type.

    Args:
        zero: the block `zero_optimization`.
        dtype: of the weights, as `float32`.
        device: kind of device that computes, as `cpu`.

    Raises:
        UserError: on a CPU, weights in float32: DeepSpeed 0.19.8 makes its buffers there bfloat16 whatever they are
            (`Init._set_dtype` takes the type asked for only where float16 is supported).
    """
    block = zero.get("offload_param", {})
    if block.get("device") == "nvme" and device == "cpu" and dtype != "bfloat16":
        raise UserError(
            f"offload nvme on a CPU works in bfloat16 alone (DeepSpeed's buffers are), and the backbone is "
            f"{dtype}; expected dtype bfloat16, or offload cpu"
        )


@contextlib.contextmanager
def swap_removed(offload: Offload, nvme_path: Path | None, out: Path, first: bool) -> Iterator[None]:
    """Free the disk when the run ends: its files there are as large as the backbone, and of no use without it.

    Args:
        offload: as set.
        nvme_path: as set.
        out: the run's folder.
        first: whether this process is the one that writes on its machine.
    """
    try:
        yield
    finally:
        if offload == "nvme" and nvme_path is not None and first:
            shutil.rmtree(swap_folder(nvme_path, out), ignore_errors=True)
