"""Runs one job of a few-shot run: tune its cells, choose a rate for each seed, score what was chosen on test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpora.common.errors import MachineError
from corpora.common.files import write_text_atomic
from finetune.full_tuning import FullTuner
from finetune.methods import METHODS
from finetune.plan import Job
from finetune.results import ResultRow, best_first
from finetune.score import Scores, score_items
from finetune.tune import Outcome, TuneOptions, tune_prompts
from finetune.workshop import Cell, Workshop
from pretrain.artifact import PromptInfo, prompt_fingerprint, save_prompt

Advance = Callable[[int], None]


def run_job(workshop: Workshop, job: Job, advance: Advance) -> list[ResultRow]:
    """Tune a job's cells, choose a rate for each seed and score what was chosen on test.

    Returns:
        Rows for results.jsonl; their curves, predictions and prompts are on disk.
    """
    settings = workshop.settings
    options = TuneOptions(
        eval_every=settings.eval_every,
        batch_tokens=settings.micro_batch_tokens,
        weight_decay=settings.weight_decay,
        ft_weight_decay=settings.ft_weight_decay,
        clip=settings.clip,
        count=settings.count,
        length_normalised=settings.length_normalised,
    )
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
                batch_tokens=settings.micro_batch_tokens,
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
    settings = workshop.settings
    by_pattern: dict[int, list[int]] = {}
    for i in picked:
        cell = job.cells[i]
        renderer = workshop.renderer(cell)
        by_pattern.setdefault(id(renderer), []).append(i)
    tests = {}
    for members in by_pattern.values():
        cell = job.cells[members[0]]
        backbone = workshop.backbone(cell.row.spec.backbone)
        items = workshop.test_items(cell)
        prompts_KPD = torch.stack([outcomes[i].best for i in members])  # type: ignore[misc]
        scores = score_items(
            backbone,
            workshop.renderer(cell).verbalizer,
            items * len(members),
            prompts_KPD,
            np.repeat(np.arange(len(members)), len(items)),
            batch_tokens=settings.micro_batch_tokens,
            length_normalised=settings.length_normalised,
        )
        for place, i in enumerate(members):
            tests[rows[i]["cell"]] = scores.of(slice(place * len(items), (place + 1) * len(items)))
    return tests


def _keep(workshop: Workshop, cell: Cell, row: ResultRow, outcome: Outcome, scores: Scores) -> None:
    """Write a chosen cell's test scores into its row, its predictions and its prompt beside it."""
    settings, task = workshop.settings, workshop.task_of(cell)
    row["test"] = scores.accuracy
    row["test_loss"] = scores.loss
    row["test_vocabulary"] = scores.vocabulary_accuracy
    # A row's own options may be fewer than the task's most; those it lacks score minus infinity.
    row["test_chance"] = float(np.mean(1 / (~np.isneginf(scores.log_probs)).sum(axis=1)))
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
        task=task.model_copy(update={"used_pattern": cell.row.pattern}).model_dump(mode="json"),
    )
    folder = out / "prompts" / row["cell"]
    save_prompt(folder, outcome.best.float().cpu(), info)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_text_atomic(path, text)
