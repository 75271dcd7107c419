"""Each process's part of a few-shot run: which cells it tunes, and the folder in which it keeps what is under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.plan import Choice
from finetune.results import KnownRows, ResultRow, append_rows, cut_half_row, read_rows

FOLDER = "schedule"  # in the run's folder, as long as the run is not finished
LOCKS = ".locks"  # of the processes that are not the first
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


def shared_rows(out: Path) -> list[ResultRow]:
    """Rows of all processes but the first, as far as they are written."""
    paths = sorted((out / FOLDER).glob(f"*/{ROWS}"), key=lambda path: int(path.parent.name))
    return [row for path in paths for row in read_rows(path)]
