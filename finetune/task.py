"""Task files: what a data set is, how a row of it becomes text with one mask, which word stands for which label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from corpora.common.errors import UserError, nearest
from corpora.common.settings import Faults, Settings, make_settings, read_yaml
from corpora.formats import ENCODER_TOKENS, MAX_OPTIONS, Pattern

TASKS = Path(__file__).parent / "tasks"
MANY_LABELS = 5  # with more, every prompt row is a multiple choice (method.md, downstream patterns)

PatternKind = Literal["plain", "hard", "unified"]

FIRST = "first"  # the wording that a task file's own keys make
BY_DEV = (
    "dev"  # not a wording: each seed takes the one that its dev examples like best (finetune/wordings.py)
)


class Source(Settings):
    """Where a set's columns are, in files of one kind.

    `fields` maps a pattern's field to a column (a field that is not named has a column of its own name);
    `options` is the column with a row's list of options, or one column each (the last ones may be empty);
    `labels` says what the label numbers 0, 1, ... mean, as names out of the task's `labels`; rows whose
    label is in `unlabelled` are left out and counted.
    """

    fields: dict[str, str] = Field(default_factory=dict)
    options: str | tuple[str, ...] = "options"
    label: str = "label"
    labels: tuple[str, ...] = ()
    unlabelled: tuple[str | int | None, ...] = ()
    first_option: Literal[0, 1] = 0  # the number that stands for a row's first option


class LocalSource(Source):
    """JSONL, CSV or TSV files (plain or .gz) in a folder; `train` and `test` are file names, endings may be left out.

    An empty `test` takes the first that is there of test, validation and dev.
    """

    folder: str = ""  # below the data folder or the task file's own; empty: the task's name
    train: tuple[str, ...] = ("train",)
    test: tuple[str, ...] = ()


class HubSource(Source):
    """A data set of the Hugging Face hub without a loading script (or a local folder of that layout)."""

    path: str
    config: str | None = None
    train: str = "train"
    test: str = "validation"
    verified: bool = False  # whether someone loaded it by this name; a machine without a network cannot


class WordSearch(Settings):
    """How `ppt task words` found a wording's words: on which draw, with which backbone, and how they did there.

    Scores are of the backbone without a prompt: accuracy on the training examples that the words were found on, and on dev
    examples that the search did not see. `own_...` are those of the task's own words, where each is a single piece.
    """

    seed: int
    pattern: PatternKind
    backbone: str
    backbone_fingerprint: str
    n_train: int
    n_dev: int
    accuracy: float
    dev_accuracy: float
    own_accuracy: float | None = None
    own_dev_accuracy: float | None = None


class Wording(Settings):
    """Another way to ask for a task's labels; what it leaves out stays as the task has it."""

    name: str
    pattern: str | None = None
    hard: str | None = None
    verbalizer: tuple[str, ...] = ()
    search: WordSearch | None = None  # where `ppt task words` found the words

    @model_validator(mode="before")
    @classmethod
    def _words_are_text(cls, values: Any) -> Any:
        return _refuse_bare_yes(values, ("verbalizer",))

    @model_validator(mode="after")
    def _changes_something(self) -> Wording:
        if self.name in (FIRST, BY_DEV):
            raise ValueError(f'"{self.name}" has a meaning of its own as a wording; choose another name')
        if not (self.pattern or self.hard or self.verbalizer):
            raise ValueError(f'wording "{self.name}" changes nothing; expected pattern, hard or verbalizer')
        return self


def _refuse_bare_yes(values: Any, keys: Sequence[str]) -> Any:
    """Refuse words that YAML has read as true or false."""
    for key in keys if isinstance(values, dict) else ():
        if any(isinstance(word, bool) for word in values.get(key) or ()):
            raise ValueError(
                f'{key} holds a bare yes, no, true or false, which YAML reads as no word; write "yes", "no"'
            )
    return values


