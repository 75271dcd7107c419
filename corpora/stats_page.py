"""`ppt corpora stats` for people: the numbers as lines of text, and as one page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corpora.common.blocks import Entry, Notes, Picture, Section, Table, Text
from corpora.common.files import write_bytes_atomic, write_json, write_text_atomic
from corpora.common.page import page
from corpora.common.progress import say
from corpora.origins import KINDS, some_names
from corpora.stats import count_title

MANY_UNKNOWN = 0.02  # share of <unk> that is worth a warning, as in the build
SOURCES_OPEN, SOURCES_SHOWN = 5, 200  # sources that are listed without being asked for, and at all
_BLOCKS = " ▁▂▃▄▅▆▇█"


def write_page(found: dict[str, Any], out: str | Path) -> Path:
    """Write `stats.json`, the pictures as PNG files, and `stats.html`, which needs none of them.

    Args:
        found: as `stats.collect` gives it.
        out: folder; files of an earlier page there are replaced.

    Returns:
        The page. Equal numbers give equal bytes.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """
    from corpora import stats_plots
    from corpora.common.plots import missing_glyphs

    out = Path(out)
    pictures = {picture.name: picture for picture in stats_plots.pictures(found)}
    glyphs = missing_glyphs(word for about in found["formats"].values() for word in about["label_words"])
    if glyphs:
        say(f"warning: no font of this machine draws {glyphs}: boxes in the PNG files, right in the page")
    for picture in pictures.values():
        write_bytes_atomic(out / f"{picture.name}.png", picture.png)
    write_json(out / "stats.json", found)
    title = f"Task corpora of {some_names([str(source['name']) for source in found['store']['sources']])}"
    write_text_atomic(out / "stats.html", page(title, sections(found, pictures)))
    return out / "stats.html"


def warnings_of(found: dict[str, Any]) -> list[str]:
    """What a reader should know before training on the build."""
    store, warnings = found["store"], []
    unknown = store["unknown_tokens"] / max(1, store["tokens"])
    if unknown > MANY_UNKNOWN:
        warnings.append(f"{unknown:.0%} of the tokens are <unk>: the tokenizer was made for other text")
    for name, about in found["formats"].items():
        train = about["labels"]["train"]
        if not about["examples"]["train"]:
            warnings.append(
                f"{name} has no examples to train on: its documents need more units, or give more text"
            )
            continue
        missing = [word for word in about["label_words"] if not train[word]]
        if missing:
            warnings.append(f"{name} has no example of {', '.join(missing)} to train on")
    return warnings


def sections(found: dict[str, Any], pictures: dict[str, Picture]) -> list[Section]:
    """The page's content."""
    opening: list[Text | Notes | Table] = [Text(_size(found["store"]))]
    warnings = warnings_of(found)
    if warnings:
        opening.append(Notes(tuple(warnings), warning=True))
    opening.append(_formats_table(found))
    sampled = [
        name
        for name, about in found["formats"].items()
        if about["looked_at"] < sum(about["examples"].values())
    ]
    if sampled:
        looked = found["formats"][sampled[0]]["looked_at"]  # as many of each
        opening.append(
            Text(
                f"Lengths, options and kinds are counted over {looked:,} examples drawn at random from "
                f"{', '.join(sampled)}; "
                "sizes, labels, units and drop reasons are counted over everything."
            )
        )
    parts = [
        Section("At a glance", tuple(opening)),
        Section("Units and documents", (_lengths_table(found["store"]), pictures["units"])),
    ]
    if "lengths" in pictures:
        parts += [
            Section("Length of the examples", (pictures["lengths"], _cut_table(found))),
            Section("Labels", (pictures["labels"],)),
        ]
    if "options" in pictures:
        counts = [pictures["option_counts"]] if "option_counts" in pictures else []
        parts.append(Section("Options", (pictures["options"], *counts)))
    parts += _sureness(found)
    left_out = pictures.get("dropped", Text("Nothing was left out."))
    parts.append(Section("Left out, and why", (left_out,)))
    folded = len(found["store"]["sources"]) > SOURCES_OPEN
    parts.append(Section("Where the text comes from", (_sources_table(found["store"]),), folded))
    tables = [*_labels_tables(found), _kinds_table(found), _dropped_table(found)]
    full = tuple(table for table in tables if table.body)
    return (
        [*parts, Section("Labels, options and drop reasons in numbers", full, folded=True)] if full else parts
    )


