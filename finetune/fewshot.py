"""The few-shot job: tasks x methods x seeds x learning rates, chosen by dev, scored once on test."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from corpora.common.errors import MachineError, UserError
from corpora.common.files import library_versions, write_manifest, write_text_atomic
from corpora.common.progress import Progress, say
from corpora.common.settings import save_settings
from finetune.draws import batches
from finetune.full_tuning import FullTuner
from finetune.methods import METHODS, rows_for
from finetune.results import ResultRow, Results, best_first, cell_name, choice_name
from finetune.score import Scores, score_items
from finetune.settings import FewshotSettings
from finetune.tune import Outcome, TuneOptions, tune_prompts
from finetune.workshop import Cell, Workshop
from pretrain.artifact import PromptInfo, prompt_fingerprint, save_prompt

PROTOCOL = (
    "dev_shots", "shots_per_label", "stratified", "epochs", "batch_size", "eval_every", "prompt_len", "count",
    "length_normalised", "weight_decay", "ft_weight_decay", "clip", "dtype", "max_test",
)  # fmt: skip
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """Cells that run together: prompts of one task and backbone in one bank, or one seed of full tuning."""

    cells: tuple[Cell, ...]
    keys: tuple[ResultRow, ...]  # of each cell: the fields that its row starts with
    known: tuple[ResultRow, ...] = ()  # finished rows of the same choices, from an earlier run

    @property
    def steps(self) -> int:
        """Optimiser steps of all its cells."""
        return sum(key["steps"] for key in self.keys)


def run_fewshot(settings: FewshotSettings) -> Path:
    """Run every cell that has no row yet.

    Args:
        settings: what to run and where.

    Returns:
        The run's folder: `results.jsonl`, `config.yaml`, `manifest.json`, `curves/CELL.jsonl`, and of chosen cells
        `predictions/CELL.jsonl` and `prompts/CELL/`.

    Raises:
        UserError: wrong input, before anything is trained.
    """
    out = Path(settings.out)
    workshop = Workshop(settings)
    jobs = plan(workshop)  # checks every input before the run's folder is made
    results = Results(out)
    save_settings(out / "config.yaml", settings)
    write_manifest(out, "fewshot_run", {"libraries": library_versions("torch", "transformers", "numpy")})
    todo = [job for job in (_unfinished(job, results) for job in jobs) if job is not None]
    total = sum(len(job.cells) for job in jobs)
    left = sum(len(job.cells) for job in todo)
    if left < total:
        say(f"{total - left} of {total} cells are in {results.path} and are not run again")
    with Progress("few-shot tuning", sum(job.steps for job in todo), "steps") as progress:
        if settings.processes > 1 and len(todo) > 1:
            from finetune.workers import run_jobs

            for rows in run_jobs(settings, todo, progress.advance):
                results.add(rows)
        else:
            for number, job in enumerate(todo):
                progress.note(f"{job.keys[0]['task']}")
                results.add(run_job(workshop, job, progress.advance))
                if all(other.cells[0].task != job.cells[0].task for other in todo[number + 1 :]):
                    workshop.forget_task(job.cells[0].task)
    for note in notes(results, [key["choice"] for job in jobs for key in job.keys]):
        say(note)
    say(f"results: {results.path}")
    return out


def plan(workshop: Workshop) -> list[Job]:
    """All cells of a run in jobs. The jobs depend on the settings alone, so a restarted run has the same ones.

    Raises:
        UserError: anything that a cell needs is missing or wrong.
    """
    settings = workshop.settings
    names = [workshop.task(name).name for name in settings.tasks]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two task files have the name {sorted(twice)[0]}; give each a name of its own")
    jobs = []
    for name in settings.tasks:
        task = workshop.task(name)
        rows = rows_for(task, settings.methods)
        all_shots = settings.all_shots[:1] if task.many_labels else settings.all_shots
        choices: dict[tuple[str, int], list[list[Cell]]] = {}
        for shots in all_shots:
            for seed in settings.seeds:
                for row in rows:
                    cells = [
                        Cell(name, shots, row, seed, rate) for rate in sorted(settings.rates(row.method))
                    ]
                    kind = row.spec.backbone if row.spec.trains == "prompt" else f"ft {seed}"
                    choices.setdefault((kind, shots), []).append(cells)
        for (kind, _), sets in choices.items():
            limit = 1 if kind.startswith("ft") else settings.prompts_together
            jobs += [_job(workshop, cells) for cells in _chunks(sets, limit)]
    # The longest first, so that several processes end together; ties keep their order.
    return sorted(jobs, key=lambda job: -job.steps) if settings.processes > 1 else jobs


def _chunks(sets: Sequence[list[Cell]], limit: int) -> list[tuple[Cell, ...]]:
    """Whole sets of cells (one choice of a rate each), as evenly as they go, in chunks of about `limit` cells."""
    total = sum(map(len, sets))
    per_chunk = max(1, -(-total // max(1, -(-total // limit))))
    chunks: list[list[Cell]] = [[]]
    for cells in sets:
        if chunks[-1] and len(chunks[-1]) + len(cells) > per_chunk:
            chunks.append([])
        chunks[-1].extend(cells)
    return [tuple(chunk) for chunk in chunks]


def _job(workshop: Workshop, cells: tuple[Cell, ...]) -> Job:
    return Job(cells, tuple(key_of(workshop, cell) for cell in cells))


def key_of(workshop: Workshop, cell: Cell) -> ResultRow:
    """The fields that say what a cell is, with its name, and the counts that are known before it runs.

    Raises:
        UserError: anything that the cell needs is missing or wrong.
    """
    settings, task, row = workshop.settings, workshop.task(cell.task), cell.row
    backbone = workshop.backbone(row.spec.backbone)
    workshop.renderer(cell.task, row.spec.backbone, row.pattern)  # refuses bad label words
    drawn = workshop.draw(cell.task, cell.shots, cell.seed)
    order = batches(len(drawn.train), settings.batch_size, settings.epochs, cell.seed, task.name)
    text = task.pattern_text(row.pattern)
    protocol = settings.model_dump(mode="json", include=set(PROTOCOL))
    key: ResultRow = {
        "backbone": backbone.name,
        "backbone_fingerprint": backbone.fingerprint,
        "task": task.name,
        "task_version": task.version,
        "data_fingerprint": workshop.data(cell.task).fingerprint,
        "method": row.method,
        "init": workshop.start_name(cell),
        "pattern": text,
        "hard_prompt": text if row.pattern == "hard" else None,
        "verbalizer": workshop.label_words(cell),
        "shots": len(drawn.train),
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
        "protocol": protocol,
        "steps": len(order),
        "n_train": len(drawn.train),
        "n_dev": len(drawn.dev),
        "n_test": len(workshop.test_rows(cell.task)),
        "fills": list(row.fills),
    }
    return {**key, "cell": cell_name(key), "choice": choice_name(key)}


def _unfinished(job: Job, results: Results) -> Job | None:
    """The job with its cells that have no row yet, and the rows that they are compared with; None if all have one."""
    missing = set(results.missing(key["cell"] for key in job.keys))
    pairs = [(cell, key) for cell, key in zip(job.cells, job.keys, strict=True) if key["cell"] in missing]
    if not pairs:
        return None
    choices = {key["choice"] for _, key in pairs}
    known = tuple(row for choice in sorted(choices) for row in results.of_choice(choice))
    return replace(
        job, cells=tuple(cell for cell, _ in pairs), keys=tuple(key for _, key in pairs), known=known
    )


def run_job(workshop: Workshop, job: Job, advance: Advance) -> list[ResultRow]:
    """Tune a job's cells, choose a rate for each seed and score what was chosen on test.

    Returns:
        Rows for results.jsonl; their curves, predictions and prompts are on disk.
    """
    settings = workshop.settings
    options = TuneOptions(**{name: getattr(settings, name) for name in TuneOptions.__dataclass_fields__})
    started = time.perf_counter()
    spec = job.cells[0].row.spec
    tests: dict[str, Scores] = {}
    if spec.trains == "backbone":
        tuner = FullTuner(workshop.backbone(spec.backbone, "float32"))
        outcomes: list[Outcome] = []
        for cell in job.cells:
            outcomes.append(tuner.tune(workshop.trial(cell), options, advance))
            rows = [_finished(key, outcome, 0.0) for key, outcome in zip(job.keys, outcomes, strict=False)]
            best = min(rows, key=best_first)["cell"]
            for row, outcome in zip(rows, outcomes, strict=True):
                if row["cell"] != best:
                    outcome.best = None  # one copy of all weights is enough
    else:
        trials = [workshop.trial(cell) for cell in job.cells]
        outcomes = tune_prompts(workshop.backbone(spec.backbone), trials, options, advance)
    seconds = (time.perf_counter() - started) / len(job.cells)
    rows = [_finished(key, outcome, seconds) for key, outcome in zip(job.keys, outcomes, strict=True)]
    picked = _choose(rows, job.known)
    if spec.trains == "backbone":
        for i in picked:
            weights = outcomes[i].best
            assert isinstance(weights, dict)
            tests[rows[i]["cell"]] = score_items(
                tuner.load(weights),
                workshop.trial(job.cells[i]).verbalizer,
                workshop.test_items(job.cells[i]),
                None,
                batch_tokens=settings.batch_tokens,
                length_normalised=settings.length_normalised,
            )
    else:
        tests = _prompt_tests(workshop, job, rows, outcomes, picked)
    for row, outcome in zip(rows, outcomes, strict=True):
        _write_lines(Path(settings.out) / "curves" / f"{row['cell']}.jsonl", outcome.curve)
    for i in picked:
        _keep(workshop, job.cells[i], rows[i], outcomes[i], tests[rows[i]["cell"]])
    return rows


def _finished(key: ResultRow, outcome: Outcome, seconds: float) -> ResultRow:
    if outcome.best is None and not outcome.curve:
        raise MachineError(
            f"{key['task']} {key['method']} seed {key['seed']}: the loss is not finite before any training; "
            "try dtype: float32, and check the backbone's weights"
        )
    is_prompt = METHODS[key["method"]].trains == "prompt"
    return {
        **key,
        "dev": outcome.dev,
        "dev_loss": outcome.dev_loss,
        "step": outcome.step,
        "diverged": outcome.diverged,
        "seconds": round(seconds, 3),
        "prompt": prompt_fingerprint(outcome.best) if is_prompt else None,  # type: ignore[arg-type]
        "chosen": False,
    }


def _choose(rows: Sequence[ResultRow], known: Sequence[ResultRow]) -> list[int]:
    """Mark the best row of each choice; those that an earlier run's row beats stay unchosen."""
    picked = []
    for choice in dict.fromkeys(row["choice"] for row in rows):
        best = min((row for row in (*rows, *known) if row["choice"] == choice), key=best_first)
        for i, row in enumerate(rows):
            if row is best:
                row["chosen"] = True
                picked.append(i)
    return picked


