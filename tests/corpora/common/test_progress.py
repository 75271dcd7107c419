"""What people see while long work goes on."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

import corpora.common.progress as progress


@pytest.mark.parametrize("columns", [80, 200])
def test_a_long_note_leaves_room_for_count_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=screen, force_terminal=True, width=columns))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.Progress("pre-training", 3000, "steps") as bar:
        bar.note("held-out sentence_pair 4.551 (38%), multiple_choice 5.984 (12%), unified 6.5 (7%)")
        bar.advance(66)
    shown = screen.getvalue()
    assert "66/3000" in shown and "pre-training" in shown and "steps/s" in shown
    assert "0:00:00" in shown
    assert ("unified 6.5 (7%)" in shown) == (columns == 200)
