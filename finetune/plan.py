"""Which cells a few-shot run has and what names each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from corpora.common.errors import UserError
from finetune.methods import rows_for
from finetune.present import present_tasks
from finetune.results import KnownRows, ResultRow, cell_name, choice_name
from finetune.wordings import variants
from finetune.workshop import Cell, Workshop

# Settings that hold for every cell of a run alike, and make it another cell where they differ; those of `OF_TASK` beside them.
PROTOCOL = (
    "shots_per_label", "stratified", "batch_size", "prompt_len", "count", "length_normalised", "calibration",
    "weight_decay", "ft_weight_decay", "clip", "dtype", "ft_dtype", "max_test", "patience", "weights",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The cells among which dev chooses one: all learning rates of a method, seed, task and number of examples."""

    cells: tuple[Cell, ...]
    keys: tuple[ResultRow, ...]  # of each cell: the fields that its row starts with
    known: tuple[ResultRow, ...] = ()  # finished rows of the same choice, from an earlier run

    @property
    def name(self) -> str:
        """What its rows call it."""
        return str(self.keys[0]["choice"])

    @property
    def steps(self) -> int:
        """Optimiser steps of all its cells."""
        return sum(key["steps"] for key in self.keys)


def plan(workshop: Workshop) -> list[Choice]:
    """All cells of a run, in the order in which they are tuned; it depends on the settings alone.

    Raises:
        UserError: anything that a cell needs is missing or wrong.
    """
    settings = workshop.settings
    present = present_tasks(workshop)
    names = [workshop.task(name).name for name in present]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two task files have the name {sorted(twice)[0]}; give each a name of its own")
    choices = []
    for name in present:
        task = workshop.task(name)
        rows = rows_for(task, settings.methods)
        all_shots = settings.all_shots[:1] if task.many_labels else settings.all_shots
        for shots in _different(workshop, name, all_shots):
            for seed in settings.seeds:
                for row in rows:
                    rates = sorted(settings.rates(row.method))
                    for init, wording in variants(task, row, settings.inits, settings.wordings):
                        cells = tuple(Cell(name, shots, row, seed, rate, init, wording) for rate in rates)
                        choices.append(Choice(cells, tuple(key_of(workshop, cell) for cell in cells)))
    return choices


def _different(workshop: Workshop, name: str, all_shots: Sequence[int]) -> list[int]:
    """Those numbers of examples that draw different numbers: with `allow_fewer` several may take all there is."""
    drawn: dict[int, int] = {}
    for shots in all_shots:
        drawn.setdefault(len(workshop.draw(name, shots, workshop.settings.seeds[0]).train), shots)
    return list(drawn.values())


def key_of(workshop: Workshop, cell: Cell) -> ResultRow:
    """The fields that say what a cell is, with its name, and the counts that are known before it runs.

    Raises:
        UserError: anything that the cell needs is missing or wrong.
    """
    settings, task, row = workshop.settings, workshop.task(cell.task), cell.row
    backbone = workshop.backbone(row.spec.backbone)
    workshop.renderer(cell)  # refuses bad label words
    drawn = workshop.draw(cell.task, cell.shots, cell.seed)
    text = workshop.task_of(cell).pattern_text(row.pattern)
    protocol = {
        **settings.model_dump(mode="json", include=set(PROTOCOL)),
        "dev_shots": settings.asked.counts(task, cell.shots)[1],  # of each label where the task has many
        "epochs": settings.epochs_of(task.name, row.spec.trains),
        "eval_every": settings.eval_every_of(task.name),
    }
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
        "wording": cell.wording,
        "chosen_wording": workshop.wording(cell),
        "word_search": workshop.word_search(cell),
        "tokenizer_fingerprint": workshop.tokenizer(row.spec.backbone).fingerprint,
        "max_tokens": task.encoder_tokens(row.pattern),
        "shorten": list(task.shorten),
        "shots": len(drawn.train),
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
        "protocol": protocol,
        "steps": len(workshop.order(cell)),
        "n_train": len(drawn.train),
        "n_dev": len(drawn.dev),
        "n_test": len(workshop.test_rows(cell.task)),
        "fills": list(row.fills),
    }
    return {**key, "cell": cell_name(key), "choice": choice_name(key)}


def unfinished(choice: Choice, results: KnownRows) -> Choice | None:
    """The choice with its cells that have no row yet, and the rows that they are compared with; None if all have one."""
    missing = set(results.missing(key["cell"] for key in choice.keys))
    pairs = [
        (cell, key) for cell, key in zip(choice.cells, choice.keys, strict=True) if key["cell"] in missing
    ]
    if not pairs:
        return None
    known = tuple(results.of_choice(choice.name))
    return Choice(tuple(cell for cell, _ in pairs), tuple(key for _, key in pairs), known)
