"""Shares the jobs of a few-shot run out over several local processes, a few threads each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue

import torch

from corpora.common.errors import MachineError
from corpora.common.files import drop_partials
from corpora.common.processes import process_pool
from finetune.jobs import run_job
from finetune.plan import Job
from finetune.results import ResultRow
from finetune.settings import FewshotSettings
from finetune.workshop import Workshop

SHOWN_EVERY = 0.5  # seconds between looks at the steps done

_workshop: Workshop | None = None  # of this worker process, kept from job to job
_steps: SimpleQueue[int] | None = None


def _start(settings: FewshotSettings, threads: int, steps: SimpleQueue[int]) -> None:
    global _workshop, _steps
    torch.set_num_threads(threads)
    _workshop, _steps = Workshop(settings), steps


def _run(job: Job) -> list[ResultRow]:
    assert _workshop is not None and _steps is not None
    return run_job(_workshop, job, _steps.put)


def threads_each(processes: int) -> int:
    """Threads of each of several processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def run_jobs(
    settings: FewshotSettings, jobs: Sequence[Job], advance: Callable[[int], None]
) -> Generator[list[ResultRow], None, None]:
    """Run jobs in `settings.processes` processes; each loads the backbones for itself.

    They end when this process does, and when the iterator is closed before its end.

    Args:
        settings: of the run.
        jobs: the longest first.
        advance: called with the optimiser steps done.

    Yields:
        Each job's rows as it ends.

    Raises:
        MachineError: a process died.
    """
    processes = min(settings.processes or 1, len(jobs))
    steps: SimpleQueue[int] = multiprocessing.get_context("spawn").SimpleQueue()
    arguments = (settings, threads_each(settings.processes or 1), steps)
    others = multiprocessing.active_children()
    with process_pool(processes, _start, arguments) as pool:
        try:
            running = {pool.submit(_run, job) for job in jobs}
            while running:
                done, running = wait(running, timeout=SHOWN_EVERY, return_when=FIRST_COMPLETED)
                while not steps.empty():
                    advance(steps.get())
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise MachineError(
                "a process of the few-shot run died (out of memory?); the same command goes on where it stopped"
            ) from error
        except BaseException:
            workers = [process for process in multiprocessing.active_children() if process not in others]
            for process in workers:
                process.terminate()  # the pool would wait for the running jobs, and a job may take hours
            for process in workers:
                process.join()
            drop_partials(settings.out)  # one may have been writing
            raise
