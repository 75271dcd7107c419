"""Fixtures of the tests of corpora."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from corpora.common.errors import PPTError

NOBODY = 65534


def _drop_and_run(
    action: Callable[[], object], results: multiprocessing.SimpleQueue[tuple[int, str]]
) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        action()
    except PPTError as error:
        results.put((error.exit_code, str(error)))
    except BaseException as error:
        results.put((-1, repr(error)))
    else:
        results.put((0, ""))


@pytest.fixture
def without_rights(tmp_path: Path) -> Callable[[Callable[[], object]], tuple[int, str]]:
    """Run an action as a user without rights and give its exit code and message (root may do everything)."""

    def run(action: Callable[[], object]) -> tuple[int, str]:
        if os.getuid() != 0:
            try:
                action()
            except PPTError as error:
                return error.exit_code, str(error)
            return 0, ""
        for folder in (tmp_path, *tmp_path.parents):  # pytest closes its own folders to others
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o1:
                folder.chmod(folder.stat().st_mode | 0o11)
        context = multiprocessing.get_context("fork")  # what is imported stays imported
        results = context.SimpleQueue()
        child = context.Process(target=_drop_and_run, args=(action, results))
        child.start()
        answer: tuple[int, str] = results.get()
        child.join()
        return answer

    return run
