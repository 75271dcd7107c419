"""`ppt plan`: memory and time of every way to run a pre-training job, the one to take, and why."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from corpora.common.settings import load_settings
from launch.launcher import PRESETS, config_path
from pretrain.devices import GIB, Fleet, measure_cpu, parse_fleet, this_cpu, this_device
from pretrain.plan import Plan, Prediction, predict
from pretrain.plan_run import plan_of
from pretrain.plan_time import CEILING, FP8_GAIN, SHARE, ceiling
from pretrain.settings import PretrainSettings
from pretrain.shapes import Shape, find_shape
from pretrain.strategy import Workload

WIDTH = 220  # columns where the output goes to no terminal: room for all of them
# Columns for a console that is wide enough, or `--all`.
DETAILS = frozenset({"weights", "activ.", "decoder", "prompts", "buffers", "context", "s/step", "comm."})


def plan_job(
    backbone: str | None,
    gpus: str | None,
    config: str | Path | None,
    overrides: list[str],
    share: float | None = None,
    tokens: float | None = None,
    everything: bool = False,
    columns: int | None = None,
) -> tuple[dict[str, Any], str]:
    """Weigh the strategies of a job.

    Args:
        backbone: a folder, a hub name or the name of a preset, whose settings count then; None: of the config.
        gpus: as `8xH100-80GB`; None: what this machine has.
        config: settings of a run, or the name of a preset; None: the defaults.
        overrides: `key=value` settings of the run.
        share: of the largest product's rate that a step reaches; None: assumed.
        tokens: of an example on average, prompt included; None: of the corpora where they are there, or assumed.
        everything: show every strategy with and without checkpointing, and every column.
        columns: of the terminal.

    Returns:
        The plan for a program to read, and as text.

    Raises:
        UserError: the backbone, a device or a setting is unknown.
    """
    fleet = parse_fleet(gpus) if gpus else _this_fleet()
    settings = _settings(backbone, config, overrides, fleet)
    if gpus is None:
        fleet = _this_fleet(settings.processes, settings.device == "cpu")
    shape = find_shape(settings.backbone)
    share = SHARE if share is None else share
    plan, work, source = plan_of(settings, shape, fleet, tokens, share)
    if fleet.device.is_cpu:
        whole = measure_cpu(settings.dtype)
        fleet = dataclasses.replace(fleet, device=this_cpu(fleet.per_machine, whole))
        plan = _timed(plan, shape, fleet, work, share)
    assumptions = _assumptions(fleet, settings.dtype, share, work, source)
    value = {
        "backbone": shape.model_dump() | {"weights": shape.weights},
        "devices": {"count": fleet.devices, "machines": fleet.machines, **dataclasses.asdict(fleet.device)},
        "work": dataclasses.asdict(work),
        "assumptions": assumptions,
        "strategies": [one.as_json() for one in plan.best],
        "pick": plan.pick.as_json() if plan.pick else None,
        "why": plan.why,
        "hint": plan.hint,
    }
    return value, _text(shape, fleet, settings, plan, work, assumptions, everything, columns or WIDTH)


def _settings(
    backbone: str | None, config: str | Path | None, overrides: list[str], fleet: Fleet
) -> PretrainSettings:
    """The run's settings, with stand-ins for the folders that a plan does without."""
    if config is None and backbone is not None and (PRESETS / f"{backbone}.yaml").exists():
        config, backbone = backbone, None
    given = {one.partition("=")[0] for one in overrides}
    extra = [f"backbone={backbone}"] if backbone is not None else []
    if config is None:
        dtype = "bfloat16" if fleet.device.bf16 else "float32"
        defaults = {"out": "runs/pretrain", "corpora": "runs/corpora", "dtype": dtype}
        if backbone is None:
            defaults["backbone"] = "google/t5-v1_1-xxl"
        extra += [f"{key}={value}" for key, value in defaults.items() if key not in given]
    path = None if config is None else config_path(config)
    return load_settings(PretrainSettings, path, [*overrides, *extra])


