"""What the labels of a user's files are: fixed ones or each row's own options, guessed and settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corpora.common.errors import UserError
from corpora.formats import MAX_OPTIONS
from corpora.tokenizer import LETTERS
from finetune.rows import label_text
from finetune.task_draft import Choose, Draft, split
from finetune.task_look import MISSING, NOT_TEXT, Column, Table, no_labels, option_columns
from finetune.task_words import in_order, words_for

LABEL_NAMES = (
    "label", "labels", "gold_label", "target", "class", "category", "answer", "answerkey", "correct", "gold", "topic",
    "intent", "sentiment", "stars", "rating", "score", "polarity", "y", "标签", "类别", "分类", "答案", "label_text",
)  # fmt: skip
OPTION_NAMES = ("options", "choices", "choice", "candidates", "endings", "answers", "选项")


def options_of(columns: Mapping[str, Column], choose: Choose) -> str | tuple[str, ...]:
    """The column with each row's list of options, or one column for each option; empty: labels are fixed."""
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
        column.counts and set(column.counts) <= set(LETTERS)
        for column in columns.values()
        if column.name not in LETTERS
    )


def label_column(columns: Mapping[str, Column], has_options: bool, choose: Choose) -> str:
    """The column that holds the label."""

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


def own_options(draft: Draft, table: Table, options: str | tuple[str, ...], choose: Choose) -> None:
    """Options and what numbers them."""
    draft.options = options
    rows = [(row.get(draft.label, ""), _options_of(row, options)) for row in table.rows]
    draft.max_options = max(len(own) for _, own in rows)
    if not 2 <= draft.max_options <= MAX_OPTIONS:
        raise UserError(
            f"rows have up to {draft.max_options} options in {options}; expected 2 to {MAX_OPTIONS} (name their columns with "
            "--options COLUMN, or one column for each option)"
        )
    texts = {text for _, own in rows for text in own}
    found = dict.fromkeys(label_text(label) for label, _ in rows)
    draft.unlabelled = tuple(text for text in found if not text or (text in MISSING and text not in texts))
    numbers = [
        (text, len(own))
        for label, own in rows
        if (text := label_text(label)) not in draft.unlabelled
        and not (isinstance(label, str) and text in own)
    ]
    if not all(text and text.isdigit() and text != "0" for text, _ in numbers) or not numbers:
        return
    sure = any(text == str(n) for text, n in numbers)
    question = "" if sure else "Number of a row's first option (no row has 0)"
    draft.first_option = 1 if choose("first-option", question, "1", ("0", "1")) == "1" else 0


def _options_of(row: Mapping[str, Any], options: str | tuple[str, ...]) -> list[str]:
    """A row's options; columns of their own may be empty from some place on."""
    if isinstance(options, str):
        value = row.get(options)
        return [str(one).strip() for one in value] if isinstance(value, list) else []
    texts = [str(row.get(name) or "").strip() for name in options]
    while texts and not texts[-1]:
        texts.pop()
    return texts


def fixed_labels(draft: Draft, label: Column, names: Sequence[str], choose: Choose) -> None:
    """Labels as the data names them, in the order of their words."""
    values = [value for value in label.counts if value]
    doubtful = [value for value in values if value in MISSING and value not in names]
    numbers = [value for value in values if value not in doubtful]
    if names and all(value.isdigit() and int(value) < len(names) for value in numbers):
        draft.numbering = tuple(names)
        found = list(names)
        count = {names[int(value)]: label.counts[value] for value in numbers}
    else:
        missing = no_labels(values)
        found = [value for value in values if value not in missing or value not in doubtful]
        if all(isinstance(value, bool) for value in label.values):
            found = [value.lower() for value in found]
        count = {value: label.counts[value] or label.counts[value.title()] for value in found}
    guess = in_order(found)

    def labels_of(answer: str) -> tuple[str, ...]:
        labels = tuple(guess) if answer == ",".join(guess) else tuple(split(answer))
        lacking = [value for value in guess if value not in labels and value not in doubtful]
        if lacking:
            raise UserError(
                f'--labels lacks "{lacking[0]}", which rows of the column {label.name} have; name every label once'
            )
        return labels

    shown = ", ".join(f'"{value}"' for value in doubtful)
    question = f"Labels (leave out {shown} where it says that a row has none)" if doubtful else ""
    answer = choose("labels", question, ",".join(guess), (*guess, *doubtful), check=labels_of)
    draft.labels = labels_of(answer)
    draft.counts = {value: count.get(value) or label.counts[value] for value in draft.labels}
    draft.unlabelled = (
        *([None] if any(value is None for value in label.values) else ()),
        *(value for value in label.counts if not value or (value in doubtful and value not in draft.labels)),
    )
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
