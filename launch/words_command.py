"""`ppt task words`: label words for a task, searched with a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.arguments import AsJson, print_result

if TYPE_CHECKING:
    from finetune.word_search import Assignment, Found


def words(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task file, or the name of a shipped task.")],
    backbone: Annotated[str, typer.Option(help="Folder or hub name.")],
    data: Annotated[str | None, typer.Option(help="Folder that holds the task's data.")] = None,
    seed: Annotated[int, typer.Option(help="Whose draw of examples is used.")] = 0,
    n: Annotated[int, typer.Option("-n", help="Words a label, and combinations.", min=1)] = 10,
    shots: Annotated[int, typer.Option(help="Examples to search with.", min=2)] = 32,
    dev_shots: Annotated[int, typer.Option(help="Examples beside them, to check with.", min=1)] = 32,
    pattern: Annotated[
        str | None, typer.Option(help="hard or plain; default: hard where there is one.")
    ] = None,
    prompt_len: Annotated[
        int, typer.Option(help="Tokens kept free for a prompt, as tuning does.", min=1)
    ] = 100,
    out: Annotated[
        Path | None, typer.Option(help="Write a copy of the task file with the best as wordings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search label words: what the backbone itself expects at the mask of each label's examples.

    Example: ppt task words sst2 --backbone google/t5-v1_1-small --data mydata --out mine/sst2.yaml
    """
    from corpora.common.errors import UserError
    from corpora.common.progress import say
    from corpora.common.settings import make_settings
    from finetune.settings import FewshotSettings
    from finetune.task import Task
    from finetune.word_search import find_label_words
    from launch.task_wordings import write_wordings

    if pattern not in (None, "hard", "plain"):
        raise UserError(f'--pattern is "{pattern}"; expected hard or plain')
    if out is not None and out.exists():
        raise UserError(f"{out} exists already; name a new file with --out")
    values: dict[str, Any] = {
        "out": "", "backbone": backbone, "tasks": [task], "data": data, "shots": shots, "dev_shots": dev_shots,
        "prompt_len": prompt_len,
    }  # fmt: skip
    found = find_label_words(make_settings(FewshotSettings, values, "ppt task words"), seed, n, pattern)  # type: ignore[arg-type]
    print_result(as_values(found), as_json, as_text(found))
    if out is not None:
        n_new = write_wordings(Task.path_of(task), out, found, data)
        say(
            f"{out}: {n_new} wordings that the file had not; `wording: dev` in a few-shot run chooses among them"
        )


def as_values(found: Found) -> dict[str, Any]:
    """What was found, for a program."""

    def entry(one: Assignment) -> dict[str, Any]:
        return {
            "words": list(one.words), "accuracy": one.accuracy, "loss": one.loss, "dev_accuracy": one.dev_accuracy,
            "dev_loss": one.dev_loss,
        }  # fmt: skip

    return {
        "task": found.task.name,
        "pattern": found.task.pattern_text(found.kind),
        "backbone": found.backbone,
        "backbone_fingerprint": found.backbone_fingerprint,
        "seed": found.seed,
        "n_train": found.n_train,
        "n_dev": found.n_dev,
        "labels": {
            label: [{"word": word, "ratio": ratio} for word, ratio in ranked]
            for label, ranked in zip(found.task.labels, found.words, strict=True)
        },
        "own": entry(found.own) if found.own else None,
        "best": [entry(one) for one in found.best],
    }


def as_text(found: Found) -> str:
    """What was found, as two tables."""
    lines = [
        f"{found.task.name}: words at <X> of `{found.task.pattern_text(found.kind)}`, from {found.n_train} training examples",
        "",
        "words of each label, by the ratio of their probability there to that at the other labels (log):",
    ]
    width = max(map(len, found.task.labels))
    for label, ranked in zip(found.task.labels, found.words, strict=True):
        listed = "  ".join(f"{word} {ratio:+.2f}" for word, ratio in ranked)
        lines.append(f"  {label:<{width}}  {listed}")
    lines += [
        "",
        f"combinations (accuracy and loss; dev: {found.n_dev} examples that the search has not seen):",
    ]
    rows = [("words", "accuracy", "loss", "dev accuracy", "dev loss")]
    for one in (*((found.own,) if found.own else ()), *found.best):
        mine = " (the task's own)" if one is found.own else ""
        rows.append(
            (
                ", ".join(one.words) + mine, f"{100 * one.accuracy:.1f}", f"{one.loss:.2f}", f"{100 * one.dev_accuracy:.1f}",
                f"{one.dev_loss:.2f}",
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        first, *others = (
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  " + "  ".join((first, *others)))
    return "\n".join(lines)