def _this_fleet(processes: int | None = None, cpu: bool = False) -> Fleet:
    """What a run on this machine gets: `processes`, else one a GPU, or one on a CPU."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and not cpu else 0
    count = processes or max(1, gpus)
    device, _ = this_device(gpus > 0, count)
    return Fleet(device, count)


def _timed(plan: Plan, shape: Shape, fleet: Fleet, work: Workload, share: float) -> Plan:
    """A plan with the times of a measured processor; its choices stay.

    A run chooses by assumed rates, for a measurement, never twice the same, would let two starts choose differently.
    """
    best = [predict(shape, fleet, one.strategy, one.batch_tokens, work, share) for one in plan.best]
    pick = None if plan.pick is None else best[plan.best.index(plan.pick)]
    return dataclasses.replace(plan, best=best, pick=pick)


def _assumptions(fleet: Fleet, dtype: str, share: float, work: Workload, source: str) -> list[str]:
    """What the figures stand on."""
    device, top = fleet.device, ceiling(fleet.device, dtype)
    lines = [f"lengths: {work.tokens:.0f} encoder tokens an example, prompt included ({source})"]
    if top is not None:
        how = "measured" if top == device.measured else f"{CEILING:.0%} of the vendor's figure, assumed"
        lines.append(f"largest {dtype} product: {top / 1e12:.3g} TFLOP/s a device ({how})")
    lines.append(f"share of it that a step reaches: {share:.0%} (--share; unmeasured unless you did)")
    if device.fp8 is not None:
        lines.append(f"FP8 weights: {FP8_GAIN:.1f} x the rate of products (unmeasured)")
    return lines


def _text(
    shape: Shape, fleet: Fleet, settings: PretrainSettings, plan: Plan, work: Workload,
    assumptions: list[str], everything: bool, columns: int,
) -> str:  # fmt: skip
    title = (
        f"{shape.name} ({shape.weights / 1e9:.1f} B weights, {settings.dtype}) on {fleet}, {fleet.device.memory / GIB:.1f} GiB "
        f"each; {work.prompts} prompts, {work.examples} examples a step, {work.steps} steps; memory in GiB"
    )
    rows = plan.best if everything else _worth_reading(plan)
    out = io.StringIO()
    console = Console(file=out, width=columns)
    unbounded = console.options.update(width=10_000)
    table = _table(title, rows, plan.pick, details=True)
    needs = console.measure(table, options=unbounded).maximum
    if needs > columns and not everything:
        table = _table(title, rows, plan.pick, details=False)
        needs = console.measure(table, options=unbounded).minimum
    # Wider than the terminal rather than cut: it shows the rest of a line in the next.
    Console(file=out, width=max(columns, needs)).print(table)
    for line in assumptions:
        console.print(line, markup=False, highlight=False)
    console.print(("take " if plan.pick else "") + plan.why, markup=False, highlight=False)
    if plan.hint:
        console.print(plan.hint, markup=False, highlight=False)
    return out.getvalue()


def _table(title: str, rows: Sequence[Prediction], pick: Prediction | None, details: bool) -> Table:
    """A row a strategy, with or without the columns in `DETAILS`. Words wrap, numbers are never cut."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    cells = [_cells(one) for one in rows]
    names = [name for name in cells[0] if details or name not in DETAILS]
    for name in names:
        words = name in ("strategy", "fits")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for one, row in zip(rows, cells, strict=True):
        table.add_row(*(row[name] for name in names), style="bold" if one is pick else None)
    return table


def _cells(one: Prediction) -> dict[str, str]:
    """A strategy's figures by the names of their columns; memory in GiB."""
    parts = one.memory
    gib = {
        "weights": parts.weights,
        "activ.": parts.activations,
        "decoder": parts.decoder,
        "prompts": parts.prompts,
        "buffers": parts.buffers,
        "context": parts.context,
        "peak": parts.peak,
    }
    return {
        "strategy": one.name,
        "batch_tokens": str(one.batch_tokens),
        **{name: f"{value / GIB:.1f}" for name, value in gib.items()},
        "host": f"{max(one.host_loading, one.host_running) / GIB:.0f}",
        "tokens/s": f"{one.tokens_per_second:,.0f}",
        "s/step": f"{one.step:.3g}",
        "hours": f"{one.hours:,.1f}",
        "comm.": f"{one.micro_batch.communication / one.micro_batch.total:.0%}",
        "fits": one.why_not or "yes",
    }


def _worth_reading(plan: Plan) -> list[Prediction]:
    """Of each strategy the faster of with and without checkpointing, or the one that fits."""
    chosen: dict[Any, Prediction] = {}
    for one in plan.best:
        key = dataclasses.replace(one.strategy, checkpointing=False)
        other = chosen.get(key)
        if other is None or (one.fits, one.tokens_per_second) > (other.fits, other.tokens_per_second):
            chosen[key] = one
    return list(chosen.values())