class Task(Settings):
    """One data set, as its YAML file states it.

    A task has either fixed labels (`verbalizer` holds their words, in label order) or labels that are each
    row's own options (`verbalizer` is empty and every pattern has `{options}`). Where a pattern has
    `{options}`, the answer is a letter: fixed labels stand there in verbalizer order, never shuffled.
    """

    name: str
    version: int = Field(default=1, ge=1)
    language: str = "en"
    format: Literal["sentence_pair", "multiple_choice", "single_text", "unified"]
    verbalizer: tuple[str, ...] = ()
    labels: tuple[
        str, ...
    ] = ()  # names of the labels in the data, in the verbalizer's order; empty: its words
    pattern: str = ""  # PT, PPT; empty in a `unified` task: its `unified` pattern
    unified: str | None = None  # Unified PPT; for multiple_choice: `pattern` where absent
    hard: str | None = None  # FT and the hybrid rows
    wordings: tuple[Wording, ...] = ()  # other patterns and words to choose from
    local: LocalSource = LocalSource()
    hub: HubSource | None = None
    metric: Literal["accuracy"] = "accuracy"  # what dev chooses by
    also: tuple[Literal["macro_f1"], ...] = ()  # reported beside it
    max_tokens: int | None = Field(default=None, ge=16)  # encoder tokens, prompt included; None: the format's
    shorten: tuple[str, ...] = ()  # fields that are cut first when a row is too long
    max_options: int = Field(default=MAX_OPTIONS, ge=2, le=MAX_OPTIONS)  # where options are each row's own
    shots_per_label: int | None = Field(
        default=None, ge=1
    )  # None: 8 with more than five labels, else not used
    note: str = ""
    used_pattern: PatternKind | None = None  # of a tuned prompt: what it was tuned with; not for task files

    _folder: Path | None = PrivateAttr(default=None)  # of the file that a user gave by path

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = dict(_refuse_bare_yes(values, ("verbalizer", "labels")))
            if values.get("format") == "unified" and not values.get("pattern"):
                values["pattern"] = values.get("unified") or ""
            if values.get("format") in ("unified", "multiple_choice") and not values.get("unified"):
                values["unified"] = values.get("pattern")
            if not values.get("labels"):
                values["labels"] = values.get("verbalizer") or ()
        return values

    @model_validator(mode="after")
    def _check(self) -> Task:
        faults = list(self._faults())
        if faults:
            raise Faults(faults)
        return self

    def _faults(self) -> Iterator[str]:
        """Everything in the file that cannot be meant."""
        if not self.pattern:
            yield 'key "pattern" is missing'
        n = len(self.verbalizer)
        if n == 1:
            yield "verbalizer has one word; expected two labels or more"
        if len(self.labels) != n:
            yield (
                f"{len(self.labels)} labels ({', '.join(self.labels)}) but {n} verbalizer "
                f"words ({', '.join(self.verbalizer)}); expected a word for each label, in the same order"
            )
        for what, names in (("labels", self.labels), ("verbalizer", self.verbalizer)):
            if len(set(names)) != len(names) and (what == "labels" or self.labels != self.verbalizer):
                yield f"{what} holds a name twice: {', '.join(names)}"
        if n > MAX_OPTIONS and (self.format == "unified" or self.unified):
            yield f"{n} labels; a multiple choice has at most {MAX_OPTIONS} (letters A to P)"
        if n > MANY_LABELS and self.format != "unified":
            yield (
                f"{n} labels with format {self.format}; more than {MANY_LABELS} labels need format: unified"
            )
        known: dict[str, None] = {}
        for kind, text in self.patterns().items():
            try:
                pattern = Pattern.parse(text)
            except UserError as error:
                yield f"the {kind} pattern: {error}"
                continue
            known.update(dict.fromkeys(pattern.fields))
            choice = kind == "unified" or self.format in ("unified", "multiple_choice") or not self.verbalizer
            if choice and not pattern.has_options:
                yield f'the {kind} pattern "{text}" has no {{options}}'
        for name in (*self.shorten, *self.local.fields, *(self.hub.fields if self.hub else ())):
            if known and name not in known:
                yield f'"{name}" is no field of the patterns{nearest(name, known)}'
        for source in (self.local, self.hub):
            for label in source.labels if source else ():
                if label not in self.labels:
                    yield f'a source names the label "{label}"{nearest(label, self.labels)}'
        yield from self._wording_faults(list(known))

    def _wording_faults(self, fields: Sequence[str]) -> Iterator[str]:
        names = [wording.name for wording in self.wordings]
        if len(set(names)) != len(names):
            yield f"wordings holds a name twice: {', '.join(names)}"
        for wording in self.wordings:
            try:
                read = self._reworded(wording).field_names()
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                yield f'wording "{wording.name}": {reason}'
                continue
            for name in read:
                if name not in fields:  # the data are read once, for all wordings
                    yield f'wording "{wording.name}" reads the field "{name}"{nearest(name, fields)}'

    def _reworded(self, wording: Wording) -> Task:
        changes: dict[str, Any] = {}
        if wording.pattern:
            changes["pattern"] = wording.pattern
            if self.unified == self.pattern:  # one pattern under two names stays one
                changes["unified"] = wording.pattern
        if wording.hard:
            changes["hard"] = wording.hard
        if wording.verbalizer:
            changes["verbalizer"] = wording.verbalizer
        task = Task.model_validate({**self.model_dump(exclude={"wordings"}), **changes})
        task._folder = self._folder
        return task

    def wording_names(self) -> tuple[str, ...]:
        """Names of its wordings, the file's own keys first."""
        return (FIRST, *(wording.name for wording in self.wordings))

    def worded(self, name: str) -> Task:
        """The task under one of its wordings; `first` is what its own keys say. Data and labels stay the same.

        Raises:
            UserError: the file has no such wording.
        """
        if name == FIRST:
            return self
        for wording in self.wordings:
            if wording.name == name:
                return self._reworded(wording)
        raise UserError(f'task {self.name} has no wording "{name}"{nearest(name, self.wording_names())}')

    @classmethod
    def load(cls, name: str | Path) -> Task:
        """Read a task.

        Args:
            name: a task that ships with the project (`cb`), or the path of a YAML file.

        Raises:
            UserError: no such task, or its file is wrong, naming the file and the key; its `others` are what else
                is wrong with it.
        """
        path = cls.path_of(name)
        by_path = path.parent != TASKS
        values = read_yaml(path)
        values.setdefault("name", path.stem)
        task = make_settings(cls, values, str(path) if by_path else f"task {path.stem}")
        if by_path:
            task._folder = path.parent
        return task

    @staticmethod
    def path_of(name: str | Path) -> Path:
        """The file of a task, named as for `load`.

        Raises:
            UserError: no task of that name ships with the project.
        """
        text = str(name)
        if text.endswith((".yaml", ".yml")) or "/" in text:
            return Path(text)
        path = TASKS / f"{text}.yaml"
        if not path.exists():
            raise UserError(
                f'no task "{text}" ships with the project{nearest(text, shipped_tasks())} '
                "(a task of your own is named by the path of its YAML file)"
            )
        return path

    @property
    def folder(self) -> Path | None:
        """The folder of the task file where a user gave it by path: its data may lie beside it."""
        return self._folder

    @property
    def own_options(self) -> bool:
        """Whether the labels are each row's own options (reading comprehension)."""
        return not self.verbalizer

    @property
    def many_labels(self) -> bool:
        """Whether the task has more than five fixed labels: then it is multiple choice in every prompt row."""
        return len(self.verbalizer) > MANY_LABELS

    def patterns(self) -> dict[PatternKind, str]:
        """The patterns that the file gives, by kind."""
        found: dict[PatternKind, str] = {"plain": self.pattern} if self.pattern else {}
        if self.hard:
            found["hard"] = self.hard
        if self.unified:
            found["unified"] = self.unified
        return found

    def pattern_text(self, kind: PatternKind) -> str:
        """The pattern of one kind.

        Raises:
            UserError: the file does not give it.
        """
        found = self.patterns()
        if kind not in found:
            raise UserError(f'task {self.name} has no {kind} pattern; add the key "{kind}" to its file')
        return found[kind]

    def field_names(self) -> tuple[str, ...]:
        """Every field that a pattern reads, in order of appearance."""
        names: dict[str, None] = {}
        for text in self.patterns().values():
            names.update(dict.fromkeys(Pattern.parse(text).fields))
        return tuple(names)

    def encoder_tokens(self, kind: PatternKind) -> int:
        """Longest input in tokens, prompt included, under one of the patterns."""
        return self.max_tokens or ENCODER_TOKENS["unified" if kind == "unified" else self.format]

    def label_index(self, value: Any, source: Source, numbering: Sequence[str] = ()) -> int | None:
        """Which fixed label a file's value means.

        Args:
            value: a label's name, its verbalizer word, or its number.
            source: whose `labels` say what the numbers mean.
            numbering: the same from the data itself (labels.json); goes before `source.labels`.

        Returns:
            The label's index, or None where the value means none.
        """
        if value is None:  # JSON's null, not a label that is called None
            return None
        text = str(value).strip()
        if isinstance(value, bool):
            text = text.lower()
        for names in (self.labels, self.verbalizer):
            if text in names:
                return names.index(text)
        order = tuple(numbering) or source.labels or self.labels
        if text.isdigit() and int(text) < len(order) and order[int(text)] in self.labels:
            return self.labels.index(order[int(text)])
        if isinstance(value, bool) and len(self.labels) == 2:
            return self.labels.index(order[int(value)])
        return None


def shipped_tasks() -> list[str]:
    """Names of the task files that ship with the project."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))
