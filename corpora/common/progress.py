"""Progress of long work: a bar with rate and time left on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.table import Column

LOG_EVERY = 10.0  # seconds between log lines when there is no terminal

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def console() -> Console:
    """The console that messages to people go to (standard error; results go to standard output)."""
    return _console


_worker = False


def be_quiet() -> None:
    """Say nothing from this process on: it works for another, which speaks to people."""
    global _worker
    _worker = True


def _quiet() -> bool:
    return _worker or os.environ.get("RANK", "0") != "0"


def say(text: str) -> None:
    """Print one line for people, from the first process of a job only."""
    if not _quiet():
        _console.print(text, markup=False)


class Progress:
    """Counts steps of work and shows them.

    Args:
        label: what is being done.
        total: how many steps there are, or None where nobody knows.
        unit: what a step is, in the plural: `documents`, `steps`.
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "steps") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.skipped = 0
        self._note = ""
        self._quiet = _quiet()
        self._bar: RichProgress | None = None
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._logged = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                # The note gives way first: on a narrow terminal the count and the time left have to stay.
                TextColumn(
                    "{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
                ),
                console=_console,
                transient=False,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, rate="", note="")
        return self

    def skip(self, n: int) -> None:
        """Count `n` steps that an earlier run did; they do not count towards the rate."""
        self.skipped += n
        self.advance(n)

    def advance(self, n: int = 1) -> None:
        """Count `n` more steps."""
        self.done += n
        now = time.monotonic()
        rate = (self.done - self.skipped) / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self.done, rate=f"{_short(rate)} {self.unit}/s", note=self._note
            )
        elif not self._quiet and now - self._logged >= LOG_EVERY:
            self._logged = now
            self._log(rate)

    def note(self, text: str) -> None:
        """Show `text` beside the count, for example the current loss."""
        self._note = text

    def _log(self, rate: float) -> None:
        of = f"/{self.total}" if self.total is not None else ""
        left = ""
        if self.total is not None and rate > 0:
            left = f", {(self.total - self.done) / rate:.0f} s left"
        note = f"  {self._note}" if self._note else ""
        _console.print(
            f"{self.label}: {self.done}{of} {self.unit}, {_short(rate)}/s{left}{note}", markup=False
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet and kind is None:
            seconds = time.monotonic() - self._started
            _console.print(f"{self.label}: {self.done} {self.unit} in {seconds:.1f} s", markup=False)


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
