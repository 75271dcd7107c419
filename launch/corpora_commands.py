"""`ppt corpora`: raw text to task corpora, and the pseudo-labeller of single texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from launch.arguments import (
    AsJson,
    Language,
    given,
    in_colour,
    new_app,
    print_result,
    split_names,
    terminal_columns,
)

corpora_app = new_app("Raw text to task corpora.")
label_app = new_app("The pseudo-labeller of single texts.")
corpora_app.add_typer(label_app, name="label")

Keep = Annotated[
    float | None,
    typer.Option(help="Surest share of each class to keep; default: 0.2 for a linear labeller."),
]
Thresholds = Annotated[
    str | None,
    typer.Option(
        help="Probabilities to keep labels over, one a class, comma-separated; default for a classifier: "
        "0.95 for the lowest class, 0.7 for the highest, 0.5 between."
    ),
]


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
    keep: Keep = None,
    thresholds: Thresholds = None,
    balance: Annotated[bool, typer.Option(help="Cut pseudo-labels down to the rarest class.")] = True,
    keep_text: Annotated[bool, typer.Option(help="Keep the text beside the token ids.")] = True,
    engine: Annotated[
        Literal["processes", "ray"],
        typer.Option(help="Who does the work: processes here, or Ray (RAY_ADDRESS names a cluster)."),
    ] = "processes",
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Make only this shard, from 0; ppt corpora merge does the rest."),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend broken encodings.")] = False,
    keep_languages: Annotated[
        str | None, typer.Option(help="Codes of the languages to keep, comma-separated: en,zh.")
    ] = None,
    min_document_chars: Annotated[int | None, typer.Option(help="Drop shorter documents.")] = None,
    max_document_chars: Annotated[int | None, typer.Option(help="Drop longer documents.")] = None,
    boilerplate: Annotated[
        bool, typer.Option("--boilerplate", help="Drop lines and documents that are no running text.")
    ] = False,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(help="Drop documents that hold rows of this set: file, folder, glob or hub:NAME."),
    ] = None,
    ngram: Annotated[int | None, typer.Option(help="Words in a row that count as a row found.")] = None,
    duplicates: Annotated[
        Literal["keep", "exact", "near"], typer.Option(help="Which duplicates are dropped.")
    ] = "keep",
    similarity: Annotated[float | None, typer.Option(help="Of near-duplicates.")] = None,
) -> None:
    """Build the sentence store and the task corpora of every format.

    Example: ppt corpora build --text news.jsonl.gz --tokenizer google/t5-v1_1-small --out runs/corpora
    """
    from corpora.build import build
    from corpora.build_settings import BuildSettings
    from corpora.common.settings import make_settings

    values: dict[str, Any] = {
        "text": text, "tokenizer": tokenizer, "out": str(out), "labeller": labeller, "unit": unit,
        "language": language, "text_field": text_field, "workers": workers, "seed": seed, "strict": strict,
        "validation": validation, "keep": keep, "balance": balance, "keep_text": keep_text, "shard": shard, "engine": engine,
    }  # fmt: skip
    if formats is not None:
        values["formats"] = split_names(formats)
    if labeller_words is not None:
        values["labeller_words"] = split_names(labeller_words)
    values |= given(
        repair=repair,
        keep_languages=split_names(keep_languages) if keep_languages is not None else None,
        min_document_chars=min_document_chars,
        max_document_chars=max_document_chars,
        boilerplate=boilerplate,
        decontaminate=decontaminate,
        ngram=ngram,
        duplicates=duplicates if duplicates != "keep" else None,
        similarity=similarity,
    )
    if thresholds is not None:
        values["thresholds"] = split_names(thresholds)
    build(make_settings(BuildSettings, values, "ppt corpora build"))


@corpora_app.command("merge")
def corpora_merge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a build in shards.")],
    labeller: Annotated[
        str | None, typer.Option(help="The labeller again, if it is a classifier by name.")
    ] = None,
    labeller_words: Annotated[
        str | None, typer.Option(help="Label words of a classifier by name, comma-separated.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.")] = 1,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse shards that left bad records out.")
    ] = False,
) -> None:
    """Join the shards of a build, then draw its formats.

    Example: ppt corpora merge runs/corpora --workers 8
    """
    from corpora.build import merge
    from corpora.build_settings import LabelSettings
    from corpora.common.settings import make_settings

    values: dict[str, Any] = {"workers": workers}
    if labeller_words is not None:
        values["labeller_words"] = split_names(labeller_words)
    merge(folder, make_settings(LabelSettings, values, "ppt corpora merge"), labeller, strict)


@corpora_app.command("show")
def corpora_show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a build.")],
    n: Annotated[int, typer.Option("-n", min=0, help="Examples of each format.")] = 5,
    format: Annotated[str | None, typer.Option(help="Show this format alone.")] = None,
    label: Annotated[str | None, typer.Option(help="Show examples of this label word alone.")] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Cells of each text to show; default: all of it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of examples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print readable examples and label counts; coloured on a terminal (NO_COLOR turns it off).

    Example: ppt corpora show runs/corpora -n 3 --format unified --label B --width 160
    """
    from corpora.show import describe
    from corpora.show_text import as_text

    build = describe(folder, n, seed, format=format, label=label)
    columns = terminal_columns()
    print_result(build, as_json, as_text(build, colour=in_colour(), columns=columns, width=width))


