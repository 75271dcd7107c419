"""The few-shot job: tasks x methods x seeds x learning rates, chosen by dev, scored once on test."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.common.errors import MachineError, UserError
from corpora.common.files import (
    drop_partials,
    hash_json,
    library_versions,
    read_json,
    write_manifest,
    write_text_atomic,
)
from corpora.common.progress import Progress, say
from corpora.common.settings import read_yaml, save_settings
from finetune.choices import FinishedRates, full_tuning
from finetune.full_tuning import full_tuner
from finetune.memory import give_back_memory
from finetune.plan import Choice, plan, unfinished
from finetune.results import KnownRows, ResultRow, Results, protocol_parts
from finetune.schedule import Schedule, unwritten_rows
from finetune.settings import CONFIG, EARLIER, FewshotSettings
from finetune.sharded_weights import WAIT
from finetune.shares import ALONE, FOLDER, Share, SharedSteps, ShareRows, shared_rows
from finetune.task_check import check_run
from finetune.workshop import Workshop
from pretrain.checkpoint import run_lock
from pretrain.distributed import start_processes

LOOK_EVERY = 1.0  # seconds between looks at the rows of the other processes
SAY_AFTER = 60.0  # seconds in which none of them was heard of, until it is said
GONE_AFTER = (
    600.0  # until they are given up: they speak every other second, but for the time in which they load
)


def run_fewshot(settings: FewshotSettings, share: Share = ALONE) -> Path:
    """Run every cell that has no row yet.

    Args:
        settings: what to run and where.
        share: this process among those that run the job together, which all call this with the same settings.

    Returns:
        The run's folder: `results.jsonl`, `config.yaml`, `manifest.json`, `curves/CELL.jsonl`, of chosen cells
        `predictions/CELL.jsonl` and `prompts/CELL/`, and `earlier/` where it had other settings before.

    Raises:
        UserError: wrong input, before anything is trained; or another job is running in this folder.
        MachineError: the disk is full or the folder cannot be written; or the other processes have ended without their rows.
    """
    out = Path(settings.out)
    if (locked := share.locked(out)).exists():
        with run_lock(locked):  # a job that is refused is to hear it before it loads
            pass
    workshop = Workshop(settings, follows=not share.first)
    check_run(workshop)
    choices = plan(workshop)  # checks every input before the run's folder is made
    with run_lock(share.locked(out)):
        first = _begin(out, workshop, choices) if share.first else None
        results: KnownRows = first or ShareRows(out, share.rank)
        left = _unfinished(choices, results)
        total = sum(choice.steps for choice in left)
        with (
            Progress("few-shot tuning", total, "steps") as progress,
            SharedSteps(out, share, progress) as steps,
        ):
            for rows in _tune(workshop, choices, results, share, steps):
                steps.tell()  # who hears of the rows has heard of their steps
                results.add(rows)
                progress.note(f"{rows[-1]['task']} {rows[-1]['method']} dev {rows[-1]['dev']:.2f}")
                if first:
                    _take_over(out, first)
            if first and share.world > 1:
                _wait_for_others(out, first, choices, steps)
        if first:
            _end(out, first, choices)
    return out


def _begin(out: Path, workshop: Workshop, choices: Sequence[Choice]) -> Results:
    """The rows that are there, those of an earlier start's other processes among them."""
    results = Results(out)
    _take_over(out, results)
    _check_protocol(results, choices)
    workshop.wordings.save()
    keep_settings(out, workshop.settings)
    libraries = library_versions("torch", "transformers", "numpy")
    write_manifest(
        out, "fewshot_run", {"libraries": libraries, "left_out": _left_out(out, workshop, choices)}
    )
    cells = [key["cell"] for choice in choices for key in choice.keys]
    if len(missing := results.missing(cells)) < len(cells):
        say(f"{len(cells) - len(missing)} of {len(cells)} cells are in {results.path} and are not run again")
    return results


