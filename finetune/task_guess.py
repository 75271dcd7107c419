"""What task a user's files are, guessed part by part; each guess may be overruled before the next is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from corpora.common.errors import UserError, nearest
from corpora.formats import CHOICES, FORMATS, MAX_OPTIONS
from corpora.segment import detect_language, has_spaces
from corpora.tokenizer import LETTERS
from finetune.task import MANY_LABELS
from finetune.task_look import MISSING, NOT_TEXT, Column, Table, option_columns
from finetune.task_words import in_order, words_for

LABEL_NAMES = (
    "label", "labels", "gold_label", "target", "class", "category", "answer", "answerkey", "correct", "gold", "topic",
    "intent", "sentiment", "stars", "rating", "score", "polarity", "y", "标签", "类别", "分类", "答案", "label_text",
)  # fmt: skip
OPTION_NAMES = ("options", "choices", "choice", "candidates", "endings", "answers", "选项")
QUESTIONS = ("question", "query", "q", "问题", "问")  # behind the passage that they ask of
TITLES = ("title", "subject", "headline", "summary", "标题")  # with the body behind it one text, no pair
LONGER = 2  # times as long as the others: the field that is cut first
UNEVEN = 3  # times as many rows of the commonest label as of the rarest: macro F1 is reported too


class Choose(Protocol):
    """Settles one part of a task: what a flag says, else what a person answers, else the guess."""

    def __call__(
        self,
        part: str,
        question: str,
        guess: str | None,
        among: Sequence[str] = (),
        otherwise: str = "",
        check: Callable[[str], object] | None = None,
    ) -> str:
        """Settle a part.

        Args:
            part: the flag's name.
            question: for a person; empty: nobody is asked.
            guess: what is taken where nobody says otherwise; None: there is none.
            among: valid answers (a comma separates several); empty: any text.
            otherwise: the error where there is neither flag nor person nor guess.
            check: raises a UserError at an answer that does not fit; a person is asked again.

        Raises:
            UserError: see `otherwise` and `check`; or a flag names nothing of `among`.
        """
        ...


@dataclass
class Draft:
    """A task that is to be written."""

    format: str = ""
    language: str = "en"
    label: str = ""  # column
    labels: tuple[str, ...] = ()  # as the data names them
    words: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # training rows of each label
    numbering: tuple[str, ...] = ()  # what label numbers mean
    unlabelled: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)  # pattern field -> column
    options: str | tuple[str, ...] = ""  # column of lists, or one column each
    max_options: int = 0
    first_option: Literal[0, 1] = 0
    shorten: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # columns that the task does not read

    @property
    def uneven(self) -> bool:
        """Whether labels have very different numbers of rows."""
        return bool(self.counts) and max(self.counts.values()) >= UNEVEN * min(self.counts.values())


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
    options = _options(columns, choose)
    option_names = (options,) if isinstance(options, str) else options
    others = {name: column for name, column in columns.items() if name not in option_names}
    draft.label = _label_column(others, bool(options), choose)
    label = columns[draft.label]
    draft.unlabelled = tuple(value for value in label.counts if value in MISSING)
    if options:
        _own_options(draft, table, options)
    else:
        _fixed_labels(draft, label, names, choose)
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


def _options(columns: Mapping[str, Column], choose: Choose) -> str | tuple[str, ...]:
    lists = [name for name, column in columns.items() if column.is_list]
    lists.sort(key=lambda name: name.lower() not in OPTION_NAMES)
    guess: tuple[str, ...] = ()
    if lists:
        guess = (lists[0],)
    else:
        for group in option_columns(list(columns)):
            bare = all(len(name.strip()) == 1 for name in group)
            if not bare or len(group) > 2 or _answers_with_letters(columns):
                guess = max(guess, group, key=len)
    answer = choose("options", "Columns with a row's own options (none: fixed labels)" if guess else "", ",".join(guess) or "none",
                    ("none", *columns))  # fmt: skip
    found = split(answer)
    if found == ["none"]:
        return ""
    return found[0] if len(found) == 1 else tuple(found)


def _answers_with_letters(columns: Mapping[str, Column]) -> bool:
    return any(
        set(column.counts) <= set(LETTERS) for column in columns.values() if column.name not in LETTERS
    )


def _label_column(columns: Mapping[str, Column], has_options: bool, choose: Choose) -> str:
    def rank(name: str) -> tuple[bool, int, float]:
        lower = name.strip().lower()
        place = LABEL_NAMES.index(lower) if lower in LABEL_NAMES else len(LABEL_NAMES)
        sure = columns[name].is_labels and not columns[name].is_text
        return not sure, place, columns[name].length

    named = [name for name in columns if name.strip().lower() in LABEL_NAMES and columns[name].is_scalar]
    fit = [name for name, column in columns.items() if column.is_labels]
    found = sorted({*named, *fit}, key=rank)
    if not found and has_options:
        found = sorted((n for n in columns if columns[n].is_scalar and not NOT_TEXT.match(n)),
                       key=lambda n: columns[n].length)  # fmt: skip
    guess = found[0] if found else None
    if guess is not None and not has_options:
        guess = next((name for name in fit if _names(columns[name], columns[guess])), guess)
    return choose(
        "label",
        "Column of the label",
        guess,
        tuple(columns),
        f"no column looks like a label among {', '.join(columns)}; name it with --label COLUMN",
    )


def _names(words: Column, codes: Column) -> bool:
    """Whether one column has the names of the labels that another has as numbers or codes."""
    pairs = set(zip(map(str, words.values), map(str, codes.values), strict=False))
    return (
        len(words.values) == len(codes.values)
        and len(pairs) == len(words.counts) == len(codes.counts)
        and words_for(list(codes.counts)) is None
        and words_for(list(words.counts)) is not None
    )


def _own_options(draft: Draft, table: Table, options: str | tuple[str, ...]) -> None:
    """Options and what numbers them."""
    draft.options = options
    counts = []
    for row in table.rows:
        value = row.get(options) if isinstance(options, str) else [row.get(name) for name in options]
        counts.append(sum(bool(str(one or "").strip()) for one in value) if isinstance(value, list) else 0)
    draft.max_options = max(counts)
    if not 2 <= draft.max_options <= MAX_OPTIONS:
        raise UserError(
            f"rows have up to {draft.max_options} options in {options}; expected 2 to {MAX_OPTIONS} (name their columns with "
            "--options COLUMN, or one column for each option)"
        )
    numbers = {value for value in table.columns[draft.label].counts if value not in draft.unlabelled}
    if all(number.isdigit() for number in numbers) and "0" not in numbers:
        draft.first_option = 1 if str(draft.max_options) in numbers else 0


def _fixed_labels(draft: Draft, label: Column, names: Sequence[str], choose: Choose) -> None:
    """Labels as the data names them, in the order of their words."""
    found = [value for value in label.counts if value not in draft.unlabelled]
    numbers = all(value.isdigit() for value in found)
    if names and numbers and all(int(value) < len(names) for value in found):
        draft.numbering = tuple(names)
        count = {names[int(value)]: label.counts[value] for value in found}
        found = list(names)
    else:
        if all(isinstance(value, bool) for value in label.values):
            found = [value.lower() for value in found]
        count = {value: label.counts[value] or label.counts[value.title()] for value in found}
    guess = in_order(found)
    answer = choose("labels", "", ",".join(guess), guess)
    draft.labels = tuple(split(answer)) if answer != ",".join(guess) else tuple(guess)
    lacking = [value for value in guess if value not in draft.labels]
    if lacking:
        raise UserError(
            f'--labels lacks "{lacking[0]}", which rows of the column {label.name} have; name every label once'
        )
    draft.counts = {value: count.get(value, 0) for value in draft.labels}
    if len(draft.labels) > MAX_OPTIONS:
        raise UserError(
            f"column {label.name} has {len(draft.labels)} labels ({', '.join(draft.labels[:5])}, ...); a task has at most "
            f"{MAX_OPTIONS}: put some together, or name another column with --label"
        )
    if len(draft.labels) < 2:
        raise UserError(
            f'column {label.name} has one label only ("{draft.labels[0]}"); name another with --label'
            if draft.labels
            else f"column {label.name} has no label in it; name another with --label"
        )


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
    draft.left_out = tuple(name for name in texts if name not in columns)


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
        value = str(row.get(draft.label, "")).strip()
        if draft.numbering and value.isdigit():
            value = draft.numbering[int(value)]
        found.setdefault(value, " ".join(str(row.get(column, "")).split())[:50])
    return found


def _no_words(draft: Draft, examples: Mapping[str, str]) -> str:
    """What to say where labels are numbers or codes."""
    seen = "; ".join(
        f'{label} ({draft.counts[label]} rows, as "{examples.get(label, "")}")' for label in draft.labels[:6]
    )
    shape = ",".join(f"{label}=WORD" for label in draft.labels[:3]) + (",..." if draft.labels[3:] else "")
    return (
        f"the labels are numbers or codes, so the words that stand for them have to be said: --words {shape} "
        f"(what the rows are: {seen})"
    )


def split(answer: str) -> list[str]:
    """Parts of a comma-separated answer."""
    return [part.strip() for part in answer.split(",") if part.strip()]
