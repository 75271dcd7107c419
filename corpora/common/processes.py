"""Worker processes that end with this one, and work handed to them with results as they come."""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import gc
import multiprocessing
import multiprocessing.context
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from corpora.common.errors import MachineError
from corpora.common.progress import be_quiet

T = TypeVar("T")

GARBAGE = 1_000_000  # more objects than were freed, after which a worker looks for circles among them
AHEAD = 2  # pieces of work that wait for each worker


class Pool(Protocol):
    """Something that does pieces of work, here or elsewhere; `worker_pool` gives one.

    Attributes:
        workers: how many pieces are done at the same time.
        remote: whether pieces may be done on other machines, where arguments should be small.
    """

    workers: int
    remote: bool

    def each(self, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """Call `work` with each tuple of arguments.

        Args:
            work: a function of a module's top level; what it loads it keeps with `functools.lru_cache`, as a worker
                calls it many times.
            arguments: read only as far ahead as there are workers, so it may be a generator of large values.

        Yields:
            The number of each piece in `arguments` and its result, in the order in which they end.
        """
        ...


class Here:
    """A pool of one: this process does the work, piece by piece."""

    workers = 1
    remote = False

    def each(self, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """See `Pool.each`."""
        for number, given in enumerate(arguments):
            yield number, work(*given)


class Processes:
    """A pool of worker processes of this machine.

    Args:
        executor: as `process_pool` yields it.
        workers: how many processes it has.
    """

    remote = False

    def __init__(self, executor: ProcessPoolExecutor, workers: int) -> None:
        self.executor, self.workers = executor, workers

    def each(self, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """See `Pool.each`."""
        running: dict[futures.Future[T], int] = {}
        for number, given in enumerate(arguments):
            if len(running) >= self.workers * (1 + AHEAD):
                yield from _ended(running)
            running[self.executor.submit(work, *given)] = number
        while running:
            yield from _ended(running)


def _ended(running: dict[futures.Future[T], int]) -> list[tuple[int, T]]:
    """Wait, and take out what is done; the first failure is raised."""
    done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
    return [(running.pop(future), future.result()) for future in done]


@contextlib.contextmanager
def worker_pool(workers: int, modules: Sequence[str] = ()) -> Iterator[Pool]:
    """A pool of workers that end with this process, however it ends.

    Args:
        workers: how many; with one, this process does the work.
        modules: what workers need: imported once, by the process that they are forked from, while this process
            still prepares their work.

    Raises:
        MachineError: a worker was ended from outside.
    """
    if workers == 1:
        yield Here()
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", *modules])
        with process_pool(workers, be_quiet, context=context) as executor:
            for _ in range(workers):
                executor.submit(os.getpid)  # starts one
            yield Processes(executor, workers)


@contextlib.contextmanager
def process_pool(
    workers: int,
    start: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
    context: multiprocessing.context.BaseContext | None = None,
) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends.

    Args:
        workers: how many.
        start: called once in each, with `arguments`.
        arguments: for `start`.
        context: how they are started; a new interpreter each where not given.

    Raises:
        MachineError: a worker was ended from outside.
    """
    context = context or multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _start_worker, (start, arguments))
    try:
        yield executor
    except BaseException as error:
        if not isinstance(error, BrokenProcessPool):
            _end_workers(executor)  # what they were at is made again; what they finished is on the disk
            raise
        _unblock(executor)
        raise MachineError(
            "a worker process was ended from outside (out of memory?); the same command, with fewer --workers, goes on"
        ) from error
    finally:
        with _undisturbed():
            executor.shutdown(wait=True, cancel_futures=True)


def _end_workers(executor: ProcessPoolExecutor) -> None:
    """End workers in the middle of their work: somebody pressed Ctrl-C, or it failed."""
    for process in list((getattr(executor, "_processes", None) or {}).values()):
        process.terminate()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let nobody's second Ctrl-C leave a pool half ended: the process would wait for it for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _unblock(executor: ProcessPoolExecutor) -> None:
    """Let a broken executor end.

    Python 3.11.2, for one, waits for ever to hand work to workers that are gone (CPython issue 94777).
    """
    manager = getattr(executor, "_executor_manager_thread", None)
    if manager is not None:
        manager.join(timeout=1)  # later Pythons see it for themselves
        if not manager.is_alive():
            return
    queue = getattr(executor, "_call_queue", None)
    reader = getattr(queue, "_reader", None)
    if reader is not None:
        with contextlib.suppress(OSError):
            reader.close()


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _start_worker(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Watch the parent: a worker whose parent was killed must not write beside the next run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers when someone presses Ctrl-C
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    # Work makes many small lists that live for a moment and hold no circles; looking through them takes a quarter of it.
    gc.set_threshold(GARBAGE)
    # At its end a worker has nothing left to save, and freeing its memory piece by piece takes a while.
    multiprocessing.util.Finalize(None, _leave, exitpriority=0)
    if start is not None:
        start(*arguments)
