"""Worker processes: what happens when one is ended from outside."""

from __future__ import annotations

import os
import signal
from concurrent import futures

import pytest

from corpora.common.errors import MachineError
from corpora.common.processes import worker_pool


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(60)
def test_dead_workers_are_an_error_even_while_large_work_waits_for_them() -> None:
    with pytest.raises(MachineError, match="ended from outside"), worker_pool(2, _die, ()) as pool:
        running = [pool.submit(len, b"x" * 4_000_000) for _ in range(6)]
        futures.wait(running)
        running[0].result()
