"""The `ppt` command: thin commands over the packages, one-line errors, the exit codes of `docs/architecture.md`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from corpora.common.errors import Stopped
from launch.arguments import AsJson, Language, new_app, print_result, terminal_columns
from launch.corpora_commands import corpora_app
from launch.exits import ENDINGS, end
from launch.task_commands import task_app
from launch.words_command import words

# Settings that quieten libraries must stand before those libraries are imported, which commands do late:
# `ppt --help` answers at once.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


app = new_app("Pre-trained prompt tuning: raw text in, soft prompts and few-shot tables out.")
backbone_app = new_app("Vocabularies and backbones of your own.")
prompts_app = new_app("Prompts on disk: look at them, take them elsewhere, bring others in.")
app.add_typer(corpora_app, name="corpora")
app.add_typer(backbone_app, name="backbone")
app.add_typer(prompts_app, name="prompts")
app.add_typer(task_app, name="task")
task_app.command("words")(words)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override the file, nested ones as a.b=1."),
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file of settings.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="All tasks and the whole grid of rates.")] = False,
) -> None:
    """Run the whole pipeline on the embedded default, in minutes on a CPU.

    Example: ppt demo --out runs/demo
    """
    from launch.pocket.demo import run_demo

    run_demo(out, full=full)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def pretrain(context: typer.Context, config: Config) -> None:
    """Pre-train prompt groups: starts the DeepSpeed launcher.

    CONFIG is a YAML file or the name of a preset (t5-small to t5-xxl, mt5-xxl). After it come settings as KEY=VALUE
    (all of them: docs/pretraining.md, "Settings") and options of the launcher (--num_gpus, --hostfile, ...).

    Example: ppt pretrain pretrain.yaml steps=2000 processes=2
    """
    from launch.launcher import launch_pretraining

    raise typer.Exit(launch_pretraining(config, context.args))


@app.command()
def plan(
    overrides: Overrides = None,
    backbone: Annotated[
        str | None, typer.Option(help="A folder, a hub name, or a preset such as t5-xxl.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="As 8xH100-80GB, or 2xCPU; default: what this machine has.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Settings of a run, or a preset.")] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of the largest product's rate that a step reaches.", min=0.01, max=1),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Encoder tokens of an example on average, prompt included.", min=1)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every column; every strategy with and without checkpointing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what memory and time each way to pre-train takes, and which to choose; starts nothing.

    Example: ppt plan --backbone t5-xxl --gpus 8xH100-80GB
    """
    from launch.plan_command import plan_job

    value, text = plan_job(
        backbone, gpus, config, overrides or [], share, tokens, everything, terminal_columns()
    )
    print_result(value, as_json, text)


@backbone_app.command("vocab")
def backbone_vocab(
    text: Annotated[list[str], typer.Option("--text", help="Files, folders or globs.")],
    size: Annotated[int, typer.Option(help="Pieces, the 100 sentinels not counted.")],
    out: Annotated[Path, typer.Option(help="Folder of the vocabulary.")],
    language: Annotated[
        Language, typer.Option(help="Decides how many rare characters get a piece.")
    ] = "auto",
) -> None:
    """Train a sentencepiece vocabulary in T5's layout.

    Example: ppt backbone vocab --text corpus.txt --size 16000 --out runs/vocab
    """
    from pretrain.vocabulary import train_vocabulary

    train_vocabulary(text, size=size, out=out, language=language)


@backbone_app.command("train")
def backbone_train(config: Config, overrides: Overrides = None) -> None:
    """Train a backbone from scratch, or further from given weights; steps=0 makes a random one.

    Example: ppt backbone train backbone.yaml steps=1000
    """
    from launch.launcher import launch_backbone_training

    raise typer.Exit(launch_backbone_training(config, overrides or []))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fewshot(context: typer.Context, config: Config) -> None:
    """Tune and score tasks x methods x seeds x learning rates.

    CONFIG is a YAML file or the name of a preset: one of the paper's tables (docs/tables.md). After it come settings as
    KEY=VALUE and options of the DeepSpeed launcher (--num_gpus, --hostfile, ...), which starts the processes where there
    are several.

    Example: ppt fewshot fewshot.yaml tasks=\\[sst2,rte] seeds=[0,1,2] processes=2
    """
    from launch.launcher import launch_fewshot

    raise typer.Exit(launch_fewshot(config, context.args))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of few-shot runs.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default: the first run.")] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the backbone, for the words nearest to each prompt.")
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Show the paper's figures beside; they are unverified.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the tables and plots of finished runs, of one machine or many.

    Example: ppt report runs/fewshot --out runs/report
    """
    from corpora.common.progress import say
    from finetune.report import report as make_report

    folder = out if out is not None else runs[0]
    made = make_report(list(runs), folder, backbone=backbone, reference=reference)
    print_result(made.summary, as_json, made.text)
    say(f"report: {folder / 'report.html'} (beside it report.md, .csv, .json and the pictures)")


@prompts_app.command("show")
def prompts_show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a prompt.")],
    backbone: Annotated[str | None, typer.Option(help="Show the nearest words of this backbone too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a prompt is, where it comes from and which words lie nearest.

    Example: ppt prompts show runs/pretrain/prompts/unified --json
    """
    from launch.prompt_commands import describe_prompt

    value, text = describe_prompt(folder, backbone)
    print_result(value, as_json, text)


@prompts_app.command("export")
def prompts_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a prompt.")],
    to: Annotated[str, typer.Option("--to", help="peft, npy or pt.")],
    out: Annotated[Path, typer.Option(help="Folder (peft) or file to write.")],
) -> None:
    """Write a prompt for another library; with PEFT it gives the same logits.

    Example: ppt prompts export runs/pretrain/prompts/unified --to peft --out runs/peft
    """
    from launch.prompt_commands import export_prompt

    export_prompt(folder, to, out)


@prompts_app.command("import")
def prompts_import(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".npy, .pt or .safetensors with one [P, D] tensor.")
    ],
    backbone: Annotated[str, typer.Option(help="The backbone it was trained on.")],
    format: Annotated[str, typer.Option(help="sentence_pair, multiple_choice, single_text or unified.")],
    out: Annotated[Path, typer.Option(help="Folder of the prompt.")],
    space: Annotated[
        str, typer.Option(help="huggingface, or scaled (released PPT code: x 100 at import).")
    ] = "huggingface",
    licence: Annotated[str | None, typer.Option(help="Licence as its source states it.")] = None,
) -> None:
    """Bring in a prompt that another library trained.

    Example: ppt prompts import prompt.npy --backbone google/t5-base-lm-adapt --format sentence_pair --out runs/imported
    """
    from launch.prompt_commands import import_prompt_file

    import_prompt_file(file, backbone, format, out, space, licence)


def main() -> None:
    """Run a command; what a user or the machine can cause ends in one line and an exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):  # jobs that checkpoint take the signals over
        signal.signal(number, _stop)
    try:
        app(args=_several_texts(sys.argv[1:]))
    except ENDINGS as error:
        sys.exit(end(error))


def _stop(number: int, frame: object) -> None:
    # Not KeyboardInterrupt, which typer would turn into exit code 1.
    raise Stopped("stopped; the same command goes on from what is finished")


def _several_texts(arguments: list[str]) -> list[str]:
    """Let `--text` take several sources, as a shell's `*.txt` gives them: `--text a b` becomes `--text a --text b`."""
    found: list[str] = []
    inside = False
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            inside = argument == "--text"
        elif inside and arguments[position - 1] != "--text":
            found.append("--text")
        found.append(argument)
    return found
