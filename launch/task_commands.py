"""`ppt task`: a task file from a user's own data, and what is wrong with it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from corpora.common.errors import UserError, nearest
from corpora.common.progress import console, say
from launch.arguments import AsJson, given, new_app, print_result

task_app = new_app("Tasks of your own: a task file from your data, and what is wrong with it.")


@task_app.command("new")
def task_new(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="JSONL, CSV or TSV files, plain or .gz, or a folder with a training and a test file.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The task file to write, as mine/reviews.yaml.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="The test file, where its name does not say it.")
    ] = None,
    split: Annotated[
        float | None, typer.Option(help="Hold this share of the rows out as a test set, where there is none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the task; default: the file's.")] = None,
    format: Annotated[
        str | None, typer.Option(help="single_text, sentence_pair, multiple_choice or unified.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    fields: Annotated[
        str | None, typer.Option(help="Columns to read, comma-separated, in their order.")
    ] = None,
    options: Annotated[
        str | None,
        typer.Option(
            help="Column with a list of a row's own options, or one column for each; none: no such."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The labels as the data have them, in the order of --words; rows with -1, None or N/A have none where it is left out."
        ),
    ] = None,
    first_option: Annotated[str | None, typer.Option(help="Number of a row's first option: 0 or 1.")] = None,
    words: Annotated[
        str | None, typer.Option(help="What stands for the labels: word,word or label=word,label=word.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Of the patterns: en or zh.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A backbone or vocabulary: check words and lengths, and show two rows.")
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Ask nothing, take all guesses; so does a command without a terminal."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Look at labelled data and write a task file for it; what cannot be known is guessed, and asked on a terminal.

    Exit code 2 where the written file or its data are wrong: say what is to change with --overwrite.

    Example: ppt task new reviews.csv --split 0.2 --out mine/reviews.yaml
    """
    from finetune.task_check import check_task
    from finetune.task_new import new_task

    flags = given(
        format=format, label=label, fields=fields, options=options, labels=labels, words=words, language=language,
        **{"first-option": first_option},
    )  # fmt: skip
    chooser = Chooser(flags, asking=on_terminal() and not yes)
    draft = new_task(data, out, chooser, test or (), split, name, overwrite)
    if chooser.guessed:
        say(f"guessed: {' '.join(chooser.guessed)}")
    what = f"{len(draft.labels)} labels" if draft.labels else f"up to {draft.max_options} options a row"
    left = f"; not read: {', '.join(draft.left_out)}" if draft.left_out else ""
    if draft.labels and (unlabelled := [f'"{value}"' for value in draft.unlabelled if value]):
        left += f"; {', '.join(unlabelled)} taken for no label (--labels decides)"
    checked = check_task(out, None, tokenizer)
    hint = "" if tokenizer else " (label words and lengths are looked at with --tokenizer)"
    text = f"{out}: {draft.format}, {what} in {draft.label}, reads {', '.join(draft.fields.values())}{left}\n{checked.text}{hint}"
    print_result(checked.as_json(), False, text)
    say(f"next: read {out}, ppt task check it, and name it in the settings of ppt fewshot: tasks: [{out}]")
    if checked.errors:
        raise typer.Exit(2)


@task_app.command("check")
def task_check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A task file, or the name of a shipped task.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of the run that is planned, as shots=16 allow_fewer=true.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A backbone or vocabulary to look at label words and lengths with.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data; default: as the file says.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings of a few-shot run, a file or a preset: its backbone, data and examples count."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a task file and its data; exit code 2 where something is an error.

    Example: ppt task check mine/reviews.yaml --tokenizer google/t5-v1_1-small
    """
    from finetune.task_check import PROTOCOL, check_task

    asked, methods = PROTOCOL, None
    source: str | Path | Mapping[str, str] | None = data
    if config is not None or overrides:
        from corpora.common.settings import load_settings
        from finetune.settings import FewshotSettings
        from launch.launcher import fewshot_settings

        mine = [*(overrides or []), f"tasks={json.dumps([file])}"]
        if config is None:
            mine += ["out=runs/fewshot", "backbone=none"]
            settings = load_settings(FewshotSettings, None, mine)
        else:
            settings = fewshot_settings(config, mine)
        asked = settings.asked
        methods = settings.methods if "methods" in settings.model_fields_set else None
        source = data if data is not None else settings.data
        tokenizer = tokenizer if tokenizer is not None or config is None else settings.backbone
    checked = check_task(file, source, tokenizer, asked, methods)
    print_result(checked.as_json(), as_json, checked.text)
    if tokenizer is None:
        say("label words and lengths were not looked at: name a backbone with --tokenizer")
    if checked.errors:
        raise typer.Exit(2)


def on_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class Chooser:
    """Settles parts of a task (`finetune.task_draft.Choose`).

    Args:
        flags: what the command line says, by part.
        asking: whether there is a person to ask for the rest.

    Attributes:
        guessed: flags that would say what was guessed and nobody was asked for.
    """

    def __init__(self, flags: Mapping[str, str], asking: bool) -> None:
        self.flags, self.asking = flags, asking
        self.guessed: list[str] = []

    def __call__(
        self,
        part: str,
        question: str,
        guess: str | None,
        among: Sequence[str] = (),
        otherwise: str = "",
        check: Callable[[str], object] | None = None,
    ) -> str:
        """See `finetune.task_draft.Choose`."""
        if part not in self.flags and self.asking and question:
            if guess is None:
                say(otherwise)
            return _ask(question, guess, among, check)
        answer = self.flags.get(part, guess)
        if answer is None:
            raise UserError(otherwise)
        _check(f"--{part}", answer, among if part in self.flags and answer != guess else (), check)
        if part not in self.flags and question:
            self.guessed.append(f"--{part} {shlex.quote(answer)}")
        return answer


def _ask(
    question: str, guess: str | None, among: Sequence[str], check: Callable[[str], object] | None
) -> str:
    """Ask until the answer is valid."""
    while True:
        shown = question if guess is None else f"{question} [{guess}]"
        try:
            answer = console().input(f"{shown}: ", markup=False).strip() or guess
            if answer:
                _check("the answer", answer, () if answer == guess else among, check)
                return answer
        except EOFError as error:
            raise UserError("the input ended before the questions did; --yes takes all guesses") from error
        except UserError as error:
            say(str(error))


def _check(what: str, answer: str, among: Sequence[str], check: Callable[[str], object] | None) -> None:
    from finetune.task_draft import split

    for one in split(answer) if among and answer not in among else ():
        if one not in among:
            raise UserError(f'{what} names "{one}"{nearest(one, among)}')
    if check is not None:
        check(answer)
