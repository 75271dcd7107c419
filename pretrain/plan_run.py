"""The plan of a run: what its settings leave open, and its settings filled in before anything is loaded."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.common.errors import UserError
from corpora.common.progress import say
from corpora.common.settings import make_settings
from pretrain.devices import Device, Fleet, this_device
from pretrain.plan import Plan, make_plan
from pretrain.plan_time import SHARE
from pretrain.settings import PLANNED_KEYS, PretrainSettings, begun_with, read_deepspeed_config
from pretrain.shapes import Shape, find_shape
from pretrain.strategy import Strategy, Workload

if TYPE_CHECKING:
    from pretrain.distributed import Processes

LOOKED_AT = 4096  # examples of a format whose lengths stand for all
ATTENDED = 1.3  # x the average length, where lengths are unknown: news pairs have 1.2, choices more


def workload(settings: PretrainSettings, tokens: float | None = None) -> tuple[Workload, str]:
    """The work of a run's steps, and how its lengths are known.

    Args:
        settings: of the run; lengths are read from its corpora where they lie there.
        tokens: encoder tokens of an example on average, prompt included; None: of the corpora, or assumed.
    """
    assumed = Workload()
    mean, source = tokens or assumed.tokens, "given" if tokens else "assumed; --tokens or a build says it"
    attended, longest = ATTENDED * mean, max(assumed.longest, int(mean))
    if tokens is None and all(
        (settings.corpora / name / "manifest.json").exists() for name in settings.formats
    ):
        lengths = np.concatenate([_lengths(settings, name) for name in settings.formats]).astype(float)
        mean, source = float(lengths.mean()), f"of {settings.corpora}"
        attended, longest = float((lengths**2).sum() / lengths.sum()), int(lengths.max())
    places = (
        2 if settings.count == "label" else 3
    )  # a label of one token, after its sentinel and before the next
    counted = 1 if settings.count == "label" else places
    work = Workload(
        len(settings.formats), settings.prompt_len, settings.batch_size * len(settings.formats),
        mean, attended, longest, places, counted, settings.steps,
    )  # fmt: skip
    return work, source


def _lengths(settings: PretrainSettings, name: str) -> Any:
    """Encoder tokens of some of a format's training examples, prompt included."""
    from corpora.task_corpus import TaskCorpus

    corpus = TaskCorpus.open(settings.corpora, name)
    rows = np.unique(np.linspace(0, len(corpus.split("train")) - 1, LOOKED_AT).astype(np.int64))
    return corpus.lengths(rows, settings.prompt_len) + settings.prompt_len


def allows(settings: PretrainSettings, strategy: Strategy) -> bool:
    """Whether a run's settings leave a strategy open: what is set has to be so."""
    if settings.deepspeed_config is not None:
        stage = read_deepspeed_config(settings.deepspeed_config).get("zero_optimization", {}).get("stage", 0)
        return strategy.offload == "none" and strategy.zero_stage == (3 if stage == 3 else 0)
    stage = settings.zero_stage
    return (
        (stage is None or strategy.zero_stage == (3 if stage == 3 else 0))
        and settings.tensor_parallel in (None, strategy.tensor_parallel)
        and settings.offload in (None, strategy.offload)
        and (strategy.offload != "nvme" or settings.nvme_path is not None)
        and settings.checkpointing in (None, strategy.checkpointing)
    )


def asked(settings: PretrainSettings) -> Strategy:
    """What a run's settings say outright; the simplest where they say nothing."""
    stage = settings.zero_stage or 0
    if settings.deepspeed_config is not None:
        config = read_deepspeed_config(settings.deepspeed_config)
        stage = config.get("zero_optimization", {}).get("stage", 0)
    return Strategy(
        zero_stage=3 if stage == 3 or settings.offload not in (None, "none") else 0,
        tensor_parallel=settings.tensor_parallel or 1,
        offload=settings.offload or "none",
        weights=settings.weights,
        checkpointing=bool(settings.checkpointing),
        dtype=settings.dtype,
    )


def plan_of(
    settings: PretrainSettings, shape: Shape, fleet: Fleet, tokens: float | None = None, share: float = SHARE
) -> tuple[Plan, Workload, str]:
    """The plan for a run on some devices, the work it is for, and how that is known."""
    work, source = workload(settings, tokens)
    plan = make_plan(
        shape, fleet, work, settings.dtype, settings.weights, share, settings.batch_tokens,
        lambda strategy: allows(settings, strategy), asked(settings),
    )  # fmt: skip
    return plan, work, source


def filled_in(settings: PretrainSettings) -> PretrainSettings:
    """Settings with what they leave open filled in: as the run had it, or from a plan for the job's devices.

    All processes of a job call it and get the same. A run that goes on keeps what it was begun with, unless the number of
    processes has changed, or a setting that is not open any more.

    Raises:
        UserError: nothing that the settings leave open fits the devices; says what would.
    """
    open_keys = [key for key in PLANNED_KEYS if getattr(settings, key) is None]
    if not open_keys:
        return settings
    from pretrain.distributed import start_processes  # torch and DeepSpeed, which `ppt plan` does without

    # The watchdog names who is silent; this ends what even it does not see, and loading may take much longer.
    processes = start_processes(settings.device, timeout=3 * settings.process_timeout)
    chosen = processes.gather(_recorded(settings, processes.world))[0]
    if chosen is None:
        fleet, assumed = _fleet(processes)
        plan, _, _ = plan_of(settings, find_shape(settings.backbone), fleet)
        # One plan for all, the first process's: devices or corpora that differ would lead to others.
        pick, why, hint = processes.gather((plan.pick and plan.pick.settings(), plan.why, plan.hint))[0]
        if pick is None:
            raise UserError(why + (f"; {hint}" if hint else ""))
        for line in (assumed, f"plan: {why}", hint):
            if line:
                say(line)
        chosen = {key: pick[key] for key in PLANNED_KEYS}
    values = (
        settings.model_dump() | {key: chosen[key] for key in open_keys} | {"planned_for": processes.world}
    )
    if values["offload"] != "nvme":
        values["nvme_path"] = None  # it may be set for a plan that does without
    return make_settings(PretrainSettings, values, "the plan")


def _recorded(settings: PretrainSettings, world: int) -> dict[str, Any] | None:
    """What an earlier start in the run's folder was planned to do; None where that does not go with what is set now."""
    before = begun_with(settings.out)
    now = settings.model_dump(mode="json")
    fits = (
        before.get("planned_for") == world
        and all(now[key] in (None, before.get(key)) for key in PLANNED_KEYS)
        and now["deepspeed_config"] == before.get("deepspeed_config")
        and (before.get("offload") != "nvme" or now["nvme_path"] is not None)
    )
    return {key: before.get(key) for key in PLANNED_KEYS} if fits else None


def _fleet(processes: Processes) -> tuple[Fleet, str | None]:
    """The job's devices, the same answer on every process: the first one's, but the smallest memory counts."""
    # DeepSpeed's launcher says how many processes share this machine; without it all do.
    local = int(os.environ.get("LOCAL_SIZE", processes.world))
    device, assumed = this_device(processes.device.type == "cuda", local)
    found: list[tuple[Device, int, str | None]] = processes.gather((device, local, assumed))
    device, local, assumed = found[0]
    memory = min(one.memory for one, _, _ in found)
    host = min(one.host_memory or 0.0 for one, _, _ in found)
    device = dataclasses.replace(device, memory=memory, host_memory=host or None)
    return Fleet(device, local, max(1, processes.world // local)), assumed
