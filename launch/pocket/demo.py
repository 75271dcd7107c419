"""`ppt demo`: the whole pipeline on the embedded default, on a CPU, without a network.

Nothing in its results is scripted: the backbone is a real frozen model, only small, and every number comes from rows of
`fewshot/results.jsonl`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corpora.common.errors import MachineError, Stopped, UserError
from corpora.common.files import write_json
from corpora.common.progress import say
from corpora.common.settings import make_settings, read_yaml, save_settings
from launch.pocket.tasks import ALL_TASKS, DEMO_TASKS, TASK_FILES, write_reviews, write_tasks
from launch.pocket.world import HERE, write_documents

CONFIG = HERE / "demo.yaml"
BACKBONE, LM_BACKBONE = HERE / "backbone", HERE / "backbone_lm"
METHODS = ("ft", "vanilla_pt", "hybrid_pt", "lm_adaption", "ppt", "hybrid_ppt", "unified_ppt")
NOTES = (
    "The pocket world is made up and its backbone has 2.6 million weights; nothing is scripted, every number is a row of "
    "results.jsonl. Other models and sets give other numbers.",
    "One learning rate a method, fixed beforehand: of two the one with the higher dev score on sets of the same world drawn from other sentences "
    "and another seed (launch/pocket/choose_rates.py). The sets were chosen on other draws as well, after scores were seen there "
    "(docs/pocket.md). No number was tuned on these test sets.",
    "For time this departs from the protocol: 20 epochs instead of 50, 6 examples a label of the ten-label set instead of 8, a dev score every "
    "10 steps instead of 6, 200 test rows.",
)
FULL_NOTE = (
    "The learning rate of each cell is chosen by its dev score from the whole grid, as the protocol says."
)


class Stages:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and say that it begins."""
        say(f"== {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def write_world(folder: Path, world: dict[str, Any], tasks: tuple[str, ...], side: str = "test") -> None:
    """Write documents, reviews and labelled sets of one draw of the world, unless they are there."""
    if (folder / "reviews.jsonl").exists():
        return
    write_documents(folder / "documents.jsonl", world["documents"], world["seed"], relay=world["relay"])
    write_tasks(folder / "data", tasks, world["seed"], side, world["train"], world["test"])
    write_reviews(folder / "reviews.jsonl", world["reviews"], world["seed"])


def build_corpora(out: Path, backbone: Path) -> None:
    """Train the labeller on the reviews and build the four task corpora from the documents."""
    from corpora.build import build
    from corpora.build_settings import BuildSettings
    from corpora.label_training import train

    if not (out / "labeller").exists():
        train(out / "world" / "reviews.jsonl", out / "labeller", language="en", tokenizer=backbone)
    values = {
        "text": [str(out / "world" / "documents.jsonl")],
        "tokenizer": str(backbone),
        "out": str(out / "corpora"),
        "labeller": str(out / "labeller"),
        "language": "en",
    }
    build(make_settings(BuildSettings, values, "ppt demo"))


def pretrain_prompts(out: Path, values: dict[str, Any], backbone: Path) -> None:
    """Pre-train the four prompt groups through the DeepSpeed launcher.

    Raises:
        PPTError: the job ended otherwise than well, of the kind that its exit code says.
    """
    from launch.launcher import launch_pretraining
    from pretrain.settings import PretrainSettings

    paths = {"out": str(out / "pretrain"), "corpora": str(out / "corpora"), "backbone": str(backbone)}
    settings = make_settings(PretrainSettings, {**values, **paths}, str(CONFIG))
    save_settings(out / "pretrain.yaml", settings)
    _check(launch_pretraining(out / "pretrain.yaml", []), "prompt pre-training")


def tune_fewshot(values: dict[str, Any]) -> None:
    """Run a few-shot grid, through the DeepSpeed launcher where it has several processes.

    Raises:
        PPTError: the job ended otherwise than well, of the kind that its exit code says.
    """
    from finetune.settings import FewshotSettings
    from launch.launcher import launch_fewshot

    settings = make_settings(FewshotSettings, values, str(CONFIG))
    config = Path(f"{settings.out}.yaml")  # the run's own config.yaml is written by the run
    save_settings(config, settings)
    _check(launch_fewshot(config, []), "few-shot tuning")


def _check(code: int, what: str) -> None:
    if code:
        kinds = {kind.exit_code: kind for kind in (UserError, Stopped)}
        reason = f"{what} ended with exit code {code}; its messages stand above"
        raise kinds.get(code, MachineError)(reason)


def fewshot_values(
    out: Path, values: dict[str, Any], tasks: tuple[str, ...], folder: str = "fewshot"
) -> dict[str, Any]:
    """The few-shot settings of a run in `out`/`folder`."""
    return {
        "methods": METHODS,
        **values,
        "out": str(out / folder),
        "backbone": str(BACKBONE),
        "lm_backbone": str(LM_BACKBONE),
        "prompts": str(out / "pretrain"),
        "tasks": tuple(str(TASK_FILES / f"{name}.yaml") for name in tasks),
        "data": str(out / "world" / "data"),
    }


def main_table(markdown: str) -> str:
    """The lines of a report's first table of results: what fits a terminal."""
    section = markdown.partition("## Test accuracy")[2].partition("\n## ")[0]
    return "\n".join(line for line in section.splitlines() if line.startswith("|"))


def run_demo(out: Path, full: bool = False) -> None:
    """Run every stage; what an earlier start finished is not done again.

    Args:
        out: folder of everything; `summary.json` and `report.*` lie in it at the end.
        full: all tasks, and the whole grid of learning rates instead of the rates chosen beforehand.

    Raises:
        MachineError: a stage failed.
    """
    from finetune.report import report

    config = read_yaml(CONFIG)
    tasks = ALL_TASKS if full else DEMO_TASKS
    fewshot = "fewshot-full" if full else "fewshot"  # rows of the whole grid would choose other rates
    stages = Stages()
    with stages.stage("world"):
        write_world(out / "world", config["world"], ALL_TASKS)
    with stages.stage("corpora"):
        build_corpora(out, BACKBONE)
    with stages.stage("pretrain"):
        pretrain_prompts(out, config["pretrain"], BACKBONE)
    with stages.stage("fewshot"):
        values = {**config["fewshot"], **(config["full"] if full else {})}
        tune_fewshot(fewshot_values(out, values, tasks, fewshot))
    with stages.stage("report"):
        notes = (NOTES[0], FULL_NOTE) if full else NOTES
        made = report(
            [out / fewshot, out / "pretrain"],
            out,
            title="The pocket demo",
            notes=notes,
            seconds=stages.seconds,
            backbone=BACKBONE,
        )
    total = sum(stages.seconds.values())
    write_json(out / "summary.json", {"seconds": stages.seconds, **made.summary})
    say(main_table(made.text))
    say(f"report: {out / 'report.html'}; numbers: {out / 'summary.json'}; {total:.0f} s in all")
