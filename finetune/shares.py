"""Each process's part of a few-shot run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One of the processes that share a run's cells out; the first one writes results.jsonl."""

    rank: int = 0
    world: int = 1
