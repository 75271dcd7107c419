"""What every benchmark shares: the machine, medians, the table and `runs/bench/NAME.json`."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpora.common.files import library_versions, write_json

OUT = Path("runs/bench")
LIBRARIES = ("torch", "transformers", "peft", "sentencepiece", "numpy")


def machine() -> dict[str, Any]:
    """Where a figure was measured."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **library_versions(*(name for name in LIBRARIES if importlib.util.find_spec(name))),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every work once a round, in turn, so that a drifting machine hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name, work in works.items():
            os.sync()  # what one work left to be written should not slow the next
            found[name].append(seconds(work))
            print(f"round {number + 1}/{rounds}  {name}: {found[name][-1]:.2f} s", flush=True)
    return found


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over rounds of their seconds by ours: larger is better."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def write(
    name: str,
    settings: dict[str, Any],
    ratios: dict[str, float],
    raw: dict[str, Any],
    beside: dict[str, Any] | None = None,
) -> Path:
    """Write `runs/bench/NAME.json`; `beside`: what stands there beside the ratios."""
    path = OUT / f"{name}.json"
    fields = {"machine": machine(), "settings": settings, "ratios": ratios, **(beside or {}), "raw": raw}
    write_json(path, fields)
    return path


def finish(
    name: str,
    settings: dict[str, Any],
    ratios: dict[str, float],
    raw: dict[str, Any],
    beside: dict[str, Any] | None = None,
) -> None:
    """Print the ratios, then `write`."""
    print()
    for key, value in ratios.items():
        print(f"{key:<32} {value:.2f} x")
    print(f"written to {write(name, settings, ratios, raw, beside)}")
