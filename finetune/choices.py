"""What becomes of a choice whose cells are tuned: the best rate is chosen by dev, scored once on test, and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpora.common.errors import MachineError
from corpora.common.files import write_text_atomic
from corpora.common.progress import say
from finetune.calibrate import ItemSet, score_sets
from finetune.full_tuning import FullTuner
from finetune.methods import METHODS
from finetune.plan import Choice
from finetune.results import ResultRow, best_first
from finetune.score import Scores
from finetune.shares import SharedSteps
from finetune.tune import Outcome
from finetune.workshop import Cell, Workshop
from pretrain.artifact import PromptInfo, prompt_fingerprint, save_prompt


class FinishedRates:
    """Learning rates of full tuning that are done while their choice is not: a kill does not cost them.

    Outcomes alone are kept, no weights, which may be tens of gigabytes. Where the rate that is chosen at last is one of an
    earlier start, it is tuned again to be scored.

    Attributes:
        outcomes: of cells of the choice under way.
    """

    def __init__(self, path: Path) -> None:
        """Read what an earlier start has finished."""
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self.outcomes = {name: Outcome.of_state(state, None) for name, state in found.items()}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                say(f"warning: {path} is spoilt ({error}); the full tuning under way begins again")

    def of(self, choice: Choice) -> dict[int, Outcome]:
        """Those of a choice, by the numbers of its cells."""
        names = [key["cell"] for key in choice.keys]
        return {number: self.outcomes[name] for number, name in enumerate(names) if name in self.outcomes}

    def write(self) -> None:
        """Put what is finished on disk.

        Raises:
            MachineError: the disk is full or the place cannot be written.
        """
        states = {name: outcome.state() for name, outcome in self.outcomes.items()}
        write_text_atomic(self.path, json.dumps(states))


def full_tuning(
    workshop: Workshop, choice: Choice, tuner: FullTuner, rates: FinishedRates, steps: SharedSteps | None
) -> list[ResultRow]:
    """Tune all weights in each cell of a choice, one after the other, and finish it.

    Args:
        workshop: of the run.
        choice: what to tune.
        tuner: of its backbone.
        rates: what an earlier start has finished; those of this choice are added.
        steps: counts them; None in a process that tunes together with the first one, which writes for all.

    Returns:
        Rows as `finish_choice` gives them.
    """
    trials = [workshop.trial(cell) for cell in choice.cells]
    rival = min((best_first(row) for row in choice.known), default=None)
    done = rates.of(choice)
    rates.outcomes = {choice.keys[number]["cell"]: outcome for number, outcome in done.items()}

    def finished(number: int, outcome: Outcome) -> None:
        rates.outcomes[choice.keys[number]["cell"]] = outcome
        if steps is not None:
            rates.write()

    if steps is not None:
        steps.skip(sum(choice.keys[number]["steps"] for number in done))
    advance = steps.advance if steps is not None else lambda n: None
    outcomes = tuner.tune_rates(trials, advance, rival, done, finished)
    return finish_choice(workshop, choice, outcomes, tuner, writes=steps is not None)


def finish_choice(
    workshop: Workshop,
    choice: Choice,
    outcomes: Sequence[Outcome],
    tuner: FullTuner | None = None,
    writes: bool = True,
) -> list[ResultRow]:
    """Choose a rate and score it on test.

    Args:
        workshop: of the run.
        choice: whose cells are tuned.
        outcomes: one a cell.
        tuner: in full tuning, what has kept the chosen weights.
        writes: whether this process writes what lies beside the rows, of those that tune together.

    Returns:
        Rows for results.jsonl; their curves, predictions and prompts are on disk.
    """
    rows = [_row(workshop, key, outcome) for key, outcome in zip(choice.keys, outcomes, strict=True)]
    out = Path(workshop.settings.out)
    best = min((*rows, *choice.known), key=best_first)
    for cell, row, outcome in zip(choice.cells, rows, outcomes, strict=True):
        if writes:
            _write_lines(out / "curves" / f"{row['cell']}.jsonl", outcome.curve)
        if row is best:
            row["chosen"] = True
            scores = _score_test(workshop, cell, row, outcome, tuner)
            if writes:
                _write_predictions(workshop, cell, row, scores)
                if tuner is None and workshop.settings.keep_prompts:
                    _save_prompt(workshop, cell, row, outcome)
    return rows


def _row(workshop: Workshop, key: ResultRow, outcome: Outcome) -> ResultRow:
    if outcome.best is None and not outcome.curve:
        raise MachineError(
            f"{key['task']} {key['method']} seed {key['seed']}: the loss is not finite before any training; "
            "try dtype: float32, and check the backbone's weights"
        )
    method = METHODS[key["method"]]
    is_prompt = method.trains == "prompt"
    size = workshop.size(method.backbone)
    trained = workshop.settings.prompt_len * size.d_model if is_prompt else size.weights
    return {
        **key,
        "dev": outcome.dev,
        "dev_loss": outcome.dev_loss,
        "step": outcome.step,
        "diverged": outcome.diverged,
        "seconds": round(outcome.seconds, 3),
        "trained": trained,
        "stored_bytes": 4 * trained,  # both are kept in float32
        "peak_bytes": outcome.peak_bytes or None,
        "prompt": prompt_fingerprint(outcome.best) if is_prompt else None,  # type: ignore[arg-type]
        "chosen": False,
    }


def _score_test(
    workshop: Workshop, cell: Cell, row: ResultRow, outcome: Outcome, tuner: FullTuner | None
) -> Scores:
    """Score a chosen cell and write it into its row."""
    settings, task = workshop.settings, workshop.task_of(cell)
    items = workshop.test_items(cell)
    verbalizer = workshop.renderer(cell).verbalizer
    began = time.perf_counter()
    items_to_score = ItemSet(items, verbalizer, content_free=workshop.content_free(cell, items))
    if tuner is not None:
        scores = tuner.score_best(items_to_score)
    else:
        assert outcome.best is not None
        net = workshop.net(cell.row.spec.backbone)
        (scores,) = score_sets(
            net.backbone,
            [items_to_score],
            outcome.best[None],
            batch_tokens=workshop.options(cell.row.spec.backbone).batch_tokens,
            length_normalised=settings.length_normalised,
            options=net.options,
        )
    row["test_seconds"] = round(time.perf_counter() - began, 3)
    row["test"] = scores.accuracy
    row["test_loss"] = scores.loss if np.isfinite(scores.loss) else None  # JSON knows no NaN
    row["test_vocabulary"] = scores.vocabulary_accuracy
    # A row's own options may be fewer than the task's most; those it lacks score minus infinity.
    row["test_chance"] = float(np.mean(1 / scores.n_labels))
    row["test_majority"] = float(np.bincount(scores.labels).max() / len(scores.labels))
    if "macro_f1" in task.also:
        row["test_f1"] = scores.macro_f1
    return scores


def _write_predictions(workshop: Workshop, cell: Cell, row: ResultRow, scores: Scores) -> None:
    lines = [
        {
            "row": int(number),
            "label": int(scores.labels[i]),
            "prediction": int(scores.predictions[i]),
            "log_probs": [round(float(x), 6) if np.isfinite(x) else None for x in scores.log_probs[i]],
        }
        for i, number in enumerate(workshop.test_rows(cell.task))
    ]
    _write_lines(Path(workshop.settings.out) / "predictions" / f"{row['cell']}.jsonl", lines)


def _save_prompt(workshop: Workshop, cell: Cell, row: ResultRow, outcome: Outcome) -> None:
    task, backbone = workshop.task_of(cell), workshop.backbone(cell.row.spec.backbone)
    assert isinstance(outcome.best, torch.Tensor)
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
    folder = Path(workshop.settings.out) / "prompts" / row["cell"]
    save_prompt(folder, outcome.best.float().cpu(), info)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_text_atomic(path, text)
