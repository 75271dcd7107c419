"""The `ppt` command: thin commands over the packages, one-line errors, the exit codes of `docs/architecture.md`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from corpora.common.errors import Stopped
from launch.exits import ENDINGS, end

# Settings that quieten libraries must stand before those libraries are imported, which commands do late:
# `ppt --help` answers at once.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _app(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


app = _app("Pre-trained prompt tuning: raw text in, soft prompts and few-shot tables out.")
corpora_app = _app("Raw text to task corpora.")
label_app = _app("The pseudo-labeller of single texts.")
backbone_app = _app("Vocabularies and backbones of your own.")
prompts_app = _app("Prompts on disk: look at them, take them elsewhere, bring others in.")
app.add_typer(corpora_app, name="corpora")
corpora_app.add_typer(label_app, name="label")
app.add_typer(backbone_app, name="backbone")
app.add_typer(prompts_app, name="prompts")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override the file, nested ones as a.b=1."),
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file of settings.")]
Language = Literal["en", "zh", "auto"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def _print(value: Any, as_json: bool, text: str) -> None:
    """Results go to standard output, as text or as JSON."""
    try:
        sys.stdout.write(
            json.dumps(value, ensure_ascii=False, indent=1) + "\n" if as_json else text.rstrip() + "\n"
        )
        sys.stdout.flush()
    except OSError as error:
        # What stays in the buffer would be refused once more at exit, in Python's words and with exit code 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


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


@corpora_app.command("build")
def corpora_build(
    text: Annotated[list[str], typer.Option("--text", help="Files, folders, globs or hub:NAMESPACE/NAME.")],
    tokenizer: Annotated[str, typer.Option(help="Folder, *.model file or hub name.")],
    out: Annotated[Path, typer.Option(help="Folder of the build.")],
    formats: Annotated[
        str | None, typer.Option(help="Comma-separated; default: all that can be built.")
    ] = None,
    labeller: Annotated[
        str | None, typer.Option(help="Folder of a labeller, or a classifier by name.")
    ] = None,
    labeller_words: Annotated[
        str | None, typer.Option(help="Label words of a classifier by name, comma-separated.")
    ] = None,
    unit: Annotated[
        Literal["paragraphs", "sentences"], typer.Option(help="What a document is cut into.")
    ] = "paragraphs",
    language: Annotated[Language, typer.Option(help="Of the text.")] = "auto",
    text_field: Annotated[
        str, typer.Option(help="Field that holds the text in JSONL, CSV and Parquet.")
    ] = "text",
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad record.")] = False,
    validation: Annotated[float, typer.Option(help="Share of documents held out.")] = 0.05,
    keep: Annotated[float, typer.Option(help="Share of each class that a linear labeller keeps.")] = 0.2,
    balance: Annotated[bool, typer.Option(help="Cut pseudo-labels down to the rarest class.")] = True,
    keep_text: Annotated[bool, typer.Option(help="Keep the text beside the token ids.")] = True,
) -> None:
    """Build the sentence store and the task corpora of every format.

    Example: ppt corpora build --text news.jsonl.gz --tokenizer google/t5-v1_1-small --out runs/corpora
    """
    from corpora.build import BuildSettings, build
    from corpora.common.settings import make_settings

    values: dict[str, Any] = {
        "text": text, "tokenizer": tokenizer, "out": str(out), "labeller": labeller, "unit": unit,
        "language": language, "text_field": text_field, "workers": workers, "seed": seed, "strict": strict,
        "validation": validation, "keep": keep, "balance": balance, "keep_text": keep_text,
    }  # fmt: skip
    if formats is not None:
        values["formats"] = _split(formats)
    if labeller_words is not None:
        values["labeller_words"] = _split(labeller_words)
    build(make_settings(BuildSettings, values, "ppt corpora build"))


@corpora_app.command("show")
def corpora_show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a build.")],
    n: Annotated[int, typer.Option("-n", help="Examples of each format.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the choice of examples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print readable examples and label counts.

    Example: ppt corpora show runs/corpora -n 3
    """
    from corpora.show import as_text, describe

    build = describe(folder, n, seed)
    _print(build, as_json, as_text(build))


@label_app.command("train")
def label_train(
    reviews: Annotated[Path, typer.Option(help="JSONL or CSV with the fields text and label.")],
    out: Annotated[Path, typer.Option(help="Folder of the labeller.")],
    test: Annotated[Path | None, typer.Option(help="Held-out file; default: a part of the reviews.")] = None,
    words: Annotated[str | None, typer.Option(help="A label word a class, comma-separated.")] = None,
    language: Annotated[Language, typer.Option(help="Of the text.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
) -> None:
    """Train the linear pseudo-labeller on star reviews.

    Example: ppt corpora label train --reviews reviews.jsonl --out runs/labeller
    """
    from corpora.labeller import train

    train(reviews, out, test=test, words=_split(words) if words else None, language=language, seed=seed)


@label_app.command("apply")
def label_apply(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a build.")],
    labeller: Annotated[str, typer.Option(help="Folder of a labeller, or a classifier by name.")],
    labeller_words: Annotated[
        str | None, typer.Option(help="Label words of a classifier by name, comma-separated.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of each class that a linear labeller keeps.")] = 0.2,
    balance: Annotated[bool, typer.Option(help="Cut pseudo-labels down to the rarest class.")] = True,
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.")] = 1,
) -> None:
    """Label the units of a build and draw its single_text corpus.

    Example: ppt corpora label apply runs/corpora --labeller runs/labeller
    """
    from corpora.build import LabelSettings, apply_labeller
    from corpora.common.settings import make_settings

    values: dict[str, Any] = {"keep": keep, "balance": balance, "workers": workers}
    if labeller_words is not None:
        values["labeller_words"] = _split(labeller_words)
    apply_labeller(folder, labeller, make_settings(LabelSettings, values, "ppt corpora label apply"))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def pretrain(context: typer.Context, config: Config) -> None:
    """Pre-train prompt groups: starts the DeepSpeed launcher.

    Options of the launcher (--num_gpus, --hostfile, --master_port, ...) go before the settings.

    Example: ppt pretrain pretrain.yaml steps=2000 processes=2
    """
    from launch.launcher import launch_pretraining

    raise typer.Exit(launch_pretraining(config, context.args))


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


@app.command()
def fewshot(config: Config, overrides: Overrides = None) -> None:
    """Tune and score tasks x methods x seeds x learning rates.

    Example: ppt fewshot fewshot.yaml tasks=[sst2,rte] seeds=[0,1,2]
    """
    from corpora.common.settings import load_settings
    from finetune.fewshot import run_fewshot
    from finetune.settings import FewshotSettings

    run_fewshot(load_settings(FewshotSettings, config, overrides))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of few-shot runs.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default: the first run.")] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the backbone, for the words nearest to each prompt.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the tables and plots of finished runs.

    Example: ppt report runs/fewshot --out runs/report
    """
    from finetune.report import report as make_report

    made = make_report(list(runs), out if out is not None else runs[0], backbone=backbone)
    _print(made.summary, as_json, made.text)


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
    _print(value, as_json, text)


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
