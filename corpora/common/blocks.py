"""A report as a list of sections, and its Markdown. `page.py` renders the same sections as an HTML page."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` between backticks is the only mark-up."""

    text: str


@dataclass(frozen=True)
class Notes:
    """A list of short remarks; `warning` ones are set apart."""

    notes: tuple[str, ...]
    warning: bool = False


@dataclass(frozen=True)
class Code:
    """Lines to copy, or a settings file."""

    text: str
    language: str = "text"


@dataclass(frozen=True)
class Entry:
    """One entry of a printed table."""

    text: str
    strong: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A printed table: the first column names the line, the others hold figures."""

    head: tuple[str, ...]
    body: tuple[tuple[Entry, ...], ...]
    words: bool = False  # columns after the first hold words, not figures


@dataclass(frozen=True)
class Picture:
    """A figure as a report keeps it: `png` is a file's bytes, `svg` goes into the page."""

    name: str
    caption: str
    png: bytes
    svg: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a folded one is opened by the reader."""

    title: str
    blocks: tuple[Text | Notes | Code | Table | Picture, ...]
    folded: bool = False


def _cell(entry: Entry) -> str:
    text = entry.text.replace("|", "\\|").replace("\n", " ")
    return f"**{text}**" if entry.strong else text


def markdown_table(table: Table) -> str:
    """A table in Markdown, padded so that it reads well as plain text."""
    body = [[_cell(entry) for entry in row] for row in table.body]
    head = [name.replace("|", "\\|") for name in table.head]
    widths = [max([len(head[i]), 3, *(len(row[i]) for row in body)]) for i in range(len(head))]
    figures = [i > 0 and not table.words for i in range(len(head))]

    def line(entries: list[str]) -> str:
        padded = [
            entry.rjust(width) if right else entry.ljust(width)
            for entry, width, right in zip(entries, widths, figures, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, figures, strict=True)]
    return "\n".join([line(head), line(rule), *(line(row) for row in body)])


def markdown(title: str, sections: list[Section]) -> str:
    """The whole report in Markdown; pictures are the PNG files beside it."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(block.text)
            elif isinstance(block, Notes):
                lead = "**Warning:** " if block.warning else ""
                parts.append("\n".join(f"- {lead}{note}" for note in block.notes))
            elif isinstance(block, Code):
                runs = re.findall(r"`+", block.text)
                fence = "`" * max(3, 1 + max(map(len, runs), default=0))  # longer than any in the text
                parts.append(f"{fence}{block.language}\n{block.text.rstrip()}\n{fence}")
            elif isinstance(block, Table):
                parts.append(markdown_table(block))
            else:
                parts.append(f"![{block.caption}]({block.name}.png)")
    return "\n\n".join(parts) + "\n"
