"""What one device of a job holds at its peak, part by part, counted from the shape of the backbone.

What is kept for the way back is counted tensor by tensor from the forward pass (`packed_encoder.py`, `frozen_layers.py`,
`packed_attention.py`): a frozen linear layer keeps nothing, a norm its input, attention its queries, keys and values, a gated
feed-forward the two products before the gate. `tests/pretrain/test_plan_memory.py` counts the same bytes in a real pass.

Shapes besides docs/notation.md: N encoder tokens of a micro-batch, prompts included; I = heads x width of a head, F = d_ff.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pretrain.devices import FILL, GIB, Device, Fleet
from pretrain.shapes import Shape
from pretrain.strategy import Strategy, Workload

ZERO3_LIVE = 1_000_000_000  # weights that ZeRO 3 keeps gathered, as launch/zero/zero3.json says
ZERO3_PREFETCH = 50_000_000  # and gathers ahead
FILE = 5e9  # bytes of a file of weights where it cannot be looked at: transformers' shards for years


@dataclass(frozen=True)
class Kept:
    """Numbers that a block keeps for the way back, a token; how they depend on the attention that computes it.

    Attributes:
        width: x D.
        inner: x I.
        scores: x H x attended tokens.
        float_heads: x H, always float32.
        gated, plain: x F, of a gated and of a plain feed-forward.
        passing: x F, that exist for a moment on top of all that is kept, when the way back starts in a feed-forward.
        padding: share of padding in what attention keeps by head; scores have it along both sides.
    """

    width: float
    inner: float
    scores: float
    float_heads: float
    gated: float
    plain: float
    passing: float
    padding: float


# On a CPU attention is two products around a softmax, which keeps its result; a fused kernel keeps its output and the
# logarithm of each sum instead.
GROUPED = Kept(
    2, 3, 1, 0, 2, 1, 4, 0.03
)  # runs of like lengths hold up to 5 %, compiled attention whole vectors of 16
FUSED = Kept(2, 4, 0, 1, 2, 1, 4, 0)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at a job's peak.

    Attributes:
        weights: of the backbone.
        activations: of the encoder, kept for the way back, and those that pass through a layer.
        decoder: activations of the decoder and its logits.
        prompts: all prompts, their gradient, AdamW's moments and the best so far.
        buffers: of communication, and weights that ZeRO 3 has gathered or fetched.
        context: of the device's runtime and libraries, and what the allocator cannot use.
    """

    weights: float
    activations: float
    decoder: float
    prompts: float
    buffers: float
    context: float

    @property
    def allocated(self) -> float:
        """All tensors together: what `torch.cuda.max_memory_allocated` counts."""
        return self.peak - self.context

    @property
    def peak(self) -> float:
        """Everything."""
        return sum(getattr(self, field.name) for field in fields(self))


def filled(device: Device, tokens: float) -> float:
    """Tokens that a device computes for a micro-batch of so many."""
    return tokens if device.is_cpu else math.ceil(tokens / FILL) * FILL


def activation_bytes(
    shape: Shape, strategy: Strategy, work: Workload, batch_tokens: float, kept: Kept
) -> float:
    """Bytes of the encoder's activations at the peak.

    Args:
        shape: of the backbone.
        strategy: tensor parallel divides what lies inside a layer, checkpointing keeps one block's inside.
        work: how long examples are.
        batch_tokens: N.
        kept: of the attention.
    """
    part = strategy.tensor_parallel
    heads, inner, middle = shape.num_heads / part, shape.inner / part, shape.d_ff / part
    e, d = strategy.bytes, shape.d_model
    inside = e * (
        kept.inner * inner * (1 + kept.padding)
        + kept.scores * heads * work.attended * (1 + 2 * kept.padding)
        + (kept.gated if shape.gated else kept.plain) * middle
        + (kept.width - 1) * d
    )
    inside += 4 * kept.float_heads * heads + 8  # and two norms' float32 scale
    passing = e * kept.passing * middle
    blocks = 1 if strategy.checkpointing else shape.num_layers
    # Every block keeps its input; the final norm keeps its own, and the decoder reads what it gives.
    token = shape.num_layers * e * d + blocks * inside + 2 * e * d + passing
    return batch_tokens * token


def decoder_bytes(shape: Shape, strategy: Strategy, work: Workload, batch_tokens: float) -> float:
    """Bytes of the decoder's activations and of the logits with their losses.

    Args:
        shape: of the backbone.
        strategy: decides whether cross attention makes keys and values of the encoder's states.
        work: decoder positions of an example.
        batch_tokens: N.
    """
    part = strategy.tensor_parallel
    heads, inner, middle = shape.num_heads / part, shape.inner / part, shape.d_ff / part
    e, d, examples = strategy.bytes, shape.d_model, batch_tokens / work.tokens
    place = 3 * d + 4 * inner + (2 if shape.gated else 1) * middle + heads * work.attended
    block = examples * work.targets * place
    if strategy.own_layers:
        block += examples * work.targets * heads * d  # queries in the space of the encoder's states
    else:
        block += 2 * batch_tokens * inner  # keys and values of all states
    # Logits as they are, as float32, their log-probabilities and the gradients of both.
    logits = examples * work.counted * shape.vocab_size * (2 * e + 12)
    return e * shape.num_decoder_layers * block + logits


