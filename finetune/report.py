"""`ppt report`: the rows of few-shot runs as tables and pictures, each number with the command that makes it again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.common.blocks import Picture, Section, Table, markdown
from corpora.common.errors import UserError
from corpora.common.files import write_bytes_atomic, write_json, write_text_atomic
from corpora.common.page import page
from corpora.common.plots import missing_glyphs
from finetune import report_plots as plots
from finetune.report_asked import askers
from finetune.report_chance import at_chance
from finetune.report_costs import COST_FIELDS, cost_records, costs_of
from finetune.report_gaps import fewer_examples, left_out
from finetune.report_missing import missing_section
from finetune.report_read import Row, Run, check_protocol, choose_again, merge_rows, read_run
from finetune.report_reference import reference_section
from finetune.report_sections import closing, commands, opening, results, warnings_of, words
from finetune.report_stats import COMPARISON_FIELDS, Comparison, as_records, compare, told_apart
from finetune.report_tables import (
    Places,
    in_order,
    main_shots,
    main_table,
    places_of,
    rates_of,
    summarise,
)
from finetune.report_wordings import search_sections, wording_sections

__all__ = ["Report", "report", "summarise"]

CSV_FIELDS = (
    "method", "label", "filled_from", "task", "task_version", "shots", "seed", "test", "test_f1", "test_vocabulary", "dev",
    "dev_loss", "learning_rate", "step", "steps", "seconds", "test_seconds", "n_train", "n_dev", "n_test", "init", "backbone_fingerprint",
    "prompt", "cell", "run",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What a report says and where it lies.

    Attributes:
        summary: see `summarise`.
        warnings: what the reader should know before trusting a number.
        files: all files written.
        text: the Markdown.
        table: the main table.
    """

    summary: dict[str, Any]
    warnings: list[str]
    files: list[Path]
    text: str
    table: Table | None


def report(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    seconds: dict[str, float] | None = None,
    backbone: Path | str | None = None,
    reference: bool = False,
) -> Report:
    """Write `report.md`, `report.json`, `report.html`, the pictures, and `report.csv`, `comparisons.csv` and `costs.csv`.

    Args:
        runs: folders of few-shot runs and, for their curves, of pre-training runs.
        out: folder to write into; files of an earlier report there are replaced.
        title: heading of the report.
        notes: lines to stand at the top, for example where the learning rates come from.
        seconds: stage -> seconds, shown as a table.
        backbone: folder of the backbone, for the words nearest to each prompt; None takes the one that a run's
            settings name, where it lies on this machine.
        reference: show the paper's figures beside this run's, marked unverified.

    Returns:
        The report; its files are on disk.

    Raises:
        UserError: a folder is no run, a line is wrong, or the runs do not share one protocol.
    """
    if not runs:
        raise UserError("no run was given; expected the folder of at least one run")
    read = [read_run(folder) for folder in runs]
    rows, conflicts = merge_rows(read)
    check_protocol(rows)
    rows, again = choose_again(rows)
    metrics = [run for run in read if run.metrics]
    out = Path(out)
    title = title or "Few-shot results" if rows else title or "Prompt pre-training"
    places, shots, rates = places_of(rows), main_shots(rows), rates_of(rows)
    seeds = sorted({int(row["seed"]) for row in rows})
    missing, lacking = missing_section(read, rows)
    warnings = [note for run in read for note in run.notes] + conflicts + lacking + fewer_examples(read, rows)
    warnings += (
        warnings_of(places, shots, rates, seeds) + at_chance(places, shots, rows) + left_out(read, rows)
    )
    searches, searched = search_sections(rows)
    warnings += searched
    if again:
        notes = [
            *notes,
            f"{again} choices of a learning rate were made again by dev, over the rates of several runs.",
        ]
    sections: list[Section] = list(missing)
    pictures: list[Picture] = []
    comparisons = compare(places, shots)
    table = None
    if rows:
        table = main_table(places, shots, len(seeds), apart=told_apart(comparisons, places))
        pictures, result_sections = results(rows, places, shots, rates, seeds, table, comparisons)
        sections += result_sections
        if reference:
            first = [
                section.title.startswith(("Test accuracy", "Comparisons")) for section in result_sections
            ]
            sections.insert(len(missing) + sum(first), reference_section(places, shots))
        sections += [*wording_sections(read), *searches]
        sections += words(read, places, shots, backbone)
    for number, run in enumerate(metrics):
        picture = plots.pretraining(
            run.metrics, "pretraining" + (f"_{number + 1}" if len(metrics) > 1 else "")
        )
        if picture:
            pictures.append(picture)
            sections.append(Section(f"Pre-training ({run.folder})", (picture,)))
    glyphs = missing_glyphs([*shots, *(line.label for line, _, _ in places)])
    if glyphs and pictures:
        warnings.append(
            f"no font of this machine draws {glyphs}: boxes in the PNG files, right in the page; install a font that has them"
        )
    sections.insert(0, opening(read, rows, shots, seeds, notes, warnings, seconds))
    asked_by = askers(read, rows)
    sections += closing(read, places, asked_by)
    files = _write(out, title, sections, pictures, read, rows, places, warnings, comparisons, asked_by)
    return Report(summarise(rows), warnings, files, markdown(title, sections), table)


