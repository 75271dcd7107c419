"""A task's rows as token ids: the same renderer that made the pre-training examples (`corpora.formats`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.formats import Pattern, Verbalizer
from corpora.pattern import shortened
from corpora.tokenizer import LETTERS, Tokenizer
from finetune.rows import LabelledRow
from finetune.task import PatternKind, Task

IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class Item:
    """One rendered row."""

    input_ids: IntArray  # [L], without the prompt
    label: int
    n_labels: int  # labels that this row can have; the verbalizer's first ones


@dataclass(frozen=True)
class EncodedRow:
    """A row's texts as ids, before any pattern."""

    fields: dict[str, IntArray]
    options: tuple[IntArray, ...]
    label: int


def encode_rows(tokenizer: Tokenizer, rows: Sequence[LabelledRow]) -> list[EncodedRow]:
    """Tokenise every text of every row once, in one batch."""
    texts = [text for row in rows for text in (*row.fields.values(), *row.options)]
    ids = iter(tokenizer.encode(texts))
    return [
        EncodedRow({name: next(ids) for name in row.fields}, tuple(next(ids) for _ in row.options), row.label)
        for row in rows
    ]


class Renderer:
    """One pattern of a task for one tokenizer: ids with a mask, and the ids of every label's word."""

    def __init__(self, task: Task, kind: PatternKind, tokenizer: Tokenizer, prompt_len: int) -> None:
        """Prepare the pattern.

        Args:
            task: the task.
            kind: which of its patterns.
            tokenizer: the backbone's.
            prompt_len: tokens that the prompt takes of the task's budget.

        Raises:
            UserError: a label word is unknown to the vocabulary, two labels have the same ids, or the prompt leaves
                no room.
        """
        self.task = task
        self.pattern = Pattern.parse(task.pattern_text(kind))
        self.tokenizer = tokenizer
        self.max_tokens = task.encoder_tokens(kind) - prompt_len
        if self.max_tokens <= 0:
            raise UserError(
                f"task {task.name} takes {task.encoder_tokens(kind)} encoder tokens and the prompt {prompt_len}; "
                "nothing is left for the text"
            )
        try:
            self._options = tuple(tokenizer.encode(list(task.verbalizer))) if self.pattern.has_options else ()
            if self.pattern.has_options:
                n = len(task.verbalizer) or task.max_options
                self.verbalizer = Verbalizer.letters(tokenizer, n)
                if task.verbalizer:
                    Verbalizer(tokenizer, task.verbalizer)  # refuses unknown words and equal labels
            else:
                self.verbalizer = Verbalizer(tokenizer, task.verbalizer)
        except UserError as error:
            raise UserError(f"task {task.name}: {error}") from error

    def render(self, rows: Iterable[EncodedRow]) -> list[Item]:
        """Rows through the pattern; too long ones lose text (`shorten` first), never the template or `<X>`."""
        items = []
        for row in rows:
            ids = self.pattern.render(
                self.tokenizer,
                row.fields,
                self._options_of(row),
                max_tokens=self.max_tokens,
                shorten=self._first_cut,
            )
            items.append(Item(ids, row.label, len(row.options) or len(self.verbalizer.words)))
        return items

    def kept(self, row: EncodedRow) -> list[tuple[str, IntArray, int]]:
        """Each text of a row in the pattern's order: its field (`options` for an option), its ids, how many are kept.

        Raises:
            UserError: not even a token of each text fits.
        """
        options = self._options_of(row)
        names: list[str] = []
        texts: list[IntArray] = []
        for kind, name in self.pattern.parts:
            here = [row.fields[name]] if kind == "field" else list(options) if kind == "options" else []
            names += ["options" if kind == "options" else name] * len(here)
            texts += here
        lengths = list(map(len, texts))
        fixed = self.pattern.fixed_tokens(self.tokenizer, len(options))
        room = self.max_tokens - fixed
        if room < sum(map(bool, lengths)):
            raise self.pattern.no_room(len(options), fixed, len(lengths), self.max_tokens)
        if sum(lengths) > room:
            lengths = shortened(lengths, room, [names.index(name) for name in self._first_cut])
        return list(zip(names, texts, lengths, strict=True))

    def text(self, row: EncodedRow, shown: int) -> str:
        """A row as it is rendered, for people: spaces between the parts, `<X>` for the mask, `shown` characters of a text."""
        whole = [self.tokenizer.decode(ids[:n]) for _, ids, n in self.kept(row)]
        texts = iter([text if len(text) <= shown else f"{text[:shown]}..." for text in whole])
        parts = []
        for kind, value in self.pattern.parts:
            if kind == "field":
                parts.append(next(texts))
            elif kind == "options":
                letters = LETTERS[: len(self._options_of(row))]
                parts += [f"{letter}. {next(texts)} ." for letter in letters]
            else:
                parts.append(value)
        return " ".join(parts)

    def _options_of(self, row: EncodedRow) -> Sequence[IntArray]:
        return (row.options or self._options) if self.pattern.has_options else ()

    @property
    def _first_cut(self) -> tuple[str, ...]:
        return tuple(name for name in self.task.shorten if name in self.pattern.fields)

    def target_ids(self, items: Sequence[Item]) -> list[IntArray]:
        """What the decoder is to say for each item: sentinel, label word; no closing sentinel (released code)."""
        by_label = [
            self.verbalizer.target_ids(label, closing=False) for label in range(len(self.verbalizer.words))
        ]
        return [by_label[item.label] for item in items]
