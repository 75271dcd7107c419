"""Each process's part of a few-shot run: which cells it tunes, and the folder in which it keeps what is under way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corpora.common.progress import Progress
from finetune.plan import Choice
from finetune.results import KnownRows, ResultRow, append_rows, cut_half_row, read_rows

FOLDER = "schedule"  # in the run's folder, as long as the run is not finished
LOCKS = ".locks"  # of the processes that are not the first, as long as the run's folder
STEPS = (
    "steps"  # beside its lock: how many an earlier start has done, how many this one, how often it told so
)
TELL_EVERY = 2.0  # seconds
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
    """Steps that all processes have done, for the first one's progress line; the others tell theirs through a file.

    A context around the work: within it a process that is not the first tells every `TELL_EVERY` seconds, whatever it is at, so
    that the first one knows that it lives.
    """

    def __init__(self, out: Path, share: Share, progress: Progress) -> None:
        """Begin to count.

        Args:
            out: the run's folder.
            share: this process, which holds its lock.
            progress: its progress line; that of the first process alone is seen.
        """
        self._share, self._progress = share, progress
        self._folder, self._path = out / LOCKS, share.locked(out) / STEPS
        self._skipped = self._done = self._beats = 0
        self._told: dict[Path, tuple[int, int, int]] = {}
        self._heard = self._looked = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, name="steps", daemon=True)
        if share.first:
            self.forget()  # what an earlier start told

    def __enter__(self) -> SharedSteps:
        if not self._share.first:
            self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if not self._share.first:
            self._over.set()
            self._thread.join()

    def advance(self, steps: int) -> None:
        """Count steps that this process has done and, in the first one, hear now and then of the others'."""
        self._done += steps
        self._progress.advance(steps)
        if self._share.first and time.monotonic() - self._looked >= TELL_EVERY:
            self.look()

    def skip(self, steps: int) -> None:
        """Count steps of this process that an earlier start did."""
        self._skipped += steps
        self._progress.skip(steps)

    @property
    def silent(self) -> float:
        """Seconds since one of the other processes was heard of."""
        return time.monotonic() - self._heard

    def look(self) -> None:
        """In the first process: add what the others have told."""
        self._looked = time.monotonic()
        for path in self._others():
            with contextlib.suppress(OSError, ValueError):  # gone, or met while it was written
                skipped, done, beats = map(int, path.read_text().split())
                before = self._told.get(path, (0, 0, 0))
                if (skipped, done, beats) != before:
                    self._heard = self._looked
                    self._told[path] = (skipped, done, beats)
                    self._progress.skip(max(0, skipped - before[0]))
                    self._progress.advance(max(0, done - before[1]))

    def tell(self) -> None:
        """In another process than the first: write down what it has done, before the rows that come of it."""
        if self._share.first:
            return
        self._beats += 1
        with contextlib.suppress(OSError):  # a full disk ends the run where it loses something
            self._path.write_text(f"{self._skipped} {self._done} {self._beats}")

    def forget(self) -> None:
        """In the first process: remove what the others have told."""
        for path in self._others():
            path.unlink(missing_ok=True)

    def _keep_telling(self) -> None:
        self.tell()
        while not self._over.wait(TELL_EVERY):
            self.tell()

    def _others(self) -> list[Path]:
        return sorted(self._folder.glob(f"*/{STEPS}"))


def shared_rows(out: Path) -> list[ResultRow]:
    """Rows of all processes but the first, as far as they are written."""
    paths = sorted((out / FOLDER).glob(f"*/{ROWS}"), key=lambda path: int(path.parent.name))
    return [row for path in paths for row in read_rows(path)]
