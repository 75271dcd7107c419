"""What a plan chooses between, and what work it is chosen for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pretrain.devices import Device, Fleet
from pretrain.shapes import Shape

# Bytes a weight. int8 and nf4 come with a scale for 64 weights (float32; for nf4 of 8 bits itself); fp8 is kept in the two
# layouts that its forward and its backward product need.
WEIGHT_BYTES = {"int8": 1 + 4 / 64, "nf4": 0.5 + 1 / 64, "fp8": 2.0}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Strategy:
    """How a job's processes hold the frozen backbone; each field is the setting of that name.

    None of them changes what is learnt beyond rounding, but `weights`.
    """

    zero_stage: int = 0
    tensor_parallel: int = 1
    offload: str = "none"
    weights: str = "full"
    checkpointing: bool = False
    dtype: str = "bfloat16"

    @property
    def bytes(self) -> int:
        """Of a number in `dtype`."""
        return DTYPE_BYTES[self.dtype]

    @property
    def linear_bytes(self) -> float:
        """Of a weight of a linear layer."""
        return WEIGHT_BYTES.get(self.weights, float(self.bytes))

    @property
    def own_layers(self) -> bool:
        """Whether a process always holds cross attention's weights, so that it makes no keys and values."""
        return self.zero_stage != 3

    def possible(self, shape: Shape, fleet: Fleet) -> bool:
        """Whether such a job can be started at all, sensible or not."""
        parallel, device = self.tensor_parallel, fleet.device
        divides = (
            fleet.devices % parallel == 0 and shape.num_heads % parallel == 0 and shape.d_ff % parallel == 0
        )
        alone = self.zero_stage == 0 and parallel == 1
        fp8 = self.dtype == "bfloat16" and (device.fp8 is not None or device.is_cpu)
        return divides and (self.weights == "full" or (alone and (self.weights != "fp8" or fp8)))

    def describe(self, devices: int) -> str:
        """In a few words, as tables and sentences name it."""
        if self.offload != "none":
            text = f"ZeRO 3, {'CPU' if self.offload == 'cpu' else 'NVMe'} offload"
        elif self.zero_stage == 3:
            text = f"ZeRO 3 over {devices}"
        elif self.tensor_parallel > 1:
            text = f"tensor parallel {self.tensor_parallel}"
            if devices > self.tensor_parallel:
                text += f" x data parallel {devices // self.tensor_parallel}"
        else:
            text = f"data parallel {devices}" if devices > 1 else "one device"
        if self.weights != "full":
            text += f", weights {self.weights}"
        return text + (", checkpointing" if self.checkpointing else "")


@dataclass(frozen=True)
class Workload:
    """The examples of a job, all processes together.

    Attributes:
        prompts: K.
        prompt_len: P.
        examples: of a step.
        tokens: encoder tokens of an example on average, prompt included.
        attended: tokens that a token sees on average: the sum of squared lengths over their sum.
        longest: tokens of the longest example.
        targets: decoder positions of an example.
        counted: of those, how many have logits.
        steps: of the run.
    """

    prompts: int = 4
    prompt_len: int = 100
    examples: int = 1024
    tokens: float = 300.0
    attended: float = 390.0
    longest: int = 1024
    targets: int = 2
    counted: int = 1
    steps: int = 22000


def strategies(
    shape: Shape, fleet: Fleet, dtype: str, weights: Sequence[str] = ("full", "fp8", "int8", "nf4")
) -> Iterator[Strategy]:
    """All ways a fleet can run a backbone, the simplest first.

    Args:
        shape: of the backbone; heads and feed-forward width must divide by the processes that share a layer.
        fleet: the devices.
        dtype: of what is not quantised.
        weights: ways to hold weights that come into question; those that the device cannot serve are left out.
    """
    device, n = fleet.device, fleet.devices
    for checkpointing in (False, True):
        for parallel in range(1, fleet.per_machine + 1):
            if n % parallel == 0 and shape.num_heads % parallel == 0 and shape.d_ff % parallel == 0:
                yield Strategy(0, parallel, checkpointing=checkpointing, dtype=dtype)
        if n > 1:
            yield Strategy(3, checkpointing=checkpointing, dtype=dtype)
        if not device.is_cpu:
            for offload in ("cpu", "nvme"):
                yield Strategy(3, offload=offload, checkpointing=checkpointing, dtype=dtype)
        for way in weights:
            if _served(way, device, dtype):
                yield Strategy(0, weights=way, checkpointing=checkpointing, dtype=dtype)


def _served(weights: str, device: Device, dtype: str) -> bool:
    """Whether weights can be held so; quantised ones need a whole backbone in each process."""
    if weights == "fp8":
        return device.fp8 is not None and dtype == "bfloat16"
    return weights != "full"