def _size(store: dict[str, Any]) -> str:
    share = 100 * store["unknown_tokens"] / max(1, store["tokens"])
    return (
        f"{store['documents']:,} documents, {store['units']:,} {store['unit']}, {store['tokens']:,} tokens "
        f"({share:.1f} % unknown) of {store['tokenizer']['name']}, {store['characters']:,} characters."
    )


def _row(name: str, *values: object) -> tuple[Entry, ...]:
    return (Entry(name), *(Entry(_figure(value)) for value in values))


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"


def _formats_table(found: dict[str, Any]) -> Table:
    body = []
    for name, about in found["formats"].items():
        lengths, looked = about["lengths"], about["looked_at"]
        median = lengths["quantiles"]["0.5"] if looked else "–"
        sizes = about["examples"]
        body.append(
            _row(
                name, sizes["train"], sizes["validation"], len(about["label_words"]), median, about["budget"],
                _percent(about["full"], looked),
            )
        )  # fmt: skip
    head = ("format", "to train on", "held out", "labels", "median tokens", "budget", "at the budget, %")
    return Table(head, tuple(body))


def _lengths_table(store: dict[str, Any]) -> Table:
    body = []
    for name, field in (
        (f"tokens of a {store['unit'].removesuffix('s')}", "unit_tokens"),
        (f"{store['unit']} of a document", "document_units"),
    ):
        values = store[field]
        if values["n"]:
            body.append(_row(name, f"{values['mean']:,.1f}", *values["quantiles"].values(), values["max"]))
    return Table(("", "mean", "5 %", "25 %", "median", "75 %", "95 %", "99 %", "longest"), tuple(body))


def _cut_table(found: dict[str, Any]) -> Table:
    """How many queries and options are longer than a format keeps of them."""
    body = []
    for name, about in found["formats"].items():
        for what, cut in about["cut"].items():
            body.append(_row(f"{name}: {what}", cut["of"], cut["longer"], _percent(cut["longer"], cut["of"])))
    return Table(("longer than the format keeps", "looked at", "cut", "%"), tuple(body))


def _labels_tables(found: dict[str, Any]) -> list[Table]:
    """A table a format: counts of each label, in both splits."""
    tables = []
    for name, about in found["formats"].items():
        words = about["label_words"]
        body = [
            _row(title, *(about["labels"][split][word] for word in words))
            for split, title in (("train", "to train on"), ("validation", "held out"))
        ]
        tables.append(Table((name, *words), tuple(body)))
    return tables


def _kinds_table(found: dict[str, Any]) -> Table:
    body = [
        _row(f"{name}: {label}", *(kinds[kind] for kind in KINDS))
        for name, about in found["formats"].items()
        for label, kinds in about.get("kinds", {}).items()
    ]
    return Table(("", *KINDS), tuple(body))


def _sureness(found: dict[str, Any]) -> list[Section]:
    """What the labeller's choice left on record: every list that has a figure for each class."""
    tables = []
    for name, about in found["formats"].items():
        words = about["label_words"]
        for side, notes in about.get("selection", {}).items():
            body = [
                _row(field.replace("_", " "), *notes[field]) for field in selection_fields(notes, len(words))
            ]
            tables.append(Table((f"{name}, {side}", *words), tuple(body)))
    if not tables:
        return []
    text = "How many units the labeller put in each class, how many of them it was sure of and how many were kept, and how sure."
    return [Section("Pseudo-labels", (Text(text), *tables))]


def selection_fields(notes: dict[str, Any], n_classes: int) -> list[str]:
    """Names of the lists in a selection's notes that hold one figure a class."""
    first = ("labelled", "sure", "kept")
    fields = [field for field, value in notes.items() if isinstance(value, list) and len(value) == n_classes]
    return sorted(fields, key=lambda field: (first.index(field) if field in first else len(first), field))


