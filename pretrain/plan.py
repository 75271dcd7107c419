"""Memory and time of every way to run a job, before it starts; which one to take, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from corpora.common.errors import UserError
from pretrain.devices import FILL, GIB, Device, Fleet
from pretrain.plan_memory import Memory, host_bytes, memory
from pretrain.plan_time import SHARE, Time, ceiling, micro_batch_time
from pretrain.shapes import Shape
from pretrain.strategy import Strategy, Workload, strategies

CPU_BATCH = 8192  # tokens: larger micro-batches leave a core's caches and gain nothing
GPU_BATCH = 131072
SMALLEST = 1024
SLACK = 1.05  # steps differ in length: a budget holds a little more than the average step needs
EVEN = 0.03  # of the rate: what a larger micro-batch must gain to be worth its memory
SIMPLER = 0.05  # of the rate: what a less simple strategy must gain
OFFLOAD = (
    0.15  # of the rate: what weights outside the devices must gain, whose copies hide behind products at best
)
FREE = 0.97  # of a device's memory that a plan may fill


@dataclass(frozen=True)
class Prediction:
    """One strategy at one size of micro-batch.

    Attributes:
        strategy: the strategy.
        fleet: on which devices.
        batch_tokens: the budget of a micro-batch.
        memory: of a device at its peak.
        host_loading, host_running: bytes of a machine's memory.
        micro_batch: seconds of one.
        step: seconds of one update.
        tokens_per_second: of all devices together.
        hours: of the whole run.
        why_not: what stands against it; None where it fits.
    """

    strategy: Strategy
    fleet: Fleet
    batch_tokens: int
    memory: Memory
    host_loading: float
    host_running: float
    micro_batch: Time
    step: float
    tokens_per_second: float
    hours: float
    why_not: str | None

    @property
    def fits(self) -> bool:
        """Whether the job runs."""
        return self.why_not is None

    @property
    def name(self) -> str:
        """The strategy in a few words."""
        return self.strategy.describe(self.fleet.devices)

    def settings(self) -> dict[str, Any]:
        """The settings of a run that say it."""
        chosen = asdict(self.strategy)
        return {**chosen, "batch_tokens": self.batch_tokens}

    def as_json(self) -> dict[str, Any]:
        """For a program to read."""
        return {
            "name": self.name,
            "settings": self.settings(),
            "memory_bytes": {
                **asdict(self.memory),
                "allocated": self.memory.allocated,
                "peak": self.memory.peak,
            },
            "host_bytes": {"loading": self.host_loading, "running": self.host_running},
            "seconds": {
                "micro_batch": self.micro_batch.total,
                "compute": self.micro_batch.compute,
                "communication": self.micro_batch.communication,
                "communication_hidden": self.micro_batch.hidden,
                "step": self.step,
            },
            "tokens_per_second": self.tokens_per_second,
            "hours": self.hours,
            "fits": self.fits,
            "why_not": self.why_not,
        }


@dataclass(frozen=True)
class Plan:
    """What was weighed and what was chosen.

    Attributes:
        best: of each strategy, its best micro-batch; in the order of `strategies`.
        pick: the one to take; None: none fits with the settings as they are.
        why: a sentence.
        hint: another way of holding weights or another dtype that would be faster or would fit; never taken unasked.
    """

    best: list[Prediction]
    pick: Prediction | None
    why: str
    hint: str | None


def predict(
    shape: Shape,
    fleet: Fleet | Device,
    strategy: Strategy | None = None,
    batch_tokens: int = 16384,
    work: Workload | None = None,
    share: float = SHARE,
) -> Prediction:
    """Memory and time of one strategy at one size of micro-batch.

    Args:
        shape: of the backbone.
        fleet: the devices, or one device.
        strategy: how they hold it; None: each the whole of it, in bfloat16.
        batch_tokens: encoder tokens of a micro-batch.
        work: the examples; None: assumed.
        share: of the largest product's rate that is reached.
    """
    fleet = Fleet(fleet) if isinstance(fleet, Device) else fleet
    strategy, work = strategy or Strategy(), work or Workload()
    replicas = fleet.devices // strategy.tensor_parallel
    step_tokens = work.examples * work.tokens
    count = max(1, math.ceil(step_tokens / replicas / batch_tokens))  # micro-batches of a replica
    tokens = min(float(batch_tokens), step_tokens / replicas / count)
    parts = memory(shape, fleet, strategy, work, batch_tokens)
    # Lengths differ from step to step: half of the filling on average.
    computed = tokens if fleet.device.is_cpu else tokens + FILL / 2
    time = micro_batch_time(shape, fleet, strategy, work, computed, share)
    step = count * time.total
    loading, running = host_bytes(shape, fleet, strategy)
    return Prediction(
        strategy, fleet, batch_tokens, parts, loading, running, time, step,
        replicas * tokens * count / step, step * work.steps / 3600,
        _why_not(fleet, strategy, parts, max(loading, running)),
    )  # fmt: skip


def _why_not(fleet: Fleet, strategy: Strategy, parts: Memory, host: float) -> str | None:
    room = fleet.device.memory * FREE
    if parts.peak > room:
        return f"needs {parts.peak / GIB:.1f} of {room / GIB:.1f} usable GiB"
    has = fleet.device.host_memory
    if has is not None and not fleet.device.is_cpu and host > has:
        return f"needs {host / GIB:.0f} of {has / GIB:.0f} GiB of host memory"
    return None


def budgets(fleet: Fleet, strategy: Strategy, work: Workload) -> list[int]:
    """Sizes of micro-batches that cut a step evenly, largest first; none holds less than the longest example."""
    least = max(SMALLEST, work.longest)
    if fleet.device.is_cpu:
        sizes = [CPU_BATCH >> n for n in range(10)]
        return [size for size in sizes if size > least] + [least]
    replica = work.examples * work.tokens / (fleet.devices // strategy.tensor_parallel)
    found, count = [], 1
    while (size := replica / count * SLACK) > least:
        if size <= GPU_BATCH:
            found.append(math.ceil(size / FILL) * FILL)
        count += max(1, count // 4)
    return list(dict.fromkeys([*found, math.ceil(least / FILL) * FILL]))


def best_budget(
    shape: Shape, fleet: Fleet, strategy: Strategy, work: Workload, share: float, batch_tokens: int | None
) -> Prediction:
    """A strategy with the micro-batch that is fastest and fits; the smallest where none fits."""
    sizes = [batch_tokens] if batch_tokens is not None else budgets(fleet, strategy, work)
    found = [predict(shape, fleet, strategy, size, work, share) for size in sizes]
    fitting = [one for one in found if one.fits]
    if not fitting:
        return found[-1]
    if fleet.device.is_cpu:
        return fitting[0]
    top = max(one.tokens_per_second for one in fitting)
    return [one for one in fitting if one.tokens_per_second >= (1 - EVEN) * top][-1]


def make_plan(
    shape: Shape,
    fleet: Fleet,
    work: Workload,
    dtype: str,
    weights: str = "full",
    share: float = SHARE,
    batch_tokens: int | None = None,
    allowed: Callable[[Strategy], bool] = lambda strategy: True,
    asked: Strategy | None = None,
) -> Plan:
    """Weigh all strategies and choose.

    Args:
        shape: of the backbone.
        fleet: the devices.
        work: the examples.
        dtype: of the backbone.
        weights: how its layers are held; others are weighed, and only spoken of.
        share: of the largest product's rate that is reached.
        batch_tokens: of a micro-batch; None: to be chosen.
        allowed: whether the settings leave a strategy open.
        asked: what the settings say outright; taken where it is none that a plan would think of, such as an offload on a
            CPU or ZeRO 3 beside tensor parallel.

    Raises:
        UserError: the device cannot compute in `dtype`, or the settings leave no strategy open.
    """
    if ceiling(fleet.device, dtype) is None:
        raise UserError(f"{fleet.device.kind} has no {dtype} units; take dtype=float32")
    open_ones = [one for one in strategies(shape, fleet, dtype) if allowed(one)]
    mine = [one for one in open_ones if one.weights == weights]
    if not mine and asked is not None and asked.possible(shape, fleet):
        mine = [asked]
        open_ones.append(asked)
    if not mine:
        parts = f"={asked.tensor_parallel}" if asked is not None and asked.tensor_parallel > 1 else ""
        raise UserError(
            f"the settings leave no way to run {shape.name} on {fleet}: tensor_parallel{parts} must divide the "
            f"{fleet.devices} processes, {shape.num_heads} heads and a feed-forward width of {shape.d_ff}; ZeRO 3 wants "
            "several processes or an offload; quantised weights want ZeRO 0, and fp8 a device that has it"
        )
    best = [best_budget(shape, fleet, one, work, share, batch_tokens) for one in open_ones]
    pick = _pick([one for one in best if one.strategy.weights == weights])
    others = _pick([one for one in best if one.strategy.weights != weights])
    if pick is None:
        return Plan(best, None, _nothing_fits(shape, fleet, best, weights, batch_tokens), _would_fit(others))
    return Plan(best, pick, _why(pick, best), _would_gain(pick, others))


def _pick(found: Sequence[Prediction]) -> Prediction | None:
    """The simplest of those that are about as fast as the fastest that fits; strategies stand simplest first."""
    fitting = [one for one in found if one.fits]
    if not fitting:
        return None
    inside = [one for one in fitting if one.strategy.offload == "none"]
    top = max(one.tokens_per_second for one in fitting)
    if inside and max(one.tokens_per_second for one in inside) >= (1 - OFFLOAD) * top:
        fitting, top = inside, max(one.tokens_per_second for one in inside)
    return next(one for one in fitting if one.tokens_per_second >= (1 - SIMPLER) * top)


def _why(pick: Prediction, best: Sequence[Prediction]) -> str:
    """The sentence that says why."""
    fleet, strategy = pick.fleet, pick.strategy
    device = "process" if fleet.device.is_cpu else "GPU"
    uses = f"{pick.memory.peak / GIB:.1f} of {fleet.device.memory / GIB:.1f} GiB"
    if strategy.zero_stage == 0 and strategy.tensor_parallel == 1:
        why = f"each {device} holds the whole backbone ({uses})"
        if fleet.devices > 1:
            why += ", and nothing is communicated but the prompts' gradients"
    else:
        holds = (
            f"1/{strategy.tensor_parallel} of every layer"
            if strategy.zero_stage == 0
            else f"1/{fleet.devices} of the weights"
        )
        if strategy.offload != "none":
            holds = (
                f"the layers it computes with, from {'host memory' if strategy.offload == 'cpu' else 'disk'},"
            )
        why = f"each {device} holds {holds} and peaks at {uses}"
        if strategy.offload != "none" and not fleet.device.is_cpu:
            why += f"; its machine needs {max(pick.host_loading, pick.host_running) / GIB:.0f} GiB of host memory"
        whole = [
            one
            for one in best
            if one.strategy == replace(strategy, zero_stage=0, tensor_parallel=1, offload="none")
        ]
        if whole and whole[0].why_not:
            why += f"; the whole backbone {whole[0].why_not}"
    runner = _pick([one for one in best if _rival(one.strategy, strategy)])
    if runner is not None:
        ratio = pick.tokens_per_second / runner.tokens_per_second
        slower = (
            f"{ratio:.2f} x slower"
            if ratio > 1.005
            else "no faster"
            if ratio > 0.98
            else f"{1 / ratio:.2f} x faster"
        )
        why += f"; {runner.name} would be {slower}"
        if ratio <= 0.98:
            why += ", too little for what it adds"
    return f"{pick.name}: {why}"


def _rival(one: Strategy, pick: Strategy) -> bool:
    """Whether a strategy differs from the pick in where the weights lie."""
    return one.weights == pick.weights and (one.zero_stage, one.tensor_parallel, one.offload) != (
        pick.zero_stage, pick.tensor_parallel, pick.offload,
    )  # fmt: skip


def _nothing_fits(
    shape: Shape, fleet: Fleet, best: Sequence[Prediction], weights: str, batch_tokens: int | None
) -> str:
    least = min((one for one in best if one.strategy.weights == weights), key=lambda one: one.memory.peak)
    given = "" if batch_tokens is None else f" with batch_tokens={batch_tokens}; leave it open"
    return (
        f"{shape.name} does not fit {fleet} with weights={weights}: the least it can do with, {least.name}, "
        f"{least.why_not}{given}"
    )


def _would_fit(other: Prediction | None) -> str | None:
    return None if other is None else f"weights={other.strategy.weights} would fit"


def _would_gain(pick: Prediction, other: Prediction | None) -> str | None:
    """What quantised weights would bring, where it is much."""
    if other is None:
        return None
    ratio, name = other.tokens_per_second / pick.tokens_per_second, other.strategy.weights
    unasked = "; weights are not rounded unasked"
    if pick.strategy.offload != "none" and ratio > 0.5:
        return f"weights={name} would keep the backbone on the device ({other.memory.peak / GIB:.1f} GiB), at {ratio:.1f} x the speed{unasked}"
    return f"weights={name} would be {ratio:.2f} x faster{unasked}" if ratio >= 1.1 else None
