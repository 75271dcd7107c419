"""How a command or a process of a job ends: one line, said once, and an exit code."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from corpora.common.errors import PPTError, Stopped
from corpora.common.progress import console
from pretrain.watchdog import LostProcess

ENDINGS = (
    PPTError,
    OSError,
    KeyboardInterrupt,
)  # what a user or the machine can cause; the rest is our fault
PATIENCE = 10.0  # seconds that processes after the first wait to be ended by the launcher


def end(error: BaseException, ended: Callable[[], bool] = lambda: False) -> int:
    """Print why a command or job ends, once for all its processes.

    The launcher ends all processes when the first one fails. Those after the first keep silent and wait to be
    ended, so that the first has time to speak; one that is still alive then met a fault of its own.

    Args:
        error: one of `ENDINGS`.
        ended: whether this process has been asked to end, where it catches the signal.

    Returns:
        The exit code: the error's own, 75 for Ctrl-C, 1 for the operating system's errors.
    """
    reason, code = _reason(error)
    rank = int(os.environ.get("RANK", "0"))
    speaker = getattr(error, "speaker", 0)  # who says that a process is lost: perhaps it was the first one
    if rank != speaker:
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            if ended():
                return code
            time.sleep(0.1)
        if isinstance(error, LostProcess):
            return code
        reason = f"process {rank}: {reason}"
    style = "bold red" if console().is_terminal else None
    console().print(f"ppt: {reason}", style=style, markup=False)
    return code


def _reason(error: BaseException) -> tuple[str, int]:
    if isinstance(error, PPTError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped; the same command goes on from what is finished", Stopped.exit_code
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).strip() or type(error).__name__
        return place + reason.splitlines()[0].lower(), 1
    raise error
