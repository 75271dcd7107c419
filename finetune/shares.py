"""Each process's part of a few-shot run: which cells it tunes, and the folder in which it keeps what is under way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from corpora.common.files import write_text_atomic
from finetune.plan import Choice
from finetune.results import KnownRows, ResultRow, append_rows, cut_half_row, read_rows

FOLDER = "schedule"  # in the run's folder, as long as the run is not finished
LOCKS = ".locks"  # of the processes that are not the first
STEPS = "steps"  # how many it has done since it started
TELL_EVERY = 2.0  # seconds between such words
ROWS = "rows.jsonl"  # of a process that is not the first, in its folder


@dataclass(frozen=True)
class Share:
    """One of the processes that share a run's cells out; the first one writes results.jsonl."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes results.jsonl."""
        return self.rank == 0

    def folder(self, out: Path) -> Path:
        """Where it keeps its checkpoint and, where it is not the first, its rows."""
        return out / FOLDER / str(self.rank)

    def locked(self, out: Path) -> Path:
        """The folder that it holds while it runs: the run's own, or one that outlives `FOLDER`."""
        return out if self.first else out / LOCKS / str(self.rank)

    def of(self, choices: Sequence[Choice], costs: Sequence[float]) -> list[Choice]:
        """Its part of the choices, in their order; the parts cost about the same.

        The costliest goes to whom has least, and so on: the same at every start, so that what a killed process had
        under way is its own again.
        """
        loads = [0.0] * self.world
        mine = []
        for number in sorted(range(len(choices)), key=lambda i: -costs[i]):
            rank = loads.index(min(loads))
            loads[rank] += costs[number]
            if rank == self.rank:
                mine.append(number)
        return [choices[number] for number in sorted(mine)]


ALONE = Share()


class ShareRows(KnownRows):
    """What a process that is not the first knows to be finished; its own rows wait in its folder for the first one."""

    def __init__(self, out: Path, rank: int) -> None:
        """Read what any process has finished.

        Raises:
            UserError: a line is not a row.
        """
        self.path = Share(rank).folder(out) / ROWS
        cut_half_row(self.path)
        others = shared_rows(out)  # before results.jsonl: that is where rows move to
        super().__init__([*others, *read_rows(out / "results.jsonl")])

    def add(self, rows: Sequence[ResultRow]) -> None:
        """Append rows in one write.

        Raises:
            MachineError: the disk is full or the place cannot be written.
        """
        new = [row for row in rows if row["cell"] not in self.rows]
        if new:
            append_rows(self.path, new)
            super().add(new)


class SharedSteps:
    """Steps that all processes have done, for the first one's progress line; the others tell theirs through a file."""

    def __init__(self, out: Path, share: Share, advance: Callable[[int], None]) -> None:
        """Begin to count.

        Args:
            out: the run's folder.
            share: this process.
            advance: of its progress line; that of the first process alone is seen.
        """
        self._out, self._share, self._advance = out, share, advance
        self._own, self._looked = 0, float("-inf")
        self._told = self._others()  # perhaps by an earlier start

    def advance(self, steps: int) -> None:
        """Count steps of this process and, now and then, tell or hear of the others'."""
        self._own += steps
        self._advance(steps)
        if time.monotonic() - self._looked >= TELL_EVERY:
            self.look()

    def look(self) -> None:
        """Tell the first process; or, in the first process, add what the others have told."""
        self._looked = time.monotonic()
        if not self._share.first:
            write_text_atomic(self._share.folder(self._out) / STEPS, str(self._own))
            return
        told = self._others()
        self._advance(sum(max(0, steps - self._told.get(rank, 0)) for rank, steps in told.items()))
        self._told = told

    def _others(self) -> dict[str, int]:
        found = {}
        for path in (self._out / FOLDER).glob(f"*/{STEPS}"):
            with contextlib.suppress(OSError, ValueError):
                found[path.parent.name] = int(path.read_text())
        return found


def shared_rows(out: Path) -> list[ResultRow]:
    """Rows of all processes but the first, as far as they are written."""
    paths = sorted((out / FOLDER).glob(f"*/{ROWS}"), key=lambda path: int(path.parent.name))
    return [row for path in paths for row in read_rows(path)]