def weight_bytes(shape: Shape, strategy: Strategy, devices: int) -> float:
    """Bytes of the backbone that a device keeps."""
    linear = (shape.linear_weights - shape.read_weights) * strategy.linear_bytes
    linear += shape.read_weights * strategy.bytes
    other = float(shape.other_weights * strategy.bytes)
    if strategy.offload != "none":
        return 0.0
    if strategy.zero_stage == 3:
        return (linear + other) / devices
    return linear / strategy.tensor_parallel + other


def memory(
    shape: Shape,
    fleet: Fleet,
    strategy: Strategy,
    work: Workload,
    batch_tokens: float,
    kept: Kept | None = None,
) -> Memory:
    """What a device holds at the job's peak.

    Args:
        shape: of the backbone.
        fleet: the devices.
        strategy: how they hold it.
        work: the examples.
        batch_tokens: encoder tokens of a micro-batch.
        kept: of the attention; None: the one that runs on such a device.
    """
    device = fleet.device
    kept = kept or (GROUPED if device.is_cpu else FUSED)
    batch_tokens = filled(device, batch_tokens)
    activations = activation_bytes(shape, strategy, work, batch_tokens, kept)
    decoder = decoder_bytes(shape, strategy, work, batch_tokens)
    # float32: prompts, start, best, gradient, message, two moments; all of them small.
    prompts = 7.0 * 4 * work.prompts * work.prompt_len * shape.d_model
    buffers = 0.0
    if strategy.zero_stage == 3:
        live = min(ZERO3_LIVE + ZERO3_PREFETCH, shape.weights)
        buffers += live * strategy.bytes * (1.0 if strategy.offload != "none" else 1 - 1 / fleet.devices)
    if strategy.tensor_parallel > 1:
        buffers += 2 * batch_tokens * shape.d_model * strategy.bytes  # a copy that is summed, and its result
    if strategy.weights != "full":
        # One layer at a time is given back in full, forward or backward; FP8 copies its inputs instead.
        largest = shape.d_model * max(shape.d_ff, shape.inner)
        buffers += largest * strategy.bytes if strategy.weights != "fp8" else 2 * batch_tokens * shape.d_ff
    return Memory(
        weight_bytes(shape, strategy, fleet.devices),
        activations,
        decoder,
        prompts,
        buffers,
        context_bytes(device, fleet.devices, strategy, activations + decoder),
    )


def context_bytes(device: Device, devices: int, strategy: Strategy, passing: float) -> float:
    """Bytes of the runtime, and of what lies between tensors.

    Args:
        device: the kind.
        devices: of the job.
        strategy: checkpointing makes and frees each block twice; bitsandbytes is a library more.
        passing: bytes of what comes and goes with each micro-batch.
    """
    if device.is_cpu:
        # Python with torch, transformers and DeepSpeed; and what glibc keeps of freed pieces below 32 MB: 0.09 to 0.11 of
        # a pass, measured with the shapes of T5 small and base. Of a checkpointed pass, which is smaller, 0.4 to 0.7, and of
        # bitsandbytes 0.12 GB, measured with T5 small.
        libraries = 0.72e9 if strategy.weights in ("int8", "nf4") else 0.6e9
        return libraries + (0.5 if strategy.checkpointing else 0.10) * passing
    nccl = 0.5 * GIB if devices > 1 else 0.0  # its channels' buffers; a guess to check
    return 0.6 * GIB + nccl + 0.05 * passing  # CUDA's context and kernels; fragments: a guess to check


def host_bytes(
    shape: Shape, fleet: Fleet, strategy: Strategy, file: float | None = None
) -> tuple[float, float]:
    """Host memory of one machine: while weights load, and while the job runs.

    Args:
        shape: of the backbone.
        fleet: the devices.
        strategy: offload keeps the weights there.
        file: bytes of the largest file of weights; None: assumed.
    """
    stored = float(shape.weights * 4)
    # Files are read one after the other, and processes of a machine map the same pages; a tensor is on its way besides.
    tensor = float(max(shape.vocab_size, shape.d_ff) * shape.d_model * 4)
    loading = min(file or FILE, stored) + fleet.per_machine * tensor
    held = shape.weights * strategy.bytes / fleet.machines if strategy.offload == "cpu" else 0.0
    process = 2e9 * fleet.per_machine  # Python, libraries, maps of the corpora
    return loading + held + process, held + process
