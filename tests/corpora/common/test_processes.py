"""Worker processes: what happens when one is ended from outside."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent import futures

import pytest

from corpora.common.errors import MachineError
from corpora.common.processes import AHEAD, process_pool, worker_pool


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(60)
def test_dead_workers_are_an_error_even_while_large_work_waits_for_them() -> None:
    with pytest.raises(MachineError, match="ended from outside"), process_pool(2, _die) as pool:
        running = [pool.submit(len, b"x" * 4_000_000) for _ in range(6)]
        futures.wait(running)
        running[0].result()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pool_gives_each_result_with_its_number_and_reads_only_a_little_ahead(workers: int) -> None:
    read = []

    def arguments() -> Iterator[tuple[int]]:
        for number in range(40):
            read.append(number)
            yield (number,)

    with worker_pool(workers) as pool:
        found = {}
        for number, result in pool.each(abs, arguments()):
            found[number] = result
            assert len(read) <= len(found) + workers * (2 + AHEAD)
    assert found == {number: number for number in range(40)}


def test_a_pool_raises_what_the_work_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"), worker_pool(2) as pool:
        list(pool.each(int, [("1",), ("x",)]))