def _write(
    out: Path,
    title: str,
    sections: list[Section],
    pictures: list[Picture],
    runs: list[Run],
    rows: list[Row],
    places: Places,
    warnings: list[str],
    comparisons: list[Comparison],
    asked_by: Mapping[str, Run],
) -> list[Path]:
    files = []
    for picture in pictures:
        files.append(out / f"{picture.name}.png")
        write_bytes_atomic(files[-1], picture.png)
    table = []
    lines: list[dict[str, Any]] = []
    for line, task, n in in_order(places):
        stat = places[line, task, n]
        for row in stat.rows.values():
            lines.append(
                {**row, "method": line.method, "label": line.label, "filled_from": stat.filled_from or ""}
            )
        f1 = stat.of("test_f1")
        table.append(
            {
                "method": line.method,
                "label": line.label,
                "key": line.key,
                "task": task,
                "shots": n,
                "scores": {str(seed): score for seed, score in stat.scores.items()},
                "mean": stat.mean,
                "std": stat.std,
                "f1": {"mean": f1.mean, "std": f1.std} if f1 else None,
                "filled_from": stat.filled_from,
                "cells": [str(row["cell"]) for row in stat.rows.values()],
                "command": "\n".join(commands(stat.rows.values(), asked_by)),
            }
        )
    compared, costs = as_records(comparisons), cost_records(costs_of(places, rows))
    content = {
        "title": title,
        "warnings": warnings,
        "table": table,
        **summarise(rows),
        "comparisons": compared,
        "costs": costs,
        "protocol": rows[0].get("protocol") if rows else None,
        "runs": [
            {
                "folder": str(run.folder),
                "settings": run.config,
                "earlier_settings": list(run.earlier.values()),
                "libraries": run.libraries,
            }
            for run in runs
        ],
    }
    for name, fields, records in (
        ("report", CSV_FIELDS, lines),
        ("comparisons", COMPARISON_FIELDS, compared),
        ("costs", COST_FIELDS, costs),
    ):
        files.append(out / f"{name}.csv")
        write_text_atomic(files[-1], _csv(fields, records))
    write_json(out / "report.json", content)
    write_text_atomic(out / "report.md", markdown(title, sections))
    write_text_atomic(out / "report.html", page(title, sections))
    return [*files, *(out / f"report.{suffix}" for suffix in ("json", "md", "html"))]


def _csv(fields: Sequence[str], records: Sequence[dict[str, Any]]) -> str:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return lines.getvalue()
