"""How long a step takes, from operations, bytes and what a device reaches of its rates."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.devices import Device, Fleet
from pretrain.shapes import Shape
from pretrain.strategy import Strategy, Workload

# What is assumed where nothing was measured; `ppt plan` prints each.
SHARE = 0.60  # of the largest matrix product's rate that a step reaches: the project's aim on a GPU
CEILING = (
    0.78  # of the vendor's figure that a matrix product reaches: 770 of 989 TFLOP/s, measured on one H200
)
FP8_GAIN = 1.4  # a step with FP8 products against one in bfloat16: the project's aim
LAUNCH = 5e-6  # seconds that the host takes to start a kernel; small models wait for that
KERNELS = 100  # kernels of a block, forward and backward
NVME = 5e9  # bytes a second that all processes of a machine read from its disk


@dataclass(frozen=True)
class Time:
    """Seconds of one micro-batch on one device.

    Attributes:
        compute: products, and kernels' starts.
        communication: sums of tensor parallel, gathering of ZeRO 3, copies from host or disk, not hidden behind products.
        hidden: communication that runs beside the products.
    """

    compute: float
    communication: float
    hidden: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the micro-batch."""
        return self.compute + self.communication


def operations_a_token(shape: Shape, work: Workload, strategy: Strategy, fused: bool) -> float:
    """Floating-point operations of one encoder token, forward and back to the prompt, its share of the decoder included.

    Args:
        shape: of the backbone.
        work: lengths.
        strategy: checkpointing goes forward twice; cross attention makes keys where it must.
        fused: whether attention computes its scores again on the way back.
    """
    forwards = 2 if strategy.checkpointing else 1
    # A frozen linear layer costs two operations a weight forward and two back; no gradient of the weight.
    linear = 2.0 * shape.num_layers * shape.encoder_block * (forwards + 1)
    scores = 2.0 * shape.num_layers * shape.inner * work.attended
    attention = scores * (2 * forwards + 4 + (1 if fused else 0))
    places = work.targets / work.tokens  # decoder positions a token
    read = 2 * shape.d_model * shape.inner  # cross attention's keys and values
    decoder = 4.0 * shape.num_decoder_layers * (shape.decoder_block - read) * places
    if strategy.own_layers:
        moved = places * 2 * (read + work.attended * shape.num_heads * shape.d_model * 2)
        decoder += 3.0 * shape.num_decoder_layers * moved
    else:
        decoder += 4.0 * shape.num_decoder_layers * read
    head = 4.0 * shape.d_model * shape.vocab_size * work.counted / work.tokens
    return linear + attention + decoder + head


def ceiling(device: Device, dtype: str) -> float | None:
    """Operations a second of the largest product, measured or assumed; None: the device cannot."""
    rate = device.rate(dtype)
    if rate is None:
        return None
    if device.measured is not None and (dtype == "bfloat16" or device.is_cpu):
        return device.measured
    return CEILING * rate


def micro_batch_time(
    shape: Shape, fleet: Fleet, strategy: Strategy, work: Workload, tokens: float, share: float = SHARE
) -> Time:
    """Seconds of a micro-batch.

    Args:
        shape: of the backbone.
        fleet: the devices.
        strategy: how they hold it.
        work: lengths.
        tokens: encoder tokens of the micro-batch.
        share: of the ceiling that products reach.
    """
    device, part = fleet.device, strategy.tensor_parallel
    top = ceiling(device, strategy.dtype)
    assert top is not None  # the chooser has seen to it
    reached = top * share * (FP8_GAIN if strategy.weights == "fp8" else 1.0)
    operations = operations_a_token(shape, work, strategy, fused=not device.is_cpu) * tokens / part
    forwards = 2 if strategy.checkpointing else 1
    layers = shape.num_layers + shape.num_decoder_layers
    read = shape.linear_weights * strategy.linear_bytes / part
    if strategy.weights in ("int8", "nf4"):
        read += shape.linear_weights * 2.0 * strategy.bytes  # given back in full, written and read
    compute = operations / reached + (forwards + 1) * read / device.bandwidth
    if not device.is_cpu:
        compute = max(compute, layers * KERNELS * LAUNCH * (forwards + 1) / 2)

    communication = hidden = 0.0
    if part > 1:
        # Two sums a block forward and two back, each way twice (n - 1) / n of the bytes.
        sums = 2 * shape.num_layers * (forwards + 1)
        communication += sums * tokens * shape.d_model * strategy.bytes * 2 * (part - 1) / part / device.link
    if strategy.zero_stage == 3:
        moved = shape.weights * strategy.bytes * (forwards + 1)
        fetched = moved * (fleet.devices - 1) / fleet.devices / fleet.link
        if strategy.offload == "cpu":
            fetched += moved / fleet.devices / device.host
        elif strategy.offload == "nvme":
            fetched += moved / fleet.machines / NVME
        # The next layers are fetched while one computes; the first cannot be.
        hidden = min(compute, fetched)
        communication += fetched - hidden + fetched / layers
    return Time(compute, communication, hidden)
