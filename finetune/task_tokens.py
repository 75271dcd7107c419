"""A task under a vocabulary: label words that it cannot spell or tell apart, texts that it does not know or that are cut."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from corpora.common.errors import UserError
from corpora.formats import Verbalizer
from corpora.tokenizer import Tokenizer
from finetune.datasets import TaskData
from finetune.inputs import EncodedRow, Renderer, encode_rows
from finetune.rows import LabelledRow
from finetune.task import PatternKind, Task
from finetune.task_problems import Problem

LOOKED_AT = 1000  # rows of each set, spread over it
EXAMPLE = 200  # characters of each text of a row that is shown
UNKNOWN = 0.05  # share of a set's tokens


def word_problems(task: Task, tokenizer: Tokenizer) -> Iterator[Problem]:
    """Label words that the vocabulary does not know, and pairs of them that have the same tokens."""
    good = []
    for word in task.verbalizer:
        try:
            Verbalizer(tokenizer, [word])
            good.append(word)
        except UserError as error:
            yield Problem("error", "unknown_word", str(error))
    for pair in itertools.combinations(good, 2):
        try:
            Verbalizer(tokenizer, pair)
        except UserError as error:
            yield Problem("error", "same_tokens", str(error))


def text_problems(
    task: Task,
    rows: TaskData,
    tokenizer: Tokenizer,
    kinds: Sequence[PatternKind],
    prompt_len: int,
    words_are_good: bool = True,
) -> Iterator[Problem]:
    """Texts that the vocabulary does not know, and texts that are longer than the task's limit.

    Args:
        task: the task.
        rows: its rows; a thousand of each set are looked at.
        tokenizer: the backbone's.
        kinds: the patterns to look at.
        prompt_len: tokens that the prompt takes of the limit.
        words_are_good: whether the label words can be used; if not, lengths cannot be looked at.
    """
    encoded = encode_rows(tokenizer, [*_spread(rows.train), *_spread(rows.test)])
    if not encoded:
        return
    yield from _unknown(encoded, tokenizer)
    if not words_are_good:
        return
    worst: tuple[int, PatternKind, Counter[str]] | None = None
    for kind in kinds:
        try:
            renderer = Renderer(task, kind, tokenizer, prompt_len)
            cut = [
                names
                for row in encoded
                if (names := {name for name, ids, n in renderer.kept(row) if n < len(ids)})
            ]
        except UserError as error:
            text = str(error).removeprefix(f"task {task.name}: ")
            yield Problem(
                "error", "no_room", f"{text}; raise max_tokens, or make prompt_len or the pattern shorter"
            )
            continue
        if cut and (worst is None or len(cut) > worst[0]):
            worst = len(cut), kind, Counter(name for names in cut for name in names)
    if worst is None:
        return
    n, kind, by_field = worst
    shares = ", ".join(f"{name} in {_percent(count, len(encoded))}" for name, count in by_field.most_common())
    first = "" if task.shorten else ", or name in shorten what is to be cut first"
    yield Problem(
        "warning",
        "cut",
        f"{_percent(n, len(encoded))} of the rows are longer than {task.encoder_tokens(kind)} tokens ({prompt_len} of them the "
        f"prompt's) under the {kind} pattern and lose text at the end: {shares}; raise max_tokens{first}",
    )


def rendered_examples(task: Task, rows: TaskData, tokenizer: Tokenizer, prompt_len: int, n: int) -> list[str]:
    """The first rows of `n` different labels as the backbone reads them under the plain pattern, and the answer."""
    by_label: dict[int, LabelledRow] = {}
    for row in rows.train:
        by_label.setdefault(row.label, row)
    chosen = list(by_label.values())[:n]
    try:
        renderer = Renderer(task, "plain", tokenizer, prompt_len)
        encoded = encode_rows(tokenizer, chosen)
        texts = [renderer.text(row, EXAMPLE) for row in encoded]
    except UserError:
        return []  # said by `text_problems`
    words = renderer.verbalizer.words
    return [
        f"example: {text}\n  answer: {words[row.label]}" for text, row in zip(texts, encoded, strict=True)
    ]


def _spread(rows: Sequence[LabelledRow]) -> list[LabelledRow]:
    if len(rows) <= LOOKED_AT:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, LOOKED_AT).astype(int)]


def _unknown(encoded: Sequence[EncodedRow], tokenizer: Tokenizer) -> Iterator[Problem]:
    ids = np.concatenate([ids for row in encoded for ids in (*row.fields.values(), *row.options)])
    share = float((ids == tokenizer.unk_id).mean()) if len(ids) else 0.0
    if share >= UNKNOWN:
        yield Problem(
            "warning",
            "unknown_text",
            f"{share:.0%} of the texts' tokens are unknown to tokenizer {tokenizer.name}; take a backbone that knows their language",
        )


def _percent(n: int, total: int) -> str:
    share = 100 * n / total
    return f"{share:.0f} %" if share >= 1 else f"{share:.1g} %"
