"""What stands in a report, section by section."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from corpora.common.blocks import Code, Entry, Notes, Picture, Section, Table, Text
from corpora.common.files import library_versions
from finetune import report_plots as plots
from finetune.report_asked import task_name
from finetune.report_chance import guesses
from finetune.report_costs import costs_of, costs_table
from finetune.report_read import Row, Run, read_curves
from finetune.report_stats import BASELINES, VARIANTS, Comparison, comparisons_table
from finetune.report_tables import (
    APART,
    Line,
    Places,
    Rates,
    in_order,
    main_table,
    rates_tables,
    seeds_table,
)
from finetune.report_words import load_vocabulary, prompt_words, spelt
from pretrain.artifact import prompts_folder

COSTS_TEXT = (
    "What each method takes, over the tasks of the main table: numbers that train, bytes to keep for a task besides the shared "
    "backbone, the largest memory of the process (of prompts: of the whole bank of cells since it began, alike for all that were tuned "
    "together, whatever their method), mean seconds to tune one cell (cells tuned "
    "together share their time), a whole grid of rates for one seed, and to score a test set once. Seconds are of the machine that ran the cell; "
    "– where the rows do not say."
)
LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "datasets", "sentencepiece", "numpy", "matplotlib")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def opening(
    runs: list[Run],
    rows: list[Row],
    shots: dict[str, int],
    seeds: list[int],
    notes: Sequence[str],
    warnings: list[str],
    seconds: dict[str, float] | None,
) -> Section:
    blocks: list[Any] = []
    if rows:
        counts = sorted(set(shots.values()))
        dev = sorted({int(row["n_dev"]) for row in rows if row.get("n_dev")})
        examples = " or ".join(map(str, counts)) + " training examples"
        blocks.append(
            Text(
                f"{_count(len(shots), 'task')}, {_count(len({row['method'] for row in rows}), 'method')}, "
                f"{_count(len(seeds), 'seed')}; {examples} a task"
                + (
                    f" and {' or '.join(map(str, dev))} to choose the step and the learning rate by"
                    if dev
                    else ""
                )
                + ". Test scores are those of the step and the learning rate that the development examples chose."
            )
        )
    blocks.append(Notes((*notes, f"Made from {', '.join(f'`{run.folder}`' for run in runs)}.")))
    if warnings:
        blocks.append(Notes(tuple(warnings), warning=True))
    if seconds:
        body = tuple((Entry(stage), Entry(f"{time:.0f}")) for stage, time in seconds.items())
        total = (Entry("total"), Entry(f"{sum(seconds.values()):.0f}", strong=True))
        blocks.append(Table(("stage", "seconds"), (*body, total)))
    return Section("What was run", tuple(blocks))


def results(
    rows: list[Row],
    places: Places,
    shots: dict[str, int],
    rates: dict[tuple[Line, str, int], Rates],
    seeds: list[int],
    table: Table,
    comparisons: list[Comparison],
) -> tuple[list[Picture], list[Section]]:
    """The pictures and sections that come from results.jsonl."""
    if not places:
        return [], [Section("Results", (Text("No cell has been scored on its test examples yet."),))]
    bars = plots.bars(places, shots, {task: guess.share for task, guess in guesses(rows).items()})
    pictures = [bars]
    explained = (
        "Test accuracy in percent: mean ± sample deviation (ddof 1) over seeds. The average is over all tasks, of the means "
        "and of the deviations. Bold is the highest mean of a task, which by itself is no claim: "
    )
    apart = any(APART in entry.text for line in table.body for entry in line)
    explained += (
        f"only entries with {APART} are told apart from it, each by a pair that Comparisons lists for the task."
        if apart
        else "no entry is told apart from it by a pair that Comparisons lists."
    )
    if any(stat.of("test_f1") for stat in places.values()):
        explained += " F1 is macro F1; averages hold accuracy only."
    if any(stat.filled_from for stat in places.values()):
        explained += " † another row's run fills this place, because both would be the same run."
    sections = [Section("Test accuracy", (Text(explained), table, bars))]
    drawn_apart, compared = _comparisons(comparisons, places, shots, seeds)
    pictures += drawn_apart
    sections += compared
    efficiency = plots.efficiency(places)
    if efficiency:
        pictures.append(efficiency)
        sections.append(Section("Sample efficiency", (efficiency,)))
    curves = read_curves(row for stat in places.values() for row in stat.rows.values())
    drawn = [
        plots.curves(places, shots, curves, field, label)
        for field, label in (
            ("dev", "dev accuracy, %"),
            ("dev_loss", "dev loss"),
            ("train_loss", "training loss"),
        )
    ]
    shown = [picture for picture in drawn if picture]
    if shown:
        pictures += shown
        sections.append(Section("Training curves", tuple(shown)))
    sections += _rates(rates, shots)
    costs = costs_of(places, rows)
    sections.append(Section("Costs", (Text(COSTS_TEXT), costs_table(costs, shots))))
    if any(stat.of("test_vocabulary") for stat in places.values()):
        sections.append(
            Section(
                "Accuracy over the whole vocabulary",
                (
                    Text(
                        "The same predictions counted right only where the label's words score above every other token, not just the other labels."
                    ),
                    main_table(places, shots, len(seeds), "test_vocabulary"),
                ),
                folded=True,
            )
        )
    sections.append(Section("All seeds", (seeds_table(places, seeds),), folded=True))
    return pictures, sections


def _comparisons(
    comparisons: list[Comparison], places: Places, shots: dict[str, int], seeds: list[int]
) -> tuple[list[Picture], list[Section]]:
    """What can be told apart: the table over all tasks with the picture, and the one task by task, folded."""
    planned = [one for one in comparisons if one.planned]
    if not planned:
        return [], []
    if len(seeds) < 2:
        text = "One seed: there is nothing to compare by. Comparisons need two seeds or more; the protocol has five."
        return [], [Section("Comparisons", (Text(text),))]
    together = [one for one in planned if one.task is None]
    apart = [one for one in planned if one.task is not None]
    ppt = all(one.one.method in VARIANTS and one.other.method in BASELINES for one in planned)
    pairs = "PPT and its variants against FT and against prompts without pre-training" if ppt else "All pairs"
    text = (
        f"{pairs}, over the same draws: a seed gives every method of a task the same examples, so scores are subtracted seed "
        "by seed. Difference of test accuracy in points, its 95 % interval (paired t), p, and p corrected for the "
        f"{_family(together or apart)} (Holm). The last column names a method only where it "
        "has the higher accuracy with a corrected p below 0.05."
    )
    if together:
        text += " Over all tasks: the mean of their differences, which speaks of these tasks with new draws."
        left = {line.label for line, _, _ in places} - {
            line.label for one in together for line in (one.one, one.other)
        }
        text += f" Not among them, for want of a task: {', '.join(sorted(left))}." if left else ""
    if any(one.paired and not one.paired.error for one in planned):
        text += " – where all differences of a task are equal: there is no deviation to judge by, nor for a mean that they are part of."
    picture = plots.differences(planned, shots)
    pictures = [picture] if picture else []
    sections = [Section("Comparisons", (Text(text), comparisons_table(together or apart), *pictures))]
    if together:
        text = f"As above, one task each; p corrected for the {_family(apart)}."
        sections.append(
            Section("Comparisons task by task", (Text(text), comparisons_table(apart)), folded=True)
        )
    return pictures, sections


def _family(comparisons: Sequence[Comparison]) -> str:
    """The comparisons of a table that count in its correction, said."""
    judged = sum(one.paired is not None for one in comparisons)
    among = "" if judged == len(comparisons) else " with two seeds in common"
    return f"{_count(judged, 'comparison')} of this table{among}"


def _rates(rates: dict[tuple[Line, str, int], Rates], shots: dict[str, int]) -> list[Section]:
    chosen, dev = rates_tables(rates, shots)
    text = (
        "Rates of prompts are in units of the embedding table's RMS, those of FT are plain. Each seed chose by its "
        "development examples; ×n: n seeds chose this one."
    )
    if any(found.end for found in rates.values()):
        text += " ‡ the rate with the highest mean lies at an end of the grid."
    sections = [Section("Chosen learning rates", (Text(text), chosen))]
    if dev.body:
        text = "Mean development accuracy in percent of every rate tried, over seeds; the highest of a method and task is bold."
        sections.append(
            Section("Development accuracy of every learning rate", (Text(text), dev), folded=True)
        )
    return sections


def warnings_of(
    places: Places, shots: dict[str, int], rates: dict[tuple[Line, str, int], Rates], seeds: list[int]
) -> list[str]:
    warnings = []
    lines = sorted({line for line, _, _ in places})
    for line in lines:
        absent = [task for task in shots if (line, task, shots[task]) not in places]
        short = [
            task
            for task in shots
            if (line, task, shots[task]) in places
            and len(places[line, task, shots[task]].scores) < len(seeds)
        ]
        if absent:
            warnings.append(f"{line.label} has no result on {', '.join(absent)}")
        if short:
            warnings.append(
                f"{line.label} lacks seeds on {', '.join(short)}: its mean is over fewer than {len(seeds)}"
            )
    ends: dict[tuple[Line, str, float], list[str]] = {}
    for (line, task, n), found in sorted(rates.items()):
        if found.end and shots[task] == n:
            ends.setdefault((line, found.end, found.best), []).append(task)
    if ends:
        where = [
            f"{line.label} on {', '.join(tasks)} ({end}, {rate:g})"
            for (line, end, rate), tasks in ends.items()
        ]
        warnings.append(
            f"The chosen learning rate lies at an end of its grid; widen the grid before methods are compared: {'; '.join(where)}"
        )
    return warnings


def words(
    runs: list[Run], places: Places, shots: dict[str, int], backbone: Path | str | None
) -> list[Section]:
    """The words nearest to the pre-trained prompts and to the tuned ones of the first seed."""
    prompts: dict[str, dict[str, Path]] = {}  # backbone folder -> title -> prompt folder
    for run in runs:
        own, adapted = backbone or run.config.get("backbone"), run.config.get("lm_backbone")
        source = run.config.get("prompts")
        if own and isinstance(source, str) and Path(source).is_dir():
            for folder in sorted(prompts_folder(source).iterdir()):
                prompts.setdefault(str(own), {})[f"pre-trained, {folder.name}"] = folder
        for line, task, n in sorted(places):
            stat = places[line, task, n]
            seed, row = min(stat.rows.items())
            if row["run"] != str(run.folder) or stat.filled_from or n != shots[task]:
                continue
            table = adapted if line.method == "lm_adaption" else own
            if table:
                title = f"{line.label}, {task} (seed {seed})"
                prompts.setdefault(str(table), {})[title] = run.folder / "prompts" / str(row["cell"])
    body = []
    for table, folders in prompts.items():
        vocabulary = load_vocabulary(table)
        for title, words in (prompt_words(folders, vocabulary) if vocabulary else {}).items():
            listed = " · ".join(f"{spelt(word)} {cosine:.2f}" for word, cosine in words)
            body.append((Entry(title), Entry(listed)))
    if not body:
        return []
    text = (
        "For each prompt the vocabulary words that any of its rows comes nearest to, with their cosine. Sentinels and control "
        "pieces are left out; a hyphen marks a piece that does not begin a word. Vanilla PT shows what a prompt that began at random looks like."
    )
    return [
        Section(
            "Words nearest to each prompt",
            (Text(text), Table(("prompt", "nearest words"), tuple(body), words=True)),
        )
    ]


def commands(rows: Iterable[Row], asked_by: Mapping[str, Run]) -> list[str]:
    """The commands that make the rows of a line, task and number of examples again, all seeds and rates; one for each of their settings.

    Args:
        rows: the rows.
        asked_by: cell -> its run under the settings that asked for it.
    """
    return list(dict.fromkeys(_command(row, asked_by[str(row["cell"])]) for row in rows))


def _command(row: Row, run: Run) -> str:
    named = [str(task) for task in run.config.get("tasks") or []]
    task = next((name for name in named if task_name(name) == row["task"]), str(row["task"]))
    words = [
        "ppt",
        "fewshot",
        str(run.config_file) if run.config else "CONFIG",
        f"tasks=[{task}]",
        f"methods=[{row['method']}]",
    ]
    if isinstance(run.config.get("shots"), list):
        words.append(f"shots=[{row['shots']}]")
    return shlex.join([*words, "out=runs/again"])


def closing(runs: list[Run], places: Places, asked_by: Mapping[str, Run]) -> list[Section]:
    sections = []
    if places:
        listed = (
            one for place in in_order(places) for one in commands(places[place].rows.values(), asked_by)
        )
        sections.append(
            Section(
                "Commands that make each number again",
                (
                    Text(
                        "One line for each method and task, one more for each other command that asked for its seeds; "
                        "`'seeds=[0]'` behind it makes a single seed. The same seed draws the same examples."
                    ),
                    Code("\n".join(dict.fromkeys(listed)), "text"),
                ),
                folded=True,
            )
        )
    for run in runs:
        blocks: list[Any] = []
        if run.config:
            blocks.append(Code(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True), "yaml"))
        if run.libraries:
            blocks.append(
                Text(
                    "Made with "
                    + ", ".join(f"{name} {version}" for name, version in run.libraries.items())
                    + "."
                )
            )
        if blocks:
            sections.append(Section(f"Settings of {run.folder}", tuple(blocks), folded=True))
        for name, config in run.earlier.items():
            block = Code(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "yaml")
            sections.append(
                Section(f"Settings of an earlier command ({run.folder / name})", (block,), folded=True)
            )
    versions = ", ".join(f"{name} {version}" for name, version in library_versions(*LIBRARIES).items())
    sections.append(
        Section("Library versions", (Text(f"This report was made with {versions}."),), folded=True)
    )
    return sections
