"""How long things take: when to stop before a time limit, and which process holds the others up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from corpora.common.errors import UserError
from corpora.common.progress import say
from pretrain.distributed import Processes
from pretrain.settings import PretrainSettings
from pretrain.watchdog import Watchdog

REPORT_EVERY = 50  # updates between two looks at who is slow
SLOW = 1.5  # times the median of all processes' own computing; work is shared out to within a few per cent
RESERVE = 5.0  # seconds kept for leaving: closing files, the launcher's own second


class Pace:
    """One process's view of time: the wish to stop, how long its own computing takes, what it tells the watchdog.

    Args:
        settings: the run.
        processes: of the job.
        should_stop: whether this process was asked to stop.
        watchdog: hears what this process does.
        began: when this start of the run began, by `time.monotonic()`.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        processes: Processes,
        should_stop: Callable[[], bool],
        watchdog: Watchdog,
        began: float,
    ) -> None:
        self._settings, self._processes, self._should_stop = settings, processes, should_stop
        self._watchdog, self._began = watchdog, began
        self._longest = {
            "computing": 0.0,
            "saving": 0.0,
        }  # seconds of a micro-batch or step, and of a checkpoint
        self._since = time.monotonic()
        self._own = 0.0  # seconds that this process computed for the step before
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._sums_W = torch.zeros(processes.world)
        self._steps = 0
        self._gained = self._too_short = False

    def at(self, step: int, doing: str, waits: bool = False) -> None:
        """Tell the watchdog what begins now."""
        self._watchdog.at(step, doing, waits)
        self._since = time.monotonic()

    def saved(self) -> None:
        """Note that the checkpoint which began at the last `at` is on disk."""
        self._note("saving")

    def gained(self) -> None:
        """Note that this start got somewhere that a checkpoint keeps: an update or an evaluation."""
        self._gained = True

    def begin_step(self, step: int) -> None:
        """An update begins to be computed."""
        self.at(step, "training")
        if self._processes.device.type == "cuda":
            # On a GPU the calls return before the work is done; events are read a step later, when it surely is.
            if self._events is not None:
                self._own = self._events[0].elapsed_time(self._events[1]) / 1000
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record()

    def end_step(self, step: int) -> torch.Tensor:
        """This process's own part of an update is computed; it waits for the others now.

        Returns:
            [2 + world] to be added up over all processes: two wishes to stop, and each one's seconds for a step.
        """
        if self._events is not None:
            self._events[1].record()
        else:
            self._own = time.monotonic() - self._since
        self._watchdog.at(step, "training", waits=True)
        seconds = [0.0] * self._processes.world
        seconds[self._processes.rank] = self._own
        return torch.tensor([*self._wishes(), *seconds], device=self._processes.device)

    def read(self, tail: torch.Tensor, step: int) -> bool:
        """Take in the sum of all processes' tails.

        Returns:
            Whether any process wishes to stop.
        """
        asked, limit, *seconds = tail.tolist()
        self._watchdog.at(step + 1, "training")
        self._note("computing")
        self._sums_W += torch.tensor(seconds)
        self._steps += 1
        if self._steps == REPORT_EVERY:
            means = (self._sums_W / self._steps).tolist()
            self._sums_W.zero_()
            self._steps = 0
            # All look alike, so all gather names or none does.
            if slow := slow_processes(means):
                hosts = self._processes.gather(self._watchdog.host)
                for rank in slow:
                    say(
                        f"warning: process {rank} ({hosts[rank]}) computes {means[rank]:.3g} s a step, the median is "
                        f"{statistics.median_low(means):.3g} s: the others wait for it (step {step + 1})"
                    )
        return self._agreed(asked, limit)

    def stops(self, step: int) -> bool:
        """Whether to stop now, agreed on by all processes; asked by all of them before each part of an evaluation."""
        self._note("computing")
        self._watchdog.at(step, "evaluating", waits=True)
        wishes = torch.tensor(self._wishes(), device=self._processes.device)
        asked, limit = self._processes.sum(wishes, wishes=2).tolist()
        self.at(step, "evaluating")
        return self._agreed(asked, limit)

    def check_limit(self) -> None:
        """Refuse to stop for a time limit that never lets the run get on.

        Raises:
            UserError: it was over before this start had made an update or an evaluation.
        """
        if self._too_short:
            raise UserError(
                f"time_limit is {self._settings.time_limit:g} h, which is over before the run gets anywhere; give it "
                "more, or evaluate fewer examples (eval_examples)"
            )

    def _note(self, what: str) -> None:
        self._longest[what] = max(self._longest[what], time.monotonic() - self._since)

    def _wishes(self) -> tuple[float, float]:
        """1 for each reason of this process to stop: it was asked to; the time limit is near."""
        limit = self._settings.time_limit
        reserve = RESERVE + 2 * self._longest["computing"] + 2 * self._longest["saving"]
        near = limit is not None and time.monotonic() + reserve > self._began + limit * 3600
        return float(self._should_stop()), float(near)

    def _agreed(self, asked: float, limit: float) -> bool:
        self._too_short = limit > 0 and asked == 0 and not self._gained
        return asked > 0 or limit > 0


def slow_processes(seconds: Sequence[float]) -> list[int]:
    """Ranks whose own computing takes `SLOW` times as long as the median process's (of two, the faster one's).

    Args:
        seconds: a step's by rank.
    """
    usual = statistics.median_low(seconds)
    return [rank for rank, mean in enumerate(seconds) if mean > SLOW * usual > 0]
