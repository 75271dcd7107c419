"""A task under a vocabulary: label words that it cannot spell or tell apart, texts that it does not know or that are cut."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from corpora.common.errors import UserError
from corpora.formats import Verbalizer
from corpora.tokenizer import Tokenizer
from finetune.datasets import TaskData
from finetune.inputs import EncodedRow, Renderer, encode_rows
from finetune.rows import LabelledRow
from finetune.task import FIRST, PatternKind, Task
from finetune.task_problems import Problem, likewise

LOOKED_AT = 1000  # rows of each set, spread over it
EXAMPLE = 200  # characters of each text of a row that is shown
UNEVEN = 2  # tokens by which label words may not differ without a warning
UNKNOWN = 0.05  # share of a set's tokens


def vocabulary_problems(
    task: Task,
    wordings: Mapping[str, Collection[PatternKind]],
    rows: TaskData | None,
    tokenizer: Tokenizer,
    prompt_len: int,
) -> Iterator[Problem]:
    """What is wrong with a task under a vocabulary.

    Args:
        task: the task.
        wordings: those of its wordings that are looked at, and under which patterns.
        rows: its rows; a thousand of each set are looked at. None: none could be read.
        tokenizer: the backbone's.
        prompt_len: tokens that the prompt takes of the task's limit.
    """
    spelt: dict[tuple[str, ...], bool] = {}
    rendered: dict[tuple[str, str, tuple[str, ...]], tuple[str, Task, PatternKind]] = {}
    for name, kinds in wordings.items():
        worded = task.worded(name)
        if worded.verbalizer not in spelt:
            problems = list(word_problems(worded, tokenizer))
            spelt[worded.verbalizer] = not problems
            problems = problems or list(_uneven(worded, tokenizer))
            for problem in problems:
                yield replace(problem, text=f"{problem.text}{_of(name)}")
        for kind in kinds:
            if spelt[worded.verbalizer]:
                key = (kind, worded.pattern_text(kind), worded.verbalizer)
                rendered.setdefault(key, (name, worded, kind))
    looked_at = [*_spread(rows.train), *_spread(rows.test)] if rows else []
    if encoded := encode_rows(tokenizer, looked_at):
        yield from _unknown(encoded, tokenizer)
        yield from _lengths(list(rendered.values()), encoded, tokenizer, prompt_len)


def word_problems(task: Task, tokenizer: Tokenizer) -> Iterator[Problem]:
    """Label words that the vocabulary does not know, and pairs of them that have the same tokens."""
    good, unknown = [], []
    for word in task.verbalizer:
        try:
            Verbalizer(tokenizer, [word])
            good.append(word)
        except UserError as error:
            unknown.append((word, str(error)))
    if len(unknown) == 1:
        yield Problem("error", "unknown_word", unknown[0][1])
    elif unknown:
        words = ", ".join(f'"{word}"' for word, _ in unknown)
        text = (
            f"label words {words} are unknown to tokenizer {tokenizer.name}; choose words that it can spell"
        )
        yield Problem("error", "unknown_word", text)
    same = []
    for pair in itertools.combinations(good, 2):
        try:
            Verbalizer(tokenizer, pair)
        except UserError as error:
            same.append(str(error))
    if same:
        yield Problem("error", "same_tokens", f"{same[0]}{likewise(len(same) - 1, 'more pair')}")


def _uneven(task: Task, tokenizer: Tokenizer) -> Iterator[Problem]:
    """Label words so unlike in length that the sum over their tokens keeps the long ones from being chosen."""
    if not task.verbalizer:
        return
    tokens = Verbalizer(tokenizer, task.verbalizer).ids
    lengths = {word: len(ids) for word, ids in zip(task.verbalizer, tokens, strict=True)}
    longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    if lengths[longest] - lengths[shortest] >= UNEVEN:
        yield Problem(
            "warning",
            "uneven_words",
            f'label word "{longest}" has {lengths[longest]} tokens and "{shortest}" {lengths[shortest]}: a word scores the sum over its '
            "tokens, so long ones are seldom chosen; take words of like lengths, or set length_normalised: true in the run",
        )


def _lengths(
    rendered: Sequence[tuple[str, Task, PatternKind]],
    encoded: Sequence[EncodedRow],
    tokenizer: Tokenizer,
    prompt_len: int,
) -> Iterator[Problem]:
    """Texts that are longer than the task's limit: under which pattern most are cut, and whether one leaves no room at all.

    Args:
        rendered: (wording, task under it, pattern) of everything that is looked at.
        encoded: rows.
        tokenizer: the backbone's.
        prompt_len: tokens that the prompt takes of the limit.
    """
    no_room: list[str] = []
    worst: tuple[int, str, Task, PatternKind, Counter[str]] | None = None
    for name, task, kind in rendered:
        try:
            renderer = Renderer(task, kind, tokenizer, prompt_len)
            cut = [
                names
                for row in encoded
                if (names := {name for name, ids, n in renderer.kept(row) if n < len(ids)})
            ]
        except UserError as error:
            no_room.append(str(error).removeprefix(f"task {task.name}: ") + _of(name))
            continue
        if cut and (worst is None or len(cut) > worst[0]):
            worst = len(cut), name, task, kind, Counter(field for names in cut for field in names)
    if no_room:
        yield Problem(
            "error",
            "no_room",
            f"{no_room[0]}; raise max_tokens, or make prompt_len or the pattern shorter"
            + likewise(len(no_room) - 1, "more pattern"),
        )
    if worst is None:
        return
    n, name, task, kind, by_field = worst
    shares = ", ".join(f"{name} in {_percent(count, len(encoded))}" for name, count in by_field.most_common())
    first = "" if task.shorten else ", or name in shorten what is to be cut first"
    yield Problem(
        "warning",
        "cut",
        f"{_percent(n, len(encoded))} of the rows are longer than {task.encoder_tokens(kind)} tokens ({prompt_len} of them the "
        f"prompt's) under the {kind} pattern{_of(name)} and lose text at the end: {shares}; raise max_tokens{first}",
    )


def _of(wording: str) -> str:
    return "" if wording == FIRST else f" (wording {wording})"


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
        return []  # said by `vocabulary_problems`
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
