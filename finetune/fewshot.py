"""The few-shot job: tasks x methods x seeds x learning rates, chosen by dev, scored once on test."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

from corpora.common.errors import UserError
from corpora.common.files import library_versions, write_manifest
from corpora.common.progress import Progress, say
from corpora.common.settings import save_settings
from finetune.jobs import run_job
from finetune.plan import Job, plan, unfinished
from finetune.results import ResultRow, Results
from finetune.settings import FewshotSettings
from finetune.workers import run_jobs
from finetune.workshop import Workshop
from pretrain.checkpoint import run_lock


def run_fewshot(settings: FewshotSettings) -> Path:
    """Run every cell that has no row yet.

    Args:
        settings: what to run and where.

    Returns:
        The run's folder: `results.jsonl`, `config.yaml`, `manifest.json`, `curves/CELL.jsonl`, and of chosen cells
        `predictions/CELL.jsonl` and `prompts/CELL/`.

    Raises:
        UserError: wrong input, before anything is trained; or another job is running in this folder.
        MachineError: the disk is full, the folder cannot be written, or a process died.
    """
    out = Path(settings.out)
    workshop = Workshop(settings)
    jobs = plan(workshop)  # checks every input before the run's folder is made
    with run_lock(out):
        results = Results(out)
        _check_protocol(results, jobs)
        save_settings(out / "config.yaml", settings)
        workshop.wordings.save()
        manifest = {
            "libraries": library_versions("torch", "transformers", "numpy"),
            "left_out": workshop.left_out,
        }
        write_manifest(out, "fewshot_run", manifest)
        todo = [job for job in (unfinished(job, results) for job in jobs) if job is not None]
        total = sum(len(job.cells) for job in jobs)
        left = sum(len(job.cells) for job in todo)
        if left < total:
            say(f"{total - left} of {total} cells are in {results.path} and are not run again")
        with Progress("few-shot tuning", sum(job.steps for job in todo), "steps") as progress:
            if settings.processes > 1 and len(todo) > 1:
                del workshop  # the processes load for themselves; the models here would only take room
                finished = run_jobs(settings, todo, progress.advance)
            else:
                finished = _one_by_one(workshop, todo, progress.advance)
            with closing(finished):  # what stops the run stops its processes before it is told
                for rows in finished:
                    results.add(rows)
                    progress.note(f"{rows[-1]['task']} {rows[-1]['method']} dev {rows[-1]['dev']:.2f}")
        for note in notes(results, [key["choice"] for job in jobs for key in job.keys]):
            say(note)
        say(f"results: {results.path}")
    return out


def _check_protocol(results: Results, jobs: Sequence[Job]) -> None:
    """Refuse a folder whose rows were made under another protocol: no report could hold both."""
    now = jobs[0].keys[0]["protocol"] if jobs else {}
    for row in results.rows.values():
        for name, value in now.items():
            if row["protocol"].get(name) != value:
                raise UserError(
                    f'{results.path} holds rows with "{name}" {row["protocol"].get(name)}, now it is {value}; '
                    "give this run a folder of its own (out)"
                )


def _one_by_one(
    workshop: Workshop, jobs: Sequence[Job], advance: Callable[[int], None]
) -> Generator[list[ResultRow], None, None]:
    for number, job in enumerate(jobs):
        yield run_job(workshop, job, advance)
        task = job.cells[0].task
        if all(later.cells[0].task != task for later in jobs[number + 1 :]):
            workshop.forget_task(task)


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
