"""Device kinds a plan knows: what each holds and how fast it is, and what this machine has."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError, nearest
from corpora.common.settings import read_yaml

KNOWN = Path(__file__).with_name("devices.yaml")
GIB = 2**30
FILL = 1024  # tokens: a GPU's micro-batch is filled up to a multiple of it for the fused kernel, so that shapes are few
NO_GPU = (
    "",
    "-1",
    "NoDevFiles",
)  # how CUDA_VISIBLE_DEVICES begins where it hides all GPUs; Slurm writes the last
NETWORK = 50e9  # bytes a second between two machines: one port of 400 Gb/s, a guess
CPU_RATE = 0.2e12  # operations a second and core, where nothing was measured; two cores with AMX gave 0.35e12 to 0.67e12


@dataclass(frozen=True)
class Device:
    """A device kind. Bytes, operations a second, bytes a second; see `devices.yaml` for what each rate means.

    Attributes:
        host_memory: bytes of host memory of a machine that holds `count` of them; None: unknown.
    """

    kind: str
    memory: float
    bf16: float | None
    fp8: float | None
    float32: float
    bandwidth: float
    link: float
    host: float
    measured: float | None = None
    host_memory: float | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether processes share the machine's own memory and cores."""
        return self.kind == "CPU"

    def rate(self, dtype: str) -> float | None:
        """Operations a second of products in `dtype`; None: the device has no units for it."""
        return self.bf16 if dtype == "bfloat16" else self.float32


@functools.cache
def known_devices() -> dict[str, Device]:
    """Device kinds by name."""
    units = {"memory": GIB, "bandwidth": 1e9, "link": 1e9, "host": 1e9}
    devices = {}
    for kind, entry in read_yaml(KNOWN).items():
        fields: dict[str, Any] = {
            name: None if value is None else value * units.get(name, 1e12)
            for name, value in entry.items()
            if name != "match"
        }
        devices[kind] = Device(kind, **fields)
    return devices


@dataclass(frozen=True)
class Fleet:
    """The devices of a job: equal ones in equal machines, one process on each.

    Attributes:
        device: the kind.
        per_machine: devices of a machine.
        machines: how many machines.
    """

    device: Device
    per_machine: int = 1
    machines: int = 1

    @property
    def devices(self) -> int:
        """Of all machines."""
        return self.per_machine * self.machines

    @property
    def link(self) -> float:
        """Bytes a second from device to device where all talk to all."""
        return self.device.link if self.machines == 1 else min(self.device.link, NETWORK / self.per_machine)

    def __str__(self) -> str:
        text = f"{self.per_machine}x{self.device.kind}"
        return f"{self.machines}x{text}" if self.machines > 1 else text


def _patterns() -> dict[str, str]:
    return {kind: str(entry["match"]) for kind, entry in read_yaml(KNOWN).items()}


def parse_fleet(text: str) -> Fleet:
    """Read a list of devices such as `8xH100-80GB`, `H200-141GB`, `2x8xA100-80GB` (two machines) or `2xCPU`.

    Returns:
        The fleet; CPU processes share this machine.

    Raises:
        UserError: it has another form, or the kind is unknown; names the nearest.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?([^x].*)", text.strip(), re.I)
    if found is None or "0" in (found[1], found[2]):
        raise UserError(f'--gpus is "{text}"; expected a number and a kind, such as 8xH100-80GB')
    machines, count = (int(found[1]), int(found[2])) if found[2] else (1, int(found[1] or 1))
    kind = found[3].strip().lower()
    if kind == "cpu":
        return Fleet(this_cpu(count), count, machines)
    by_name = {name.lower(): device for name, device in known_devices().items()}
    alike = [device for name, device in by_name.items() if name == kind or name.split("-")[0] == kind]
    if len(alike) == 1:  # `L4` says enough, `A100` does not
        return Fleet(alike[0], count, machines)
    raise UserError(
        f'--gpus names "{found[3]}"{nearest(found[3], [*known_devices(), "CPU"])} or add its line to pretrain/devices.yaml'
    )


def this_cpu(processes: int, rate: float | None = None) -> Device:
    """This machine's processor as one of `processes` equal devices.

    Args:
        processes: that share its memory and cores.
        rate: operations a second of all cores, measured; None: a guess by their number.
    """
    import psutil

    memory = float(psutil.virtual_memory().total)
    whole = rate or CPU_RATE * len(os.sched_getaffinity(0))
    share = whole / processes
    # Bandwidths hardly matter for a choice on a CPU: 20 GB/s is one channel of memory.
    return Device("CPU", memory / processes, share, None, share, 20e9, 10e9, 10e9, share, memory)


def measure_cpu(dtype: str, seconds: float = 0.5) -> float:
    """Operations a second of the largest product in `dtype` that all cores reach together, the best of several."""
    import time

    import torch

    n = 1024
    one = torch.randn(n, n).to(getattr(torch, dtype))
    best, until = 0.0, time.monotonic() + seconds
    while best == 0.0 or time.monotonic() < until:
        started = time.perf_counter()
        one @ one
        best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best


def named_device(name: str, memory: float) -> tuple[Device, str | None]:
    """The kind of a GPU that torch found.

    Args:
        name: as torch names it.
        memory: its bytes; they take the place of the kind's own.

    Returns:
        The device, and what had to be assumed, None where nothing was.
    """
    alike = [kind for kind, pattern in _patterns().items() if re.search(pattern, name, re.I)]
    by_size = sorted(alike or known_devices(), key=lambda kind: abs(known_devices()[kind].memory - memory))
    device = dataclasses.replace(known_devices()[by_size[0]], memory=memory)
    if alike:
        return device, None
    return device, f"{name} is not in devices.yaml: its rates are taken for those of a {by_size[0]}"


def this_device(on_gpu: bool, processes: int) -> tuple[Device, str | None]:
    """What one of this machine's `processes` computes on, and what had to be assumed."""
    if not on_gpu:
        return this_cpu(processes), None
    import psutil
    import torch

    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    device, assumed = named_device(found.name, float(found.total_memory))
    return dataclasses.replace(device, host_memory=float(psutil.virtual_memory().total)), assumed


def has_gpu() -> bool:
    """Whether this machine has a GPU that this process may see, asked without torch, which takes seconds to import."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None and shown.split(",")[0].strip() in NO_GPU:
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
