"""The data card of a build: `README.md` with the header that the Hugging Face hub reads, a section for each corpus.

One card, not one a format: the formats share sources, tokenizer and store, and none can be read without them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from corpora.common.blocks import Code, Entry, Notes, Section, Table, Text, markdown
from corpora.common.files import manifest_hash, read_json, read_manifest, write_text_atomic
from corpora.formats import CHOICE_FORMATS, ENCODER_TOKENS, FORMATS
from corpora.origins import some_names
from corpora.show import PROMPT_LEN, describe
from corpora.show_text import example_text
from corpora.stats import count_title, counts_of
from corpora.stats_page import selection_fields
from corpora.task_corpus import SPLITS

SOURCES_LISTED = 200  # rows of the table of sources; the manifest has all
# The hub's names for sizes, and the number of examples below which each holds.
SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"),
)  # fmt: skip
ASKS = {
    "sentence_pair": "Does the second text follow the first (yes), come from elsewhere in its document (maybe), or from "
    "another document (no)?",
    "multiple_choice": "Which of six texts stood next to the query? One other is of the same document, four are of four "
    "other documents.",
    "single_text": "What sentiment does a classifier of reviews see in the text? The labels are its guesses, not people's.",
    "unified": "Which of 2 to 16 texts stood next to the query? The others are of its document and of four others.",
}
LOAD = """from corpora.task_corpus import TaskCorpus

