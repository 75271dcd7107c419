"""results.jsonl through kills and wider grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import MachineError, UserError
from finetune.results import KEY, Results, best_first, cell_name, choice_name


def row(
    rate: float, dev: float = 0.5, loss: float = 1.0, chosen: bool = False, seed: int = 0
) -> dict[str, Any]:
    key = dict.fromkeys(KEY, "x") | {"learning_rate": rate, "seed": seed}
    values = {**key, "dev": dev, "dev_loss": loss, "chosen": chosen, **({"test": 0.9} if chosen else {})}
    return {**values, "cell": cell_name(key), "choice": choice_name(key)}


def test_a_cell_is_named_by_its_whole_key_and_a_choice_by_all_but_the_rate() -> None:
    assert row(0.1)["cell"] != row(0.3)["cell"] and row(0.1)["choice"] == row(0.3)["choice"]
    assert row(0.1)["choice"] != row(0.1, seed=1)["choice"]
    assert row(0.1, dev=0.1)["cell"] == row(0.1, dev=0.9)["cell"]


def test_the_choice_goes_by_dev_then_dev_loss_then_the_smaller_rate() -> None:
    rows = [row(1.0, 0.8, 0.2), row(0.3, 0.9, 0.5), row(0.1, 0.9, 0.4), row(0.03, 0.9, 0.4)]
    assert min(rows, key=best_first)["learning_rate"] == 0.03


def test_rows_are_read_again_and_what_a_kill_cut_off_is_removed(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add([row(0.1), row(0.3, chosen=True)])
    whole = results.path.read_bytes()
    results.path.write_bytes(whole + json.dumps(row(1.0)).encode()[:40])
    again = Results(tmp_path)
    assert len(again.rows) == 2 and again.path.read_bytes() == whole
    again.add([row(1.0)])
    assert len(Results(tmp_path).rows) == 3
    assert again.missing([row(0.1)["cell"], row(7.0)["cell"]]) == [row(7.0)["cell"]]


def test_a_line_that_no_kill_leaves_is_an_error_with_its_number(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add([row(0.1)])
    results.path.write_bytes(results.path.read_bytes() + b"oops\n")
    with pytest.raises(UserError, match="line 2"):
        Results(tmp_path)


def test_a_wider_grid_moves_the_choice_and_the_test_score_with_it(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add([row(0.1), row(0.3, dev=0.6, chosen=True)])
    results.add([row(1.0, dev=0.7, chosen=True)])
    rows = {found["learning_rate"]: found for found in Results(tmp_path).rows.values()}
    assert [rate for rate, found in rows.items() if found["chosen"]] == [1.0]
    assert "test" in rows[1.0] and "test" not in rows[0.3]


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    results = Results(tmp_path)
    results.add([row(0.1)])
    before = results.path.read_bytes()
    real, calls = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:50])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(MachineError, match=r"cannot write .*results.jsonl: no space left"):
        results.add([row(0.3)])
    assert len(calls) == 2 and results.path.read_bytes() == before


def test_files_of_a_cell_that_is_chosen_no_longer_go_with_its_test_score(tmp_path: Path) -> None:
    def files(cell: str) -> tuple[Path, Path]:
        return tmp_path / "predictions" / f"{cell}.jsonl", tmp_path / "prompts" / cell / "prompt.json"

    old, new, other = row(0.3, chosen=True), row(1.0, dev=0.7, chosen=True), row(0.1, seed=1, chosen=True)
    for path in (path for found in (old, new, other) for path in files(found["cell"])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    results = Results(tmp_path)
    results.add([old, other])
    results.add([new])
    assert not files(old["cell"])[0].exists() and not files(old["cell"])[1].parent.exists()
    assert all(path.exists() for found in (new, other) for path in files(found["cell"]))
    files(old["cell"])[0].write_text("x")  # as a kill between the two leaves it
    Results(tmp_path)
    assert not files(old["cell"])[0].exists() and files(new["cell"])[0].exists()


def test_of_two_chosen_rows_of_one_choice_added_together_the_later_stays_chosen(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add([row(0.1, chosen=True), row(0.3, dev=0.6, chosen=True)])
    rows = list(Results(tmp_path).rows.values())
    assert [(one["learning_rate"], one["chosen"], "test" in one) for one in rows] == [
        (0.1, False, False),
        (0.3, True, True),
    ]
