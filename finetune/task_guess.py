"""What task a user's files are, guessed part by part; each guess may be overruled before the next is made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from corpora.common.errors import UserError, nearest
from corpora.formats import CHOICES, FORMATS
from corpora.segment import detect_language, has_spaces
from finetune.rows import label_text
from finetune.task import MANY_LABELS
from finetune.task_draft import Choose, Draft, split
from finetune.task_labels import fixed_labels, label_column, options_of, own_options
from finetune.task_look import MISSING, NOT_TEXT, Column, Table
from finetune.task_words import words_for

QUESTIONS = ("question", "query", "q", "问题", "问")  # behind the passage that they ask of
TITLES = ("title", "subject", "headline", "summary", "标题")  # with the body behind it one text, no pair
LONGER = 2  # times as long as the others: the field that is cut first


def guess_task(table: Table, names: Sequence[str], choose: Choose) -> Draft:
    """Make a draft out of the training rows.

    Args:
        table: the training rows.
        names: of the labels 0, 1, ... out of a labels.json beside them; empty: there is none.
        choose: settles each part.

    Returns:
        The draft, words included.

    Raises:
        UserError: a part can neither be guessed nor is it said, telling the flag that says it.
    """
    draft = Draft()
    columns = table.columns
    options = options_of(columns, choose)
    option_names = (options,) if isinstance(options, str) else options
    others = {name: column for name, column in columns.items() if name not in option_names}
    draft.label = label_column(others, bool(options), choose)
    label = columns[draft.label]
    if options:
        own_options(draft, table, options, choose)
    else:
        fixed_labels(draft, label, names, choose)
    texts = {name: column for name, column in others.items() if name != draft.label}
    draft.format = _format(draft, texts, choose)
    draft.language = choose("language", "Language (en or zh)", _language(texts), ("en", "zh"))
    _fields(draft, texts, choose)
    if not options:
        examples = _examples(draft, table)
        guess = words_for(draft.labels, draft.language)
        otherwise = _no_words(draft, examples)
        draft.words = _words(draft, guess, otherwise, choose)
    return draft


def _format(draft: Draft, texts: Mapping[str, Column], choose: Choose) -> str:
    if draft.options:
        guess, valid = (
            ("multiple_choice" if draft.max_options <= CHOICES else "unified"),
            ["multiple_choice", "unified"],
        )
    elif len(draft.labels) > MANY_LABELS:
        guess, valid = "unified", ["unified"]
    else:
        pair = len(_read(texts)) == 2 and not any(name.lower() in TITLES for name in _read(texts))
        guess, valid = "sentence_pair" if pair else "single_text", ["single_text", "sentence_pair", "unified"]

    def check(answer: str) -> None:
        if answer not in valid:
            what = "rows with options of their own" if draft.options else f"{len(draft.labels)} fixed labels"
            raise UserError(f"format {answer} does not go with {what}; expected {' or '.join(valid)}")

    question = f"Format ({', '.join(valid)})" if len(valid) > 1 else ""
    return choose("format", question, guess, FORMATS, check=check)


def _read(texts: Mapping[str, Column]) -> list[str]:
    """Columns that hold something to read; where none does, those that hold any text."""
    found = [name for name, column in texts.items() if column.is_text]
    return found or [
        name
        for name, column in texts.items()
        if column.is_scalar
        and not NOT_TEXT.match(name)
        and all(isinstance(value, str) for value in column.values)
        and any(any(map(str.isalpha, value)) for value in column.counts)
    ]


def _fields(draft: Draft, texts: Mapping[str, Column], choose: Choose) -> None:
    """Which columns are read, in which order, and what the pattern calls them."""
    readable = _read(texts)
    limit = 1 if draft.format == "single_text" and len(readable) > 2 else 2
    by_length = sorted(readable, key=lambda name: -texts[name].length)[:limit]
    guess = [name for name in readable if name in by_length]
    guess.sort(key=lambda name: name.lower() not in TITLES)
    if draft.format == "multiple_choice":  # the passage comes first, whatever the columns' order
        guess.sort(key=lambda name: name.lower() in QUESTIONS)

    def check(answer: str) -> None:
        if draft.format == "sentence_pair" and len(split(answer)) != 2:
            raise UserError(
                f"format sentence_pair reads two columns, not {len(split(answer))} ({answer}); "
                "name two with --fields COLUMN,COLUMN or choose --format single_text"
            )

    answer = choose(
        "fields",
        "Columns to read, in order",
        ",".join(guess) or None,
        tuple(texts),
        f"no column looks like text among {', '.join(texts) or 'none'}; name those to read with --fields COLUMN,COLUMN",
        check,
    )
    columns = split(answer)
    generic = {
        "sentence_pair": ["first", "second"],
        "multiple_choice": ["question"] if len(columns) == 1 else ["context", "question"],
    }.get(draft.format, ["text", "text2"])
    for place, column in enumerate(columns):
        name = re.sub(r"[^0-9a-z_]+", "_", column.lower()).strip("_") if column.isascii() else ""
        good = re.fullmatch(r"[A-Za-z_][0-9A-Za-z_]*", column) and column != "options"
        if good:
            name = column
        elif not re.match(r"[a-z]", name) or name == "options":
            name = generic[place] if place < len(generic) else f"text{place + 1}"
        draft.fields[name] = column
    if len(draft.fields) != len(columns):
        raise UserError(f"two of the columns {', '.join(columns)} have the same name; rename one")
    lengths = sorted(((texts[column].length, name) for name, column in draft.fields.items()), reverse=True)
    if len(lengths) > 1 and lengths[0][0] >= LONGER * lengths[1][0]:
        draft.shorten = (lengths[0][1],)
    draft.asking = tuple(name for name, column in draft.fields.items() if _asks(texts[column]))
    draft.left_out = tuple(name for name in texts if name not in columns)


def _asks(column: Column) -> bool:
    """Whether its texts end with a question mark, but for fewer than half of them."""
    asking = sum(str(value).rstrip().endswith(("?", "？")) for value in column.values)
    return 2 * asking > len(column.values)


def _language(texts: Mapping[str, Column]) -> str:
    """Chinese where its characters are a fifth of the texts; the English patterns serve every other language."""
    sample = " ".join(str(value) for name in _read(texts) for value in texts[name].values[:200])
    return "en" if has_spaces(sample) else detect_language(sample)


def _words(draft: Draft, guess: Sequence[str] | None, otherwise: str, choose: Choose) -> tuple[str, ...]:
    answer = choose(
        "words",
        f"Words for the labels {', '.join(draft.labels)}",
        ",".join(guess) if guess else None,
        (),
        otherwise,
        lambda answer: _words_of(draft, guess, answer),
    )
    return _words_of(draft, guess, answer)


def _words_of(draft: Draft, guess: Sequence[str] | None, answer: str) -> tuple[str, ...]:
    """Words in the order of the labels, out of `word,word` or `label=word,label=word`."""
    parts = split(answer)
    if not any("=" in part for part in parts):
        if len(parts) != len(draft.labels):
            raise UserError(
                f"{len(parts)} words ({', '.join(parts)}) for {len(draft.labels)} labels ({', '.join(draft.labels)}); "
                "expected a word for each, in that order, or label=word"
            )
        return tuple(parts)
    known = dict(zip(draft.labels, guess, strict=True)) if guess else {}
    for part in parts:
        label, _, word = (side.strip() for side in part.partition("="))
        if label not in draft.labels:
            raise UserError(f'--words names the label "{label}"{nearest(label, draft.labels)}')
        known[label] = word
    lacking = [label for label in draft.labels if not known.get(label)]
    if lacking:
        raise UserError(f'--words has no word for the label "{lacking[0]}"; add {lacking[0]}=WORD')
    return tuple(known[label] for label in draft.labels)


def _examples(draft: Draft, table: Table) -> dict[str, str]:
    """The beginning of a row of each label, so that a person sees what a number means."""
    found: dict[str, str] = {}
    column = next(iter(draft.fields.values()))
    for row in table.rows:
        value = label_text(row.get(draft.label, ""))
        if value is None:
            continue
        if draft.numbering and value.isdigit():
            value = draft.numbering[int(value)]
        found.setdefault(value, " ".join(str(row.get(column, "")).split())[:50])
    return found


def _no_words(draft: Draft, examples: Mapping[str, str]) -> str:
    """What to say where labels are numbers or codes."""
    seen = "; ".join(
        f'{label} ({draft.counts[label]} rows, as "{examples.get(label, "")}")' for label in draft.labels[:6]
    )
    doubtful = [label for label in draft.labels if label in MISSING]
    others = ",".join(label for label in draft.labels if label not in MISSING)
    hint = (
        f'; where "{doubtful[0]}" says that a row has no label: --labels {others}'
        if doubtful and "," in others
        else ""
    )
    shape = ",".join(f"{label}=WORD" for label in draft.labels[:3]) + (",..." if draft.labels[3:] else "")
    return (
        f"the labels are numbers or codes, so the words that stand for them have to be said: --words {shape} "
        f"(what the rows are: {seen}){hint}"
    )
