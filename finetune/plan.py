"""Which cells a few-shot run has, what names each, and which run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from corpora.common.errors import UserError
from finetune.methods import Row, rows_for
from finetune.present import check_task_names, present_tasks
from finetune.results import ResultRow, Results, cell_name, choice_name
from finetune.settings import FewshotSettings
from finetune.task import BY_DEV, Task
from finetune.wordings import distinct
from finetune.workshop import Cell, Workshop

# Settings that hold for every cell of a run alike, and make it another cell where they differ.
PROTOCOL = (
    "dev_shots", "shots_per_label", "stratified", "epochs", "batch_size", "eval_every", "prompt_len", "count",
    "length_normalised", "weight_decay", "ft_weight_decay", "clip", "dtype", "max_test", "of_task",
)  # fmt: skip


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


def plan(workshop: Workshop) -> list[Job]:
    """All cells of a run in jobs. The jobs depend on the settings alone, so a restarted run has the same ones.

    Raises:
        UserError: anything that a cell needs is missing or wrong.
    """
    settings = workshop.settings
    present = present_tasks(workshop)
    names = [workshop.task(name).name for name in present]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two task files have the name {sorted(twice)[0]}; give each a name of its own")
    check_task_names(workshop, settings.of_task)
    jobs = []
    for name in present:
        task = workshop.task(name)
        rows = rows_for(task, settings.methods)
        all_shots = settings.all_shots(len(workshop.data(name).train))
        if task.many_labels:
            all_shots = all_shots[:1]
        choices: dict[tuple[str, int], list[list[Cell]]] = {}
        for shots in _different(workshop, name, all_shots):
            for seed in settings.seeds:
                for row in rows:
                    kind = row.spec.backbone if row.spec.trains == "prompt" else f"ft {seed}"
                    for init, wording in variants(task, row, settings):
                        cells = [
                            Cell(name, shots, row, seed, rate, init, wording)
                            for rate in sorted(settings.rates(row.method))
                        ]
                        choices.setdefault((kind, shots), []).append(cells)
        for (kind, _), sets in choices.items():
            limit = 1 if kind.startswith("ft") else settings.prompts_together
            jobs += [_job(workshop, cells) for cells in _chunks(sets, limit)]
    # The longest first, so that several processes end together; ties keep their order.
    return sorted(jobs, key=lambda job: -job.steps) if settings.processes > 1 else jobs


def variants(task: Task, row: Row, settings: FewshotSettings) -> list[tuple[str, str]]:
    """(start, wording) of every line that a method has in the table.

    Starts differ only where the prompt's is random, and of wordings that are the same under the method's pattern the
    first stands for all.

    Raises:
        UserError: the task's file has no such wording.
    """
    inits = settings.inits if row.spec.init == "random" else settings.inits[:1]
    wordings: dict[object, str] = {}
    for name in settings.wordings:
        by_dev = name == BY_DEV and len(distinct(task, row.pattern)) > 1
        worded = task if name == BY_DEV else task.worded(name)
        content = BY_DEV if by_dev else (worded.pattern_text(row.pattern), worded.verbalizer)
        wordings.setdefault(content, name)
    return [(init, wording) for wording in wordings.values() for init in inits]


def _different(workshop: Workshop, name: str, all_shots: Sequence[int]) -> list[int]:
    """Those numbers of examples that draw different numbers: with `allow_fewer` several may take all there is."""
    drawn: dict[int, int] = {}
    for shots in all_shots:
        drawn.setdefault(len(workshop.draw(name, shots, workshop.settings.seeds[0]).train), shots)
    return list(drawn.values())


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
    workshop.renderer(cell)  # refuses bad label words
    drawn = workshop.draw(cell.task, cell.shots, cell.seed)
    text = workshop.task_of(cell).pattern_text(row.pattern)
    asked = workshop.asked(cell.task, cell.shots)
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
        "wording": cell.wording,
        "chosen_wording": workshop.wording(cell),
        "shots": len(drawn.train),
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
        "protocol": protocol,
        "steps": len(workshop.order(cell)),
        "n_train": len(drawn.train),
        "n_dev": len(drawn.dev),
        "asked_train": asked[0],
        "asked_dev": asked[1],
        "n_test": len(workshop.test_rows(cell.task)),
        "fills": list(row.fills),
    }
    return {**key, "cell": cell_name(key), "choice": choice_name(key)}


def unfinished(job: Job, results: Results) -> Job | None:
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
