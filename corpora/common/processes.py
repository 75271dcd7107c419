"""Worker processes that end with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from corpora.common.errors import MachineError


@contextlib.contextmanager
def worker_pool(
    workers: int, start: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends.

    Args:
        workers: how many.
        start: called once in each, with `arguments`.

    Raises:
        MachineError: a worker was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _start_worker, (start, arguments))
    try:
        yield executor
    except BaseException as error:
        _unblock(executor)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise MachineError(
            "a worker process was ended from outside (out of memory?); the same command, with fewer --workers, goes on"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _unblock(executor: ProcessPoolExecutor) -> None:
    """Let a broken executor end.

    Python 3.11.2, for one, waits for ever to hand work to workers that are gone (CPython issue 94777).
    """
    queue = getattr(executor, "_call_queue", None)
    reader = getattr(queue, "_reader", None)
    if reader is not None:
        with contextlib.suppress(OSError):
            reader.close()


def _start_worker(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Watch the parent: a worker whose parent was killed must not write beside the next run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers when someone presses Ctrl-C
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    start(*arguments)
