"""The cost table against sums by hand, and the paper's figures, which never stand without their mark."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from finetune.methods import METHODS
from finetune.report import report
from finetune.report_costs import costs_of, costs_table, duration, size
from finetune.report_reference import reference
from finetune.report_tables import places_of


def made_row(method: str, seed: int, rate: float, chosen: bool = False, **changes: Any) -> dict[str, Any]:
    row = {
        "task": "sst2", "method": method, "seed": seed, "shots": 32, "learning_rate": rate, "dev": 0.7 + 0.1 * chosen,
        "init": "feed" if method == "ppt" else None, "chosen": chosen, "backbone_fingerprint": "f", **changes,
    }  # fmt: skip
    if chosen:
        row |= {"test": 0.8}
    return {"cell": f"{method}-{seed}-{rate}-{row['task']}", **row}


def costed(method: str, seconds: tuple[float, ...], trained: int, **changes: Any) -> list[dict[str, Any]]:
    """Two seeds of a grid; the first rate is chosen, and takes 2 s to score."""
    return [
        made_row(
            method, seed, 0.1 * (i + 1), i == 0, seconds=took + seed, trained=trained, stored_bytes=4 * trained,
            peak_bytes=10**9 + seed, **({"test_seconds": 2.0 + seed} if i == 0 else {}), **changes,
        )
        for seed in (0, 1)
        for i, took in enumerate(seconds)
    ]  # fmt: skip


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_costs_are_the_rows_own_sums() -> None:
    rows = costed("ppt", (3.0, 5.0, 10.0), 40_960)
    (cost,) = costs_of(places_of(rows), rows).values()
    assert (cost.cells, cost.trained, cost.stored_bytes, cost.peak_bytes) == (6, 40_960, 163_840, 10**9 + 1)
    assert cost.cell == pytest.approx((3 + 5 + 10 + 4 + 6 + 11) / 6)
    assert cost.grid == pytest.approx(((3 + 5 + 10) + (4 + 6 + 11)) / 2)
    assert cost.test == pytest.approx(2.5)


def test_the_cost_table_stands_in_the_report_and_beside_it_as_csv(tmp_path: Path) -> None:
    rows = costed("ppt", (3.0, 5.0), 40_960) + costed("ft", (100.0, 1000.0), 248_000_000)
    text = report([write_run(tmp_path / "run", rows)], tmp_path / "out").text
    section = text.split("## Costs")[1].split("##")[0]
    lines = {line.split("|")[1].strip(): [entry.strip() for entry in line.split("|")[2:-1]] for line in section.splitlines() if line.startswith("| ")}  # fmt: skip
    assert lines["PPT"] == ["40,960", "164 kB", "1.0 GB", "4.5", "9.0", "2.5"]
    assert lines["FT"] == ["248,000,000", "992 MB", "1.0 GB", "550", "1,101", "2.5"]
    with open(tmp_path / "out" / "costs.csv", encoding="utf-8") as file:
        listed = {row["method"]: row for row in csv.DictReader(file)}
    assert float(listed["ft"]["seconds_of_the_grid"]) == 1101 and listed["ppt"]["trained"] == "40960"


def test_rows_of_an_earlier_release_show_a_dash() -> None:
    rows = [made_row("ppt", seed, 0.3, True) for seed in (0, 1)]
    table = costs_table(costs_of(places_of(rows), rows), {"sst2": 32})
    assert [entry.text for entry in table.body[0]] == ["PPT", *["–"] * 6]


def test_a_grid_of_which_one_cell_has_no_seconds_has_none() -> None:
    rows = costed("ppt", (3.0, 5.0), 10)
    del rows[1]["seconds"]
    (cost,) = costs_of(places_of(rows), rows).values()
    assert cost.grid == pytest.approx(4 + 6) and cost.cell == pytest.approx((3 + 4 + 6) / 3)


def test_tasks_that_differ_show_their_range_and_mean_seconds() -> None:
    rows = costed("ft", (1.0,), 1000) + costed("ft", (3.0,), 2000, task="cb")
    table = costs_table(costs_of(places_of(rows), rows), {"sst2": 32, "cb": 32})
    assert [entry.text for entry in table.body[0]] == ["FT", "1,000 to 2,000", "4.0 kB to 8.0 kB", "1.0 GB", "2.5", "2.5", "2.5"]  # fmt: skip


def test_what_another_run_fills_costs_nothing_again() -> None:
    rows = costed("ppt", (3.0,), 10, fills=["unified_ppt"])
    assert [line.method for line, _, _ in costs_of(places_of(rows), rows)] == ["ppt"]


def test_sizes_and_seconds_have_about_three_figures() -> None:
    assert [size(n) for n in (0, 999, 163_840, 1_638_400, 44e9, 3e12)] == ["0 B", "999 B", "164 kB", "1.6 MB", "44.0 GB", "3.0 TB"]  # fmt: skip
    assert [duration(x) for x in (0.0213, 0.9951, 83.24, 1520.4)] == ["0.021", "1.0", "83.2", "1,520"]


def test_the_papers_figures_are_shown_only_when_asked_for_and_each_is_marked(tmp_path: Path) -> None:
    rows = costed("ppt", (3.0,), 10) + costed("ppt", (3.0,), 10, task="mine")
    run = write_run(tmp_path / "run", rows)
    assert "unverified" not in report([run], tmp_path / "plain").text
    made = report([run], tmp_path / "out", reference=True)
    section = made.text.split("## Reference figures (unverified)")[1].split("\n## ")[0]
    assert "recalled, not read from the paper" in section and "**Warning:**" in section
    head, _, *lines = [line for line in section.splitlines() if line.startswith("|")]
    assert "unverified" in head and "mine" not in head
    assert len(lines) == 1 and "80.0 ± 0.0" in lines[0] and lines[0].count("?") == 1
    mean, deviation = reference().scores["ppt", "sst2"]
    assert f"{mean:.1f} ± {deviation:.1f} ?" in lines[0]
    assert f"{mean:.1f}" not in made.text.replace(section, "")


def test_a_report_without_a_task_of_the_paper_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", costed("ppt", (3.0,), 10, task="mine"))
    assert "No task of this report has one" in report([run], tmp_path / "out", reference=True).text


def test_every_row_of_the_papers_table_has_a_figure_for_every_task() -> None:
    known = reference()
    assert set(known.scores) == {(method, task) for method in METHODS for task in known.tasks}
    assert all(0 < mean < 100 and 0 <= deviation < 20 for mean, deviation in known.scores.values())
