"""Errors that end a command with one line for the person who reads it, and its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class PPTError(Exception):
    """A failure that has a one-line reason; `exit_code` is what the command ends with."""

    exit_code = 1


class UserError(PPTError):
    """The input is wrong: the message says what was given, what was expected and what to do.

    Attributes:
        others: further faults that were found in the same input, worded like the message.
    """

    exit_code = 2

    def __init__(self, message: str, others: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.others = tuple(others)


class MachineError(PPTError):
    """The machine failed: full disk, no permission, a dead process."""

    exit_code = 1


class Stopped(PPTError):
    """Stopped on request; the same command goes on from here (75 is EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


def nearest(name: str, choices: Iterable[str]) -> str:
    """Name the closest valid choice, as the end of an error message.

    Returns:
        '; did you mean "x"?' when something is close, else '; expected one of a, b, c'.
    """
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; expected one of {', '.join(names)}" if names else ""


def at(path: str | Path, line: int | None = None) -> str:
    """Place of a fault in a file, as every message states it: `corpora/pair.jsonl line 17`."""
    return f"{path} line {line}" if line is not None else str(path)
