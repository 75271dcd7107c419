"""What `show.describe` gives, as lines for people: coloured and wrapped on a terminal, plain and whole in a pipe."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from corpora.formats import MASK
from corpora.origins import KINDS, some_names

# Eight-colour names, which every terminal shows in the shades that its user chose.
QUERY, TEMPLATE, RIGHT, LABEL = "cyan", "dim", "green", "bold black on green"
KIND_STYLES = dict(zip(KINDS, ("green", "yellow", "magenta"), strict=True))
TICK = "✓"  # one cell wide everywhere, unlike arrows that some terminals draw as pictures
MARGIN, BODY = "     ", "       "  # before what a part is, and before its text
FIRST_STRONG_ISOLATE, POP_ISOLATE = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"
CLOSING = "，。、；：！？）」』》】”’"  # of scripts without spaces, whose lines may end anywhere
HANGING = 4  # columns kept free for one of them and the template's dot
DOT = " ."  # of the template, behind an option
LEAST = 20  # columns of text on the narrowest terminal


def as_text(
    build: dict[str, Any], *, colour: bool = False, columns: int | None = None, width: int | None = None
) -> str:
    """Lines for people.

    Args:
        build: as `describe` gives it.
        colour: with a terminal's colour codes.
        columns: of the terminal, to which texts are wrapped; None leaves each in one line.
        width: cells after which the text of a query or an option ends with an ellipsis (a Chinese character takes two);
            None shows it whole.
    """
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,  # whatever the environment says: the caller decides
        highlight=False,
        width=columns,
        legacy_windows=False,
    )
    for line in _lines(build, width, " " if colour else ""):
        for piece in _wrapped(line, console, columns):
            console.print(piece, soft_wrap=True)
    return file.getvalue()


def example_text(example: dict[str, Any], format: str) -> str:
    """One example of `describe` as plain lines, for a page."""
    return "\n".join(_isolated(line).plain.rstrip() for line in _example(example, format, None, "")) + "\n"


def _wrapped(line: Text, console: Console, columns: int | None) -> Iterable[Text]:
    """A line cut to the terminal's columns, what follows indented like its beginning."""
    if columns is None:
        return [line]
    if line.cell_len <= columns:
        return [_isolated(line)]
    indent = _indent(line)
    pieces: list[Text] = []
    for piece in line[indent:].wrap(console, max(LEAST, columns - indent - HANGING)):
        if pieces and piece.plain[0] in CLOSING:  # a mark that ends what stands before it begins no line
            pieces[-1].append_text(piece[:1])
            piece = piece[1:]
        if pieces and piece.plain.strip() == DOT.strip():
            pieces[-1] = Text(" ").join([pieces[-1], piece[-1:]])
        elif piece.plain:
            pieces.append(piece)
    return [_isolated(Text(" " * indent).append_text(piece)) for piece in pieces]


def _indent(line: Text) -> int:
    return len(line.plain) - len(line.plain.lstrip(" "))


def _isolated(line: Text) -> Text:
    """A line with right-to-left words in Unicode's isolates, so that its own direction orders it, not the indent's.

    Each line needs them: they do not reach over a line's end.
    """
    if not any(unicodedata.bidirectional(character) in ("R", "AL") for character in line.plain):
        return line
    indent = _indent(line)
    return line[:indent].append(FIRST_STRONG_ISOLATE).append_text(line[indent:]).append(POP_ISOLATE)


def _lines(build: dict[str, Any], width: int | None, pad: str) -> Iterator[Text]:
    """All lines; `pad` stands around a label, which on a terminal has a ground of its own."""
    store = build["store"]
    yield Text(
        f"store: {store['documents']:,} documents, {store['units']:,} {store['unit']}, {store['tokens']:,} tokens"
    )
    yield Text(f"  from {some_names([_printable(name) for name in store['sources']])}")
    for reason, count in sorted(store["dropped"].items()):
        yield Text(f"  dropped: {count:,} {reason}")
    for name, about in build["formats"].items():
        yield Text()
        yield Text(name, "bold")
        for split, counts in about["labels"].items():
            words = ", ".join(f"{word} {count:,}" for word, count in counts.items())
            yield Text(f"  {split}: {sum(counts.values()):,} examples ({words})")
        for number, example in enumerate(about["examples"], 1):
            yield Text()
            yield Text.assemble(
                f"  {number}. ",
                (f"{pad}{example['label']}{pad}", LABEL),
                (f"  row {example['row']}, {example['tokens']} of {about['budget']} tokens", "dim"),
            )
            yield from _example(example, name, width, pad)


def _example(example: dict[str, Any], format: str, width: int | None, pad: str) -> Iterator[Text]:
    """Each segment as a line that says what it is and a line of text; the template between them."""
    parts = example["parts"]
    template = Text()
    letter = ""
    body: Text | None = None  # the last segment's text, which a dot may still follow

    def waiting() -> Iterator[Text]:
        nonlocal body, template
        if body is not None:
            yield body
        if template:
            yield Text(MARGIN).append_text(template)
        body, template = None, Text()

    for part in parts:
        role = part["role"]
        if role == "letter":
            letter = part["text"]
        elif role in ("query", "option"):
            yield from waiting()
            yield _heading(part, letter, format)
            body = Text(BODY).append_text(_segment(part, width))
        elif role == "mask":
            template.append_text(
                Text.assemble(" " if template else "", MASK, " = ", (f"{pad}{example['label']}{pad}", LABEL))
            )
        elif part["text"] == "." and body is not None and not template:
            body.append(DOT, TEMPLATE)
        else:
            template.append((" " if template else "") + part["text"], TEMPLATE)
    yield from waiting()


def _heading(part: dict[str, Any], letter: str, format: str) -> Text:
    """What a segment is, where it comes from if that is not the query's document, and how it stands to the query."""
    if part["role"] == "query":
        name = {"sentence_pair": "first", "single_text": "text"}.get(format, "query")
        line = Text(f"{MARGIN}{name}: document {part['document']}", QUERY)
    elif part.get("right"):
        line = Text(f"   {TICK} {letter} ", f"bold {RIGHT}")
    else:
        line = Text(f"{MARGIN}{letter} " if letter else f"{MARGIN}second: ", "bold")
    if part["role"] == "option":
        line = Text.assemble(line, (part["kind"], KIND_STYLES[part["kind"]]))
        if "distance" in part:
            steps, way = abs(part["distance"]), "after" if part["distance"] > 0 else "before"
            line.append(f", {'the unit' if steps == 1 else f'{steps} units'} {way} it", TEMPLATE)
        else:
            line.append(f" {part['document']}", KIND_STYLES[part["kind"]])
    if "distance" not in part:
        line.append(f" ({_printable(part['place'])})", TEMPLATE)
    if part["cut"]:
        line.append(f", {part['cut']} tokens cut off", TEMPLATE)
    return line


def _segment(part: dict[str, Any], width: int | None) -> Text:
    style = QUERY if part["role"] == "query" else RIGHT if part.get("right") else ""
    text = Text(_printable(part["text"]), style)
    if width is not None and text.cell_len > width:
        text.truncate(width - 1)
        text.rstrip()
        text.append("…")
    return text


def _printable(text: str) -> str:
    """Text without control characters, which would act on the terminal: each stands as U+FFFD."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" else c for c in text)
