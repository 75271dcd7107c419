"""What a user's own files hold: their columns, and what each looks like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError
from finetune.datasets import ENDINGS, TEST_NAMES, records
from finetune.rows import label_text

TEST = re.compile(r"(?:^|[^a-z])(test|validation|valid|val|dev|eval)(?:[^a-z]|$)", re.I)
TRAIN = re.compile(r"(?:^|[^a-z])train(?:ing)?(?:[^a-z]|$)", re.I)
NOT_TEXT = re.compile(
    r"^(?:|#|unnamed.*|.*_id|id|idx|index|uid|guid|number|no|nr|row|url|link|date|time|timestamp|year|author|user|lang|language"
    r"|split|source|domain|license|序号|编号|日期|作者|来源)$",
    re.I,
)
FEW = 16  # different values that a label may have: a choice has letters A to P
LONG = 100  # characters: no name of a column is longer
MISSING = (
    "-",
    "-1",
    "None",
    "null",
    "NaN",
    "nan",
    "N/A",
)  # what a row without a label may have there, and what a label may be called


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as the file has it.
        values: of every row that has the column.
        rows: of the table.
    """

    name: str
    values: tuple[Any, ...]
    rows: int

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value occurs, as text; JSON's null is none."""
        return Counter(text for value in self.values if (text := label_text(value)) is not None)

    @property
    def is_list(self) -> bool:
        """Whether every value is a list of texts: a row's options."""
        return bool(self.values) and all(
            isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value)
            for value in self.values
        )

    @property
    def is_scalar(self) -> bool:
        """Whether no value is a list or an object."""
        return not any(isinstance(value, list | dict) for value in self.values)

    @property
    def length(self) -> float:
        """Characters of a value on average."""
        return sum(len(str(value)) for value in self.values) / max(1, len(self.values))

    @property
    def is_text(self) -> bool:
        """Whether it holds something to read: texts of several words, mostly different ones."""
        if self.is_list or not all(isinstance(value, str) for value in self.values):
            return False
        if not self.values or NOT_TEXT.match(self.name) or len(self.values) < self.rows:
            return False
        wordy = sum(_wordy(value) for value in self.values) / len(self.values)
        different = len(self.counts) > max(1, min(FEW, len(self.values) // 5))
        return wordy >= 0.5 and different

    @property
    def is_labels(self) -> bool:
        """Whether it may be a label: few different values, each of several rows where there are many rows."""
        if not self.is_scalar or len(self.counts) < 2 or NOT_TEXT.match(self.name):
            return False
        labels = {value for value in self.counts if value} - set(no_labels(self.counts))
        return 2 <= len(labels) <= max(2, min(3 * FEW, len(self.values) // 2))


def no_labels(values: Collection[str], named: int = 0) -> list[str]:
    """Those of a label's values that say that a row has none, as far as the others tell.

    `-1` does beside 0, 1 and 2 (so sets of the Hugging Face hub have it), not on a scale such as -1, 0, 1; `-` does not
    beside `+`; `None` is a class of its own more often. Nothing does where fewer than two labels would be left.

    Args:
        values: different values, as text.
        named: how many numbers, from 0 on, are known to be labels.
    """
    labels = {value for value in values if value}
    others = labels - set(MISSING)
    counted = (named or len(others) > 2) and others <= {str(number) for number in range(named or len(others))}
    classes = {"None", "-" if "+" in others else "", "" if counted else "-1"}
    found = [value for value in values if value in MISSING and value not in classes]
    return found if len(labels) - len(found) >= 2 else []


def _wordy(value: str) -> bool:
    """Whether a text has two words, or two characters of a script without spaces, and a letter."""
    letters = sum(map(str.isalpha, value))
    return letters > 0 and (len(value.split()) > 1 or (letters > 1 and not value.isascii()))


@dataclass(frozen=True)
class Table:
    """The rows of one file or of several with the same columns."""

    paths: tuple[Path, ...]
    rows: tuple[dict[str, Any], ...]

    @cached_property
    def columns(self) -> dict[str, Column]:
        """By name, in the order in which they are met."""
        names = dict.fromkeys(str(name) for row in self.rows for name in row)
        return {
            name: Column(name, tuple(row[name] for row in self.rows if name in row), len(self.rows))
            for name in names
        }


def read_table(paths: Sequence[Path]) -> Table:
    """Read files whole.

    Raises:
        UserError: a line is broken, there are no rows, a header has other separators than commas or is no header.
    """
    table = Table(tuple(paths), tuple(record for _, _, record in records(paths)))
    if not table.rows:
        raise UserError(f"{paths[0]} has no rows")
    if ".jsonl" in paths[0].suffixes:
        return table
    names = list(table.columns)
    if len(names) == 1 and (found := re.search(r"[;\t|]", names[0])):
        what = {";": "semicolons", "\t": "tabs", "|": "bars"}[found[0]]
        raise UserError(
            f"{paths[0]}: the columns are separated by {what}; expected commas (save it as CSV with commas, or with tabs as .tsv)"
        )
    for column in table.columns.values():
        if len(column.name) > LONG or (column.is_labels and column.name.strip() in column.counts):
            raise UserError(
                f'{paths[0]} line 1: "{column.name[:40]}" looks like data; expected the names of the columns there: '
                "write a first line such as text,label"
            )
    return table


def find_files(data: Sequence[Path], test: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Which of a user's files are the training set, and which the test set.

    Args:
        data: files, or folders with such files; names tell test files (test, validation, dev) from others.
        test: files that are the test set, whatever their names; empty: by name, the first kind that is there.

    Returns:
        Training and test files; the latter may be none.

    Raises:
        UserError: a path does not exist or has no known ending, or a folder's files do not say what they are.
    """
    train: list[Path] = []
    tests: list[Path] = []
    for path in data:
        found = [path] if not path.is_dir() else _in_folder(path)
        for file in found:
            (tests if _is_test(file) else train).append(file)
    if any(path.is_dir() for path in data):
        for fits in (lambda path: TRAIN.search(_stem(path)), lambda path: _stem(path).lower() == "train"):
            train = [path for path in train if fits(path)] or train
    if not train and len(tests) == 1 and test:
        train, tests = tests, []
    if not train:
        shown = ", ".join(map(str, tests)) or ", ".join(map(str, data))
        raise UserError(
            f"no training file among {shown}; expected a file that is not named test, validation or dev"
        )
    for path in (*train, *tests, *test):
        _check_file(path)
    if test:
        tests = list(test)
    else:
        kinds = [*TEST_NAMES, "valid", "val", "eval"]
        order = [kinds.index(_kind(path)) for path in tests]
        tests = [path for path, place in zip(tests, order, strict=True) if place == min(order)]
    return train, tests


def _in_folder(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS))
    if not found:
        raise UserError(
            f"{folder} holds no data; expected files that end in .jsonl, .csv or .tsv, or these with .gz"
        )
    if len(found) > 1 and not any(TRAIN.search(_stem(path)) or _is_test(path) for path in found):
        raise UserError(
            f"{folder} holds {', '.join(path.name for path in found)}; name the training file, and the test file with --test"
        )
    return found


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.name.endswith(ENDINGS):
        hint = "; JSON with an object a line is .jsonl" if ".json" in path.suffixes else ""
        raise UserError(f"{path}: expected a name that ends in .jsonl, .csv or .tsv, or these with .gz{hint}")


def _stem(path: Path) -> str:
    ending = next((end for end in sorted(ENDINGS, key=len, reverse=True) if path.name.endswith(end)), "")
    return path.name.removesuffix(ending)


def _is_test(path: Path) -> bool:
    return bool(TEST.search(_stem(path))) and not TRAIN.search(_stem(path))


def _kind(path: Path) -> str:
    found = TEST.search(_stem(path))
    assert found is not None  # `_is_test` said so
    return found[1].lower()


def option_columns(columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Groups of columns that may be a row's options: A, B, C; option_a, option_b; choice1, choice2; 选项A, 选项B."""
    groups: dict[tuple[str, bool], dict[int, str]] = {}
    form = re.compile(
        r"^(option|choice|answer|ending|opt|candidate|alternative|sol|选项|)[ _-]?([A-P]|\d\d?)$", re.I
    )
    for name in columns:
        found = form.match(name.strip())
        if found and (found[1] or found[2].isalpha()):
            number = int(found[2]) if found[2].isdigit() else ord(found[2].upper()) - ord("A")
            groups.setdefault((found[1].lower(), found[2].isdigit()), {})[number] = name
    for members in groups.values():
        numbers = sorted(members)
        if len(numbers) > 1 and numbers[0] in (0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1:
            yield tuple(members[number] for number in numbers)