def _dropped_table(found: dict[str, Any]) -> Table:
    groups = [(count_title(name), counts) for name, counts in found["counts"].items()]
    groups += [(name, about["dropped"]) for name, about in found["formats"].items()]
    body = [
        (Entry(name), Entry(reason), Entry(f"{count:,}"))
        for name, counts in groups
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table(("where", "why", "how many"), tuple(body), words=True)


def _sources_table(store: dict[str, Any]) -> Table:
    sources = store["sources"]
    body = [
        (
            Entry(str(one["name"])),
            Entry(f"{one['bytes']:,}" if "bytes" in one else "–"),
            Entry(one.get("sha256", "–")),
        )
        for one in sources[:SOURCES_SHOWN]
    ]
    if len(sources) > SOURCES_SHOWN:
        body.append((Entry(f"... and {len(sources) - SOURCES_SHOWN:,} more"), Entry(""), Entry("")))
    return Table(("source", "bytes", "SHA-256"), tuple(body), words=True)


def as_text(found: dict[str, Any]) -> str:
    """The numbers as lines, each histogram as a row of blocks."""
    store = found["store"]
    lines = [_size(store).removesuffix(".")]
    lines.append(f"from {some_names([str(source['name']) for source in store['sources']])}")
    lines += [f"warning: {warning}" for warning in warnings_of(found)]
    one = store["unit"].removesuffix("s")
    names = (f"tokens of a {one}", f"{store['unit']} of a document")
    for name, field in zip(names, ("unit_tokens", "document_units"), strict=True):
        lines += ["", f"{name}: {_summary(store[field])}", *_spark(store[field])]
    for name, counts in found["counts"].items():
        lines += ["", count_title(name)]
        lines += [f"  {count:>12,}  {reason}" for reason, count in counts.items()]
    for name, about in found["formats"].items():
        lines += ["", *_format_lines(name, about)]
    return "\n".join(lines) + "\n"


def _format_lines(name: str, about: dict[str, Any]) -> list[str]:
    sizes, looked = about["examples"], about["looked_at"]
    lines = [f"{name}: {sizes['train']:,} examples to train on, {sizes['validation']:,} held out"]
    if looked:
        if looked < sum(sizes.values()):
            lines.append(f"  of {looked:,} drawn at random:")
        full = f"{_percent(about['full'], looked)} % cut to the budget of {about['budget']}"
        lines += [f"  tokens: {_summary(about['lengths'])}; {full}", *_spark(about["lengths"])]
        for what, cut in about["cut"].items():
            lines.append(f"  {what} longer than the format keeps: {_percent(cut['longer'], cut['of'])} %")
        for label, kinds in about.get("kinds", {}).items():
            total = sum(kinds.values())
            shares = ", ".join(f"{kind} {_percent(kinds[kind], total)} %" for kind in KINDS)
            lines.append(f"  {label}: {shares}")
        if len(about.get("n_options", ())) > 1:
            lines.append("  options: " + ", ".join(f"{n} in {k:,}" for n, k in about["n_options"].items()))
        for split, counts in about["labels"].items():
            total = sum(counts.values())
            shares = ", ".join(f"{word} {_percent(counts[word], total)} %" for word in about["label_words"])
            lines.append(f"  labels, {split}: {shares}")
    for side, notes in about.get("selection", {}).items():
        for field in selection_fields(notes, len(about["label_words"])):
            values = ", ".join(map(_figure, notes[field]))
            lines.append(f"  {side}, {field.replace('_', ' ')}: {values}")
    lines += [f"  dropped: {count:,} {reason}" for reason, count in about["dropped"].items()]
    return lines


def _summary(values: dict[str, Any]) -> str:
    if not values["n"]:
        return "none"
    q = values["quantiles"]
    return (
        f"median {q['0.5']:,}, mean {values['mean']:,.1f}, nine in ten from {q['0.05']:,} to {q['0.95']:,}, "
        f"longest {values['max']:,}"
    )


def _spark(values: dict[str, Any]) -> list[str]:
    """A histogram's bars as blocks of eight heights between its ends; what is there at all is seen."""
    if not values["n"]:
        return []
    most = max(values["bars"])
    heights = "".join(_BLOCKS[-(-8 * bar // most) if most else 0] for bar in values["bars"])
    end = values["width"] * len(values["bars"])
    beyond = f", {values['longer']:,} beyond" if values["longer"] else ""
    return [f"  0 {heights} {end:,}{beyond}"]
