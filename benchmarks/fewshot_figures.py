"""The few-shot bench's figures: seconds, shares of what the machine can do, ratios, and what a ratio could be at most."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from fewshot_data import Count

Result = dict[str, Any]
TOGETHER = ("default", "together")  # what the ratios may be made with; `processes` run one round alone
RIVALS = ("one_by_one", "peft_loop")
EQUAL_PROCESSES = (
    ("one_by_one", "default"),
    ("one_by_one", "together"),
    ("one_by_one_processes", "together_processes"),
)


def figures(
    shape: str,
    grid: dict[str, Any],
    counted: Count,
    rounds: dict[str, list[Result]],
    ceilings: list[dict[str, float]],
) -> Result:
    """Print and give the figures of all sides of a shape.

    Args:
        shape: its name.
        grid: `cells`, `steps` of a cell, and whatever else is to stand among the figures.
        counted: operations of all cells.
        rounds: name of a side -> what each round gave.
        ceilings: FLOP/s of the products alone, by each way of computing them, in each round.
    """
    top = {name: statistics.median(one[name] for one in ceilings) for name in ceilings[0]}
    print(
        f"{shape}: encoder products {counted.encoder / 1e12:.3f} TFLOP (4 x weights x {counted.train_tokens:,} tokens of training "
        f"examples + 2 x weights x {counted.dev_tokens:,} of dev examples), attention {counted.attention / 1e12:.3f}, decoder "
        f"{counted.decoder / 1e12:.3f}; ceiling in GFLOP/s: "
        + ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in top.items())
    )
    found: Result = {**grid, "count": dataclasses.asdict(counted), "ceiling_flops": top}
    steps = grid["cells"] * grid["steps"]
    for name, results in rounds.items():
        found[name] = _side(counted, results, [max(one.values()) for one in ceilings], steps)
        print(
            f"{shape} {name:<20} {found[name]['median_seconds']:>8.1f} s ({statistics.median(found[name]['tuning_seconds']):.1f} s "
            f"tuning) {found[name]['cell_step_milliseconds']:>8.2f} ms a step of a cell  {found[name]['ceiling_share']:>6.1%} of the ceiling, {found[name]['ceiling_share_all']:.1%} with attention and "
            f"decoder counted; {told(found[name]['settings']) or 'default settings'}",
            flush=True,
        )
    return found | _compared(shape, found, rounds)


def told(settings: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def _side(counted: Count, results: list[Result], tops: list[float], steps: int) -> Result:
    took = [one["seconds"] for one in results]
    share = statistics.median(counted.encoder / one / top for one, top in zip(took, tops, strict=False))
    best_dev = [max(point["dev"] for point in cell["curve"]) for cell in results[0]["cells"].values()]
    return {
        "seconds": took,
        "tuning_seconds": [one["tuning"] for one in results],
        "median_seconds": statistics.median(took),
        "cell_step_milliseconds": 1e3 * statistics.median(took) / steps,
        "ceiling_share": share,
        "ceiling_share_all": share * counted.flops / counted.encoder,
        "best_dev": statistics.mean(best_dev),
        **{name: value for name, value in results[0].items() if name not in ("seconds", "tuning", "cells")},
    }


def _compared(shape: str, found: Result, rounds: dict[str, list[Result]]) -> Result:
    """Our `best` side, `ratios` of the others to it, and what they could be at most."""

    def ratio(theirs: str, ours: str) -> float:
        pairs = zip(rounds[theirs], rounds[ours], strict=False)
        return statistics.median(one["seconds"] / other["seconds"] for one, other in pairs)

    ours = [name for name in TOGETHER if name in rounds]
    if not ours:
        return {"ratios": {}}
    best = min(ours, key=lambda name: found[name]["median_seconds"])
    more: Result = {
        "best": best,
        "ratios": {name: ratio(name, best) for name in RIVALS if name in rounds},
        "at_equal_processes": {
            f"{one}/{other}": ratio(one, other)
            for one, other in EQUAL_PROCESSES
            if {one, other} <= set(rounds)
        },
        # Nobody computes faster than the products alone.
        "most": {name: 1 / found[name]["ceiling_share_all"] for name in RIVALS if name in rounds},
    }
    for name, value in more["at_equal_processes"].items():
        print(f"{shape} {name}: {value:.2f} x")
    for name, most in more["most"].items():
        print(
            f"{shape}: {name} computes at {1 / most:.1%} of the ceiling, so {most:.2f} x as fast is what this machine allows anybody; "
            f"{best} is {more['ratios'][name]:.2f} x"
        )
    return more