def _prompt_tests(
    workshop: Workshop,
    job: Job,
    rows: Sequence[ResultRow],
    outcomes: Sequence[Outcome],
    picked: Sequence[int],
) -> dict[str, Scores]:
    """Test scores of the chosen prompts; those that share a pattern share their batches."""
    import torch

    settings = workshop.settings
    by_pattern: dict[int, list[int]] = {}
    for i in picked:
        cell = job.cells[i]
        renderer = workshop.renderer(cell.task, cell.row.spec.backbone, cell.row.pattern)
        by_pattern.setdefault(id(renderer), []).append(i)
    tests = {}
    for members in by_pattern.values():
        cell = job.cells[members[0]]
        backbone = workshop.backbone(cell.row.spec.backbone)
        items = workshop.test_items(cell)
        prompts_KPD = torch.stack([outcomes[i].best for i in members])  # type: ignore[misc]
        scores = score_items(
            backbone,
            workshop.renderer(cell.task, cell.row.spec.backbone, cell.row.pattern).verbalizer,
            items * len(members),
            prompts_KPD,
            np.repeat(np.arange(len(members)), len(items)),
            batch_tokens=settings.batch_tokens,
            length_normalised=settings.length_normalised,
        )
        for place, i in enumerate(members):
            tests[rows[i]["cell"]] = scores.of(slice(place * len(items), (place + 1) * len(items)))
    return tests