def keep_settings(out: Path, settings: FewshotSettings) -> None:
    """Write `config.yaml`; what it held of an earlier command goes to `earlier/`, so that a report knows every cell asked for."""
    config = out / CONFIG
    if config.exists() and (before := read_yaml(config)) != settings.model_dump(mode="json"):
        write_text_atomic(
            out / EARLIER / f"{hash_json(before)[:16]}.yaml", config.read_text(encoding="utf-8")
        )
    save_settings(config, settings)


def _left_out(out: Path, workshop: Workshop, choices: Sequence[Choice]) -> dict[str, str]:
    """Tasks without data and why, those of earlier commands among them."""
    manifest = out / "manifest.json"
    before: dict[str, str] = read_json(manifest).get("left_out", {}) if manifest.exists() else {}
    there = {choice.keys[0]["task"] for choice in choices}
    return {task: why for task, why in before.items() if task not in there} | workshop.left_out


def _take_over(out: Path, results: Results) -> None:
    """Add what the other processes have finished."""
    results.add(shared_rows(out))


def _wait_for_others(out: Path, results: Results, choices: Sequence[Choice], steps: SharedSteps) -> None:
    """Take over what is still to come from the other processes.

    Raises:
        MachineError: none of them lives, as far as can be seen in the run's folder.
    """
    cells = [key["cell"] for choice in choices for key in choice.keys]
    began, said = time.monotonic(), False
    while True:
        _take_over(out, results)
        steps.look()
        if not (missing := results.missing(cells)):
            break
        silent = min(steps.silent, time.monotonic() - began)
        what = f"{len(missing)} cells are left to other processes, none of which was heard of in {out} for {silent:.0f} s"
        if silent > GONE_AFTER:
            raise MachineError(f"{what}; see what ended them, the same command goes on from what is finished")
        if silent > SAY_AFTER and not said:
            say(f"warning: {what}; waiting for them")
            said = True
        time.sleep(LOOK_EVERY)  # the launcher ends this process when another one of this machine dies
    steps.forget()


def _end(out: Path, results: Results, choices: Sequence[Choice]) -> None:
    drop_partials(out)  # a process that was killed may have been writing
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    for note in notes(results, [choice.name for choice in choices]):
        say(note)
    say(f"results: {results.path}")


def _tune(
    workshop: Workshop, choices: Sequence[Choice], results: KnownRows, share: Share, steps: SharedSteps
) -> Iterator[list[ResultRow]]:
    """This process's cells: prompts on one backbone, on the other, then full tuning, unless all do that together, first.

    Yields:
        Rows of each choice as it is done.
    """
    together = workshop.settings.ft_zero_stage is not None
    folder = share.folder(Path(workshop.settings.out))
    rates = FinishedRates(folder / "ft.json")
    tuned = [choice for choice in choices if choice.cells[0].row.spec.trains == "backbone"]
    if together:
        left = _left_for_all(workshop, tuned, results, share, rates)
        for rows in _tune_all_weights(workshop, left, rates, steps if share.first else None):
            if share.first:
                yield rows
    for which in ("main", "lm"):
        kind = [choice for choice in choices if _is_prompts(choice, which)]
        path = folder / f"{which}.safetensors"
        mine = _part(workshop, kind, share)
        if rows := _unwritten(path, mine, results):
            steps.skip(sum(row["steps"] for row in rows))
            yield rows
        if left := _unfinished(mine, results):
            yield from _tune_prompts(workshop, which, left, path, steps)
        workshop.let_go(which)
    if not together:
        yield from _tune_all_weights(
            workshop, _unfinished(_part(workshop, tuned, share), results), rates, steps
        )


def _tune_prompts(
    workshop: Workshop, which: str, choices: Sequence[Choice], path: Path, steps: SharedSteps
) -> Iterator[list[ResultRow]]:
    """Prompts on one backbone, which nothing here holds on to afterwards.

    Yields:
        Rows of each choice as it is done.
    """
    schedule = Schedule(workshop, which, choices, path)
    steps.skip(schedule.steps_done())
    yield from schedule.run(steps.advance)