@corpora_app.command("stats")
def corpora_stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a build.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the page; default: DIR/stats.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count lengths, labels, options and drop reasons: printed, as pictures, and as one page (stats.html).

    Example: ppt corpora stats runs/corpora
    """
    from corpora.common.progress import say
    from corpora.stats import collect
    from corpora.stats_page import as_text, write_page

    found = collect(folder)
    page = write_page(found, folder / "stats" if out is None else out)
    print_result(found, as_json, as_text(found))
    say(f"the page is {page}")


@label_app.command("train")
def label_train(
    reviews: Annotated[Path, typer.Option(help="JSONL or CSV with the fields text and label.")],
    out: Annotated[Path, typer.Option(help="Folder of the labeller.")],
    test: Annotated[Path | None, typer.Option(help="Held-out file; default: a part of the reviews.")] = None,
    words: Annotated[str | None, typer.Option(help="A label word a class, comma-separated.")] = None,
    language: Annotated[Language, typer.Option(help="Of the text.")] = "auto",
    tokenizer: Annotated[
        str | None, typer.Option(help="Read ids of this tokenizer, the build's own, in place of text.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
) -> None:
    """Train a linear pseudo-labeller on star reviews.

    Example: ppt corpora label train --reviews reviews.jsonl --tokenizer google/t5-v1_1-small --out runs/labeller
    """
    from corpora.label_training import train

    names = split_names(words) if words else None
    train(reviews, out, test=test, words=names, language=language, seed=seed, tokenizer=tokenizer)


@label_app.command("calibrate")
def label_calibrate(
    labeller: Annotated[str, typer.Option(help="A Hugging Face sequence classifier by folder or name.")],
    reviews: Annotated[Path, typer.Option(help="JSONL or CSV with the fields text and label.")],
    out: Annotated[Path, typer.Option(help="Folder of the calibrated labeller, which names the classifier.")],
    labeller_words: Annotated[
        str | None, typer.Option(help="Label words of its classes, comma-separated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
) -> None:
    """Fit a classifier's temperature on half of some reviews and report its agreement with the other half.

    Example: ppt corpora label calibrate --labeller runs/roberta --reviews reviews.jsonl --out runs/labeller
    """
    from corpora.label_training import calibrate

    calibrate(labeller, reviews, out, split_names(labeller_words) if labeller_words else None, seed)


@label_app.command("apply")
def label_apply(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a build.")],
    labeller: Annotated[str, typer.Option(help="Folder of a labeller, or a classifier by name.")],
    labeller_words: Annotated[
        str | None, typer.Option(help="Label words of a classifier by name, comma-separated.")
    ] = None,
    keep: Keep = None,
    thresholds: Thresholds = None,
    balance: Annotated[bool, typer.Option(help="Cut pseudo-labels down to the rarest class.")] = True,
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.")] = 1,
) -> None:
    """Label the units of a build and draw its single_text corpus.

    Example: ppt corpora label apply runs/corpora --labeller runs/labeller
    """
    from corpora.build_settings import LabelSettings
    from corpora.common.settings import make_settings
    from corpora.make_corpora import apply_labeller

    values: dict[str, Any] = {"keep": keep, "balance": balance, "workers": workers}
    if labeller_words is not None:
        values["labeller_words"] = split_names(labeller_words)
    if thresholds is not None:
        values["thresholds"] = split_names(thresholds)
    apply_labeller(folder, labeller, make_settings(LabelSettings, values, "ppt corpora label apply"))