corpus = TaskCorpus.open(".", "{format}")  # "." is this folder
rows = corpus.rows("train")
example = corpus.render(int(rows[0]), corpus.tokenizer, prompt_len=100)
print(corpus.tokenizer.decode(example.input_ids), "->", corpus.label_words[example.label])
"""


def write_card(folder: str | Path) -> None:
    """Write `README.md` of a finished build, in place of one that is there.

    Args:
        folder: the build's folder. Equal builds give equal bytes: settings, counts and one example of each format come
            from the build alone.

    Raises:
        UserError: the folder holds no build, or one that is not finished.
        MachineError: the disk is full or the place cannot be written.
    """
    folder = Path(folder)
    described = describe(folder, n=1)
    build, store = read_manifest(folder, "build"), read_manifest(folder / "store", "store")
    formats = {
        name: read_manifest(folder / name, "task_corpus") for name in FORMATS if (folder / name).exists()
    }
    title = f"Task corpora of {some_names([str(source['name']) for source in store['sources']])}"
    sections = [
        Section("What this is", tuple(_opening(store, formats))),
        *(
            Section(name, tuple(_corpus(manifest, described["formats"][name]["examples"])))
            for name, manifest in formats.items()
        ),
        Section("Where the text comes from", tuple(_sources(store))),
        Section("How it was made", tuple(_making(folder, build, store))),
        Section("What was left out, repaired or filtered on the way in", tuple(_left_out(store))),
        Section("Known limits", (Notes(tuple(_limits(folder, build, store, formats))),)),
        Section("How to load it", tuple(_loading(formats))),
        Section("Hashes", (_hashes(folder, formats),)),
    ]
    write_text_atomic(folder / "README.md", _header(build, store, formats) + markdown(title, sections))


def _header(build: dict[str, Any], store: dict[str, Any], formats: dict[str, dict[str, Any]]) -> str:
    """The YAML block that the hub reads; fields as its dataset cards name them."""
    examples = sum(sum(manifest["examples"].values()) for manifest in formats.values())
    asked = {"multiple-choice" if name in CHOICE_FORMATS else "text-classification" for name in formats}
    fields = {
        "language": [store["language"]],
        "license": build.get("license", "unknown"),
        "task_categories": sorted(asked),
        "size_categories": [next((size for below, size in SIZES if examples < below), "n>1T")],
        "tags": ["prompt-tuning", "pre-trained-prompt-tuning", "self-supervised", "soft-prompts"],
        "configs": [
            {
                "config_name": name,
                "data_files": [{"split": "examples", "path": f"{name}/examples.parquet"}],
            }
            for name in formats
        ],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n"


def _opening(store: dict[str, Any], formats: dict[str, dict[str, Any]]) -> Iterator[Text | Table]:
    yield Text(
        "Examples made from raw text, without people's labels, on which soft prompts for a frozen encoder-decoder are "
        "pre-trained before they meet their tasks (PPT: Gu, Han, Liu and Huang 2022, arXiv 2109.04332). "
        "`ppt corpora build` of prompt-pretraining made them."
    )
    yield Text(
        f"The text is {store['documents']:,} documents of {store['units']:,} {store['unit']}, {store['tokens']:,} tokens of "
        f"the tokenizer {store['tokenizer']['name']}. `store/` holds each of them once; the examples are numbers of "
        f"{store['unit']} and become token ids when they are read."
    )
    body = [
        (
            Entry(name),
            Entry(f"{manifest['examples']['train']:,}"),
            Entry(f"{manifest['examples']['validation']:,}"),
            Entry(str(len(manifest["label_words"]))),
            Entry(str(ENCODER_TOKENS[name])),
        )
        for name, manifest in formats.items()
    ]
    yield Table(("corpus", "to train on", "held out", "labels", "encoder tokens"), tuple(body))


def _corpus(
    manifest: dict[str, Any], examples: list[dict[str, Any]]
) -> Iterator[Text | Table | Code | Notes]:
    """The section of one format: what it asks, balance, what was left out, an example."""
    name, words = manifest["format"], manifest["label_words"]
    yield Text(
        f"{ASKS[name]} As the encoder reads it: `{manifest['pattern']}`, where `<X>` stands for the label."
    )
    yield _labels(manifest)
    for side, notes in manifest.get("selection", {}).items():
        fields = selection_fields(notes, len(words))
        yield Table(
            (f"pseudo-labels, {side}", *words),
            tuple((Entry(field.replace("_", " ")), *map(_figure, notes[field])) for field in fields),
        )
    if manifest["dropped"]:
        yield Text("Left out:")
        yield Notes(tuple(f"{count:,} {reason}" for reason, count in sorted(manifest["dropped"].items())))
    for example in examples:
        yield Text(
            f"An example, row {example['row']}, {example['tokens']} tokens beside a prompt of {PROMPT_LEN}:"
        )
        yield Code(textwrap.dedent(example_text(example, name)))


def _labels(manifest: dict[str, Any]) -> Table:
    """Counts and shares of each label in both splits, a row a label: sixteen columns would be too wide to read."""
    body = []
    for word in manifest["label_words"]:
        row = [Entry(word)]
        for split in SPLITS:
            counts = manifest["labels"][split]
            row += [
                Entry(f"{counts[word]:,}"),
                Entry(f"{100 * counts[word] / max(1, sum(counts.values())):.1f}"),
            ]
        body.append(tuple(row))
    return Table(("label", "to train on", "%", "held out", "%"), tuple(body))


def _figure(value: object) -> Entry:
    if isinstance(value, float):
        return Entry(f"{value:.3f}")
    return Entry("–" if value is None else f"{value:,}" if isinstance(value, int) else str(value))


def _sources(store: dict[str, Any]) -> Iterator[Text | Table]:
    sources = store["sources"]
    total = sum(source.get("bytes", 0) for source in sources)
    what = "source" if len(sources) == 1 else "sources"
    yield Text(f"{len(sources):,} {what}, {total:,} bytes. The licence of the text is that of its sources.")
    body = [
        (
            Entry(str(source["name"])),
            Entry(f"{source['bytes']:,}" if "bytes" in source else "–"),
            Entry(source.get("sha256", "–")),
        )
        for source in sources[:SOURCES_LISTED]
    ]
    if len(sources) > SOURCES_LISTED:
        rest = len(sources) - SOURCES_LISTED
        body.append((Entry(f"... and {rest:,} more, all in store/manifest.json"), Entry(""), Entry("")))
    yield Table(("source", "bytes", "SHA-256"), tuple(body), words=True)


def _making(folder: Path, build: dict[str, Any], store: dict[str, Any]) -> Iterator[Text | Table]:
    """Every setting that decides the bytes; the text has a table of its own."""
    yield Text(
        "The settings of `ppt corpora build` that decide its bytes, and the libraries that it ran with:"
    )
    left = {key: value for key, value in build.items() if key not in ("kind", "format_version", "text")}
    labelled = folder / "single_text" / "manifest.json"
    if labelled.exists():  # a labeller may have been applied after the build
        about = read_json(labelled)
        left |= {key: about[key] for key in ("labeller", "keep", "thresholds", "balance")}
    rows = [
        *_settings(left),
        *((f"version of {name}", version) for name, version in _settings(store["versions"])),
    ]
    yield Table(("setting", "value"), tuple((Entry(name), Entry(value)) for name, value in rows), words=True)


def _settings(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in sorted(values.items()):
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}: ")
        elif isinstance(value, list):
            yield prefix + key, some_names([str(item) for item in value], most=30) or "none"
        else:
            plain = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            yield prefix + key, plain


def _left_out(store: dict[str, Any]) -> Iterator[Text | Table]:
    counts = counts_of(store)
    if not counts:
        yield Text("Nothing.")
        return
    body = [
        (Entry(count_title(name)), Entry(reason), Entry(f"{count:,}"))
        for name, reasons in counts.items()
        for reason, count in reasons.items()
    ]
    yield Table(("where", "why", "how many"), tuple(body), words=True)


def _limits(
    folder: Path, build: dict[str, Any], store: dict[str, Any], formats: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """What a user of the data should not take for granted."""
    yield "The labels follow from where texts stood; nobody judged them. A neighbour need not continue what the text says."
    if "single_text" in formats:
        yield _labeller_limit(folder)
    if build["language"] == "auto":
        yield (
            "Documents were told apart by their characters: mostly Chinese ones are called `zh`, all others `en`, whatever "
            "their language."
        )
    unknown = store["unknown_tokens"] / max(1, store["tokens"])
    yield f"{100 * unknown:.2f} % of the tokens are `<unk>`: text that the tokenizer cannot spell is lost in the examples."
    for field, what in (
        (
            "decontamination",
            "The text was not compared with the test sets of downstream tasks; some may stand in it.",
        ),
        ("duplicates", "Repeated documents were not looked for."),
    ):
        if field not in store:
            yield what
    yield "The text was not searched for personal data or offensive words; what its sources hold, it holds."
    if store["keep_text"]:
        yield "`store/text.bin` holds the text itself: whoever passes the folder on passes the sources' text on."


def _labeller_limit(folder: Path) -> str:
    """How good the pseudo-labeller is, as far as its folder says."""
    path = folder / "labeller" / "manifest.json"
    found = (read_json(path) if path.exists() else {}).get("agreement")
    text = "The labels of `single_text` are a classifier's guesses."
    if not found:
        return text + " Its accuracy is not on record."
    return (
        f"{text} On {found['n_test']:,} reviews held out from its training it was right in {100 * found['accuracy']:.1f} % "
        f"(always saying the most frequent class: {100 * found['majority']:.1f} %); on other text nobody measured it."
    )


def _loading(formats: dict[str, dict[str, Any]]) -> Iterator[Text | Code]:
    if not formats:
        yield Text("There is no corpus in it yet.")
        return
    yield Text("With prompt-pretraining installed, in this folder:")
    yield Code(LOAD.format(format=next(iter(formats))), "python")
    yield Text(
        "To train on it: `ppt pretrain` with `corpora` naming this folder. To look at it: `ppt corpora show .`"
    )


def _hashes(folder: Path, formats: dict[str, dict[str, Any]]) -> Table:
    rows = [
        ("manifest.json", manifest_hash(folder)),
        ("store/manifest.json", manifest_hash(folder / "store")),
    ]
    for name, manifest in formats.items():
        rows.append((f"{name}/manifest.json", manifest_hash(folder / name)))
        rows.append((f"{name}/examples.parquet", manifest["examples_sha256"]))
    return Table(("file", "SHA-256"), tuple((Entry(name), Entry(value)) for name, value in rows), words=True)