def _tune_all_weights(
    workshop: Workshop, choices: Sequence[Choice], rates: FinishedRates, steps: SharedSteps | None
) -> Iterator[list[ResultRow]]:
    """Full tuning, one choice after the other; the weights leave the memory with the last one.

    Args:
        workshop: of the run.
        choices: what to tune.
        rates: what an earlier start has done of the first choice.
        steps: counts steps; None in a process that tunes together with the first one, which counts and writes for both.

    Yields:
        Rows of each choice as it is done.
    """
    if not choices:
        return
    for which in ("main", "lm"):
        workshop.let_go(which)  # it may have chosen wordings
    tuner = full_tuner(workshop.settings, workshop.settings.backbone, workshop.options("main"))
    for number, choice in enumerate(choices, 1):
        yield full_tuning(workshop, choice, tuner, rates, steps)
        task = choice.cells[0].task
        if all(other.cells[0].task != task for other in choices[number:]):
            workshop.forget_task(task)
    tuner.end()
    del tuner
    give_back_memory()


def _left_for_all(
    workshop: Workshop, choices: Sequence[Choice], results: KnownRows, share: Share, rates: FinishedRates
) -> list[Choice]:
    """What is left of what all processes tune together, as the first one sees it: they must not differ in what they do."""
    left = _unfinished(choices, results)
    if not choices or share.world == 1:
        return left
    processes = start_processes(workshop.settings.device or "auto", timeout=WAIT)
    left, rates.outcomes = processes.gather((left, rates.outcomes))[0]
    return left


def _is_prompts(choice: Choice, which: str) -> bool:
    spec = choice.cells[0].row.spec
    return spec.trains == "prompt" and spec.backbone == which


def _part(workshop: Workshop, kind: Sequence[Choice], share: Share) -> list[Choice]:
    """This process's part of some choices."""
    alone = share.world == 1
    return share.of(kind, [0.0 if alone else workshop.cost(choice.cells, choice.steps) for choice in kind])


def _unwritten(checkpoint: Path, mine: Sequence[Choice], results: KnownRows) -> list[ResultRow]:
    """Rows that a kill left in a checkpoint alone."""
    wanted = set(results.missing(key["cell"] for choice in mine for key in choice.keys))
    return [row for row in unwritten_rows(checkpoint) if row["cell"] in wanted]


def _unfinished(choices: Sequence[Choice], results: KnownRows) -> list[Choice]:
    return [choice for choice in (unfinished(choice, results) for choice in choices) if choice is not None]


def _check_protocol(results: Results, choices: Sequence[Choice]) -> None:
    """Refuse a folder whose rows were made under another protocol: no report could hold both."""
    now: dict[tuple[str, ...], ResultRow] = {}
    for choice in choices:
        for which, part in protocol_parts(choice.keys[0]).items():
            now.setdefault(which, part)
    for row in results.rows.values():
        for which, part in protocol_parts(row).items():
            for name, value in now.get(which, {}).items():
                if part.get(name) != value:
                    raise UserError(
                        f'{results.path} holds rows of {row["task"]} with "{name.removeprefix("protocol.")}" {part.get(name)}, '
                        f"now it is {value}; give this run a folder of its own (out)"
                    )


def notes(results: Results, choices: Sequence[str]) -> list[str]:
    """What a reader must know about the grid: where the best rate lies at an end of several; of two each is an end."""
    found: dict[tuple[str, str, str], int] = {}
    for choice in dict.fromkeys(choices):
        rows = results.of_choice(choice)
        rates = sorted(row["learning_rate"] for row in rows)
        for row in rows:
            if row["chosen"] and len(rates) > 2 and row["learning_rate"] in (rates[0], rates[-1]):
                end = "smallest" if row["learning_rate"] == rates[0] else "largest"
                found[row["task"], row["method"], end] = found.get((row["task"], row["method"], end), 0) + 1
    return [
        f"{task} {method}: the {end} learning rate of the grid was chosen for {n} seeds; consider a wider grid"
        for (task, method, end), n in found.items()
        if n > 1
    ]