def _keep(workshop: Workshop, cell: Cell, row: ResultRow, outcome: Outcome, scores: Scores) -> None:
    """Write a chosen cell's test scores into its row, its predictions and its prompt beside it."""
    import torch

    settings, task = workshop.settings, workshop.task(cell.task)
    row["test"] = scores.accuracy
    row["test_loss"] = scores.loss
    row["test_vocabulary"] = scores.vocabulary_accuracy
    if "macro_f1" in task.also:
        row["test_f1"] = scores.macro_f1
    out = Path(settings.out)
    lines = [
        {
            "row": int(number),
            "label": int(scores.labels[i]),
            "prediction": int(scores.predictions[i]),
            "log_probs": [round(float(x), 6) if np.isfinite(x) else None for x in scores.log_probs[i]],
        }
        for i, number in enumerate(workshop.test_rows(cell.task))
    ]
    _write_lines(out / "predictions" / f"{row['cell']}.jsonl", lines)
    if not settings.keep_prompts or not isinstance(outcome.best, torch.Tensor):
        return
    backbone = workshop.backbone(cell.row.spec.backbone)
    info = PromptInfo(
        format="unified" if cell.row.pattern == "unified" else task.format,
        backbone=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        tokenizer_fingerprint=workshop.tokenizer(cell.row.spec.backbone).fingerprint,
        embedding_rms=backbone.embedding_rms,
        corpus_manifest=workshop.prompt(cell.row.group)[1].corpus_manifest if cell.row.group else None,
        step=outcome.step,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        dev_score=outcome.dev,
        licence=None,
        task={**task.model_dump(mode="json"), "used_pattern": cell.row.pattern},
    )
    folder = out / "prompts" / row["cell"]
    save_prompt(folder, outcome.best.float().cpu(), info)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_text_atomic(path, text)


def notes(results: Results, choices: Sequence[str]) -> list[str]:
    """What a reader must know about the grid: where the best rate lies at an end of several."""
    found: dict[tuple[str, str, str], int] = {}
    for choice in dict.fromkeys(choices):
        rows = results.of_choice(choice)
        rates = sorted(row["learning_rate"] for row in rows)
        for row in rows:
            if row["chosen"] and len(rates) > 1 and row["learning_rate"] in (rates[0], rates[-1]):
                end = "smallest" if row["learning_rate"] == rates[0] else "largest"
                found[row["task"], row["method"], end] = found.get((row["task"], row["method"], end), 0) + 1
    return [
        f"{task} {method}: the {end} learning rate of the grid was chosen for {n} seeds; consider a wider grid"
        for (task, method, end), n in found.items()
        if n > 1
    ]


def threads_each(processes: int) -> int:
    """Threads of each of several processes on this machine."""
    return max(
        1,
        (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        // processes,
    )
