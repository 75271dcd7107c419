"""What is wrong with a task file and its data, all in one go: `ppt task check`, and `ppt fewshot` before it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.common.errors import UserError
from corpora.common.progress import say
from corpora.tokenizer import LETTERS, Tokenizer
from finetune.datasets import TaskData, load_task
from finetune.draws import Asked, draw_for, too_few
from finetune.methods import METHODS, rows_for
from finetune.present import present_tasks
from finetune.rows import LabelledRow, RowFault
from finetune.task import PatternKind, Task
from finetune.task_problems import Problem, likewise, plural, shown_text
from finetune.task_tokens import rendered_examples, vocabulary_problems

if TYPE_CHECKING:  # as below
    from finetune.workshop import Workshop

PROTOCOL = Asked()  # what a run asks that says nothing about it
UNBALANCED = 10  # times as many rows of the commonest label as of the rarest
ONE_PLACE = 0.7  # share of rows whose right option stands in one place


@dataclass
class Checked:
    """What a look at a task file and its data found."""

    file: str
    task: str | None = None  # its name; None where the file cannot be read
    train: int = 0  # rows to draw from
    test: int = 0
    labels: dict[str, tuple[int, int]] = field(
        default_factory=dict
    )  # rows to draw from and test rows of each
    problems: list[Problem] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)  # rows as the backbone reads them, and the answer

    @property
    def errors(self) -> list[Problem]:
        """What has to be mended before anything can be trained."""
        return [problem for problem in self.problems if problem.level == "error"]

    def as_json(self) -> dict[str, Any]:
        """For a program to read."""
        labels = {name: {"train": train, "test": test} for name, (train, test) in self.labels.items()}
        return {**asdict(self), "labels": labels, "ok": not self.errors}

    @property
    def text(self) -> str:
        """For people."""
        lines = []
        if self.task is not None:
            lines.append(f"{self.task} ({self.file}): {self.train} rows to draw from, {self.test} test rows")
        if self.labels:
            width = max(map(len, ("label", *self.labels)))
            lines.append(f"  {'label':<{width}}  {'train':>6}  {'test':>6}")
            lines += [f"  {name:<{width}}  {a:>6}  {b:>6}" for name, (a, b) in self.labels.items()]
        lines += [f"{problem.level}: {problem.text}" for problem in self.problems]
        lines += self.examples
        warnings = len(self.problems) - len(self.errors)
        if not self.problems:
            lines.append("nothing is wrong")
        else:
            lines.append(f"{plural(len(self.errors), 'error')}, {plural(warnings, 'warning')}")
        return "\n".join(lines)


def check_task(
    file: str | Path,
    data: str | Path | Mapping[str, str] | None = None,
    tokenizer: str | Path | None = None,
    asked: Asked = PROTOCOL,
    methods: Sequence[str] | None = None,
    examples: int = 2,
) -> Checked:
    """Find everything that is wrong with a task file and its data.

    Args:
        file: path of the task file, or the name of a task that ships with the project.
        data: as in `load_task`.
        tokenizer: what to look at label words and lengths with; None: they are not looked at.
        asked: what a run would ask of the rows.
        methods: that the run would have; None: any.
        examples: how many rendered rows to show, where there is a tokenizer.

    Returns:
        What was found; nothing is raised for a wrong file, wrong data or a wrong tokenizer.
    """
    checked = Checked(str(file))
    found = checked.problems
    vocabulary = None
    if tokenizer is not None:
        try:
            vocabulary = Tokenizer.load(tokenizer)
        except UserError as error:
            found.append(Problem("error", "tokenizer", str(error)))
    try:
        task = Task.load(file)
    except UserError as error:
        found += [Problem("error", "task_file", text) for text in (str(error), *error.others)]
        return checked
    checked.task = task.name
    found += _patterns(task, methods)
    faults: list[UserError] = []
    rows = None
    try:
        rows = load_task(task, data, faults.append)
    except UserError as error:
        found.append(Problem("error", "no_data", str(error)))
    found += _faults(faults)
    if rows is not None:
        checked.train, checked.test = len(rows.train), len(rows.test)
        checked.labels = _counts(task, rows)
        found += data_problems(task, rows, asked)
    if vocabulary is not None:
        wordings = {name: tuple(task.worded(name).patterns()) for name in task.wording_names()}
        found += vocabulary_problems(task, wordings, rows, vocabulary, asked.prompt_len)
        if rows is not None:
            checked.examples = rendered_examples(task, rows, vocabulary, asked.prompt_len, examples)
    found.sort(key=lambda problem: problem.level)  # errors first
    return checked


def check_run(workshop: Workshop) -> None:
    """Refuse tasks that a run cannot train on, and say what a reader of its results must know about the others.

    Raises:
        UserError: the first error, and how many more there are; or a method needs a pattern that a file lacks.
    """
    from finetune.wordings import used_wordings  # it brings torch, which `ppt task check` does without

    settings = workshop.settings
    for name in present_tasks(workshop):
        task = workshop.task(name)
        rows = workshop.data(name)
        found = list(data_problems(task, rows, settings.asked))
        vocabularies = {}
        used: dict[str, dict[str, list[PatternKind]]] = {}  # tokenizer -> wording -> patterns
        for row in rows_for(task, settings.methods):
            tokenizer = workshop.tokenizer(row.spec.backbone)
            vocabularies[tokenizer.fingerprint] = tokenizer
            for wording in used_wordings(task, row, settings.wordings):
                used.setdefault(tokenizer.fingerprint, {}).setdefault(wording, []).append(row.pattern)
        for fingerprint, wordings in used.items():
            vocabulary = vocabularies[fingerprint]
            found += vocabulary_problems(task, wordings, rows, vocabulary, settings.prompt_len)
        _refuse_or_warn(task, found)


def _refuse_or_warn(task: Task, found: Sequence[Problem]) -> None:
    errors = [problem.text for problem in found if problem.level == "error"]
    if errors:
        more = f" (and {plural(len(errors) - 1, 'more error')}: see ppt task check)" if errors[1:] else ""
        raise UserError(f"task {task.name}: {errors[0]}{more}", errors[1:])
    for problem in found:
        say(f"{task.name}: warning: {problem.text}")


def data_problems(task: Task, rows: TaskData, asked: Asked) -> Iterator[Problem]:
    """What is wrong with rows that could be read."""
    yield from _left_out(rows)
    yield from _empty(rows)
    yield from _classes(task, rows, asked)
    yield from _draws(task, rows, asked)


def _patterns(task: Task, methods: Sequence[str] | None) -> Iterator[Problem]:
    """Patterns that methods need and the file lacks."""
    lacking: dict[PatternKind, list[str]] = {}
    for name in METHODS if methods is None else methods:
        kind = METHODS[name].pattern
        if kind not in task.patterns():
            lacking.setdefault(kind, []).append(name)
    for kind, names in lacking.items():
        yield Problem(
            "warning" if methods is None else "error",
            "no_pattern",
            f'the task file has no {kind} pattern, which {", ".join(names)} need; add the key "{kind}" to it or leave them '
            "out (methods)",
        )


def _faults(faults: Sequence[UserError]) -> Iterator[Problem]:
    """Faults of rows; those that one change mends are said once, with their number."""
    groups: dict[object, list[UserError]] = {}
    for fault in faults:
        same = (fault.kind, fault.same) if isinstance(fault, RowFault) else str(fault)
        groups.setdefault(same, []).append(fault)
    for group in groups.values():
        kind = group[0].kind if isinstance(group[0], RowFault) else "data"
        yield Problem("error", kind, f"{group[0]}{likewise(len(group) - 1, 'more row')}")


def _left_out(rows: TaskData) -> Iterator[Problem]:
    """Training rows that are not drawn from."""
    counts = Counter(rows.counts)
    if counts["unlabelled"]:
        yield Problem(
            "warning",
            "unlabelled",
            f"{plural(counts['unlabelled'], 'row')} without a label {_are(counts['unlabelled'])} left out "
            "(unlabelled); label them to use them",
        )
    if n := counts["also_in_test"]:
        yield Problem(
            "warning",
            "also_in_test",
            f"{plural(n, 'training row')} also {'stands' if n == 1 else 'stand'} in the test set and {_are(n)} not drawn from, "
            f"first {shown_text(rows.first['also_in_test'])}; take them out of one of the files",
        )
    if n := counts["duplicates"]:
        other = counts["other_label"]
        unlike = f", {other} of them under another label," if other else ""
        first = rows.first["other_label" if other else "duplicates"]
        yield Problem(
            "warning",
            "duplicates",
            f"{plural(n, 'training row')} {'repeats' if n == 1 else 'repeat'} the text of an earlier one{unlike} and "
            f"{_are(n)} not drawn from, first {shown_text(first)}; take them out of the file"
            + (" and see which label is right" if other else ""),
        )


def _empty(rows: TaskData) -> Iterator[Problem]:
    empty: Counter[str] = Counter()
    for row in (*rows.train, *rows.test):
        empty.update(name for name, text in row.fields.items() if not text.strip())
    for name, n in empty.items():
        yield Problem(
            "warning",
            "empty_text",
            f'{plural(n, "row")} {"has" if n == 1 else "have"} an empty "{name}"; take them out, or read another column (local: fields)',
        )


def _classes(task: Task, rows: TaskData, asked: Asked) -> Iterator[Problem]:
    """Labels that no row has, and very unequal numbers of rows."""
    counts = {name: n for name, (n, _) in _counts(task, rows).items()}
    total = sum(counts.values())
    present = {name: n for name, n in counts.items() if n}
    if not total:
        return
    if len(present) == 1 and not task.own_options:
        yield Problem(
            "error",
            "one_label",
            f'every training row has the label "{next(iter(present))}", so there is nothing to learn; '
            "give rows of the other labels too",
        )
        return
    if task.own_options:
        place, n = max(present.items(), key=lambda item: item[1])
        if n >= ONE_PLACE * total:
            yield Problem(
                "warning",
                "unbalanced",
                f"the right option is {place} in {n / total:.0%} of the training rows, which a prompt learns instead of the question; "
                "shuffle each row's options",
            )
        return
    if not task.many_labels or asked.allow_fewer:  # else they are too few, which is an error
        for name in [name for name, n in counts.items() if not n]:
            yield Problem(
                "warning",
                "unused_label",
                f'no training row has the label "{name}", so nothing can be learnt about it; add rows, or take it out of labels and verbalizer',
            )
    common, rare = (f(present.items(), key=lambda item: item[1]) for f in (max, min))
    if common[1] >= UNBALANCED * rare[1]:
        f1 = "" if "macro_f1" in task.also else "; report macro F1 too (also: [macro_f1])"
        even = "" if asked.stratified or task.many_labels else ", and stratified: true draws labels evenly"
        yield Problem(
            "warning",
            "unbalanced",
            f'labels are very unequal: "{common[0]}" has {common[1]} training rows, "{rare[0]}" {rare[1]}; always saying "{common[0]}" '
            f"would be right for {common[1] / total:.0%}{f1}{even}",
        )


def _draws(task: Task, rows: TaskData, asked: Asked) -> Iterator[Problem]:
    """Too few rows for what is asked, and labels that a seed's draw misses."""
    labels = [row.label for row in rows.train]
    if not labels:
        return
    names = task.labels or LETTERS[: max(labels) + 1]
    short = too_few(labels, *asked.counts(task, max(asked.shots)), task.many_labels, names)
    if short and not asked.allow_fewer:
        yield Problem("error", "too_few", short)
        return
    missing: dict[tuple[str, int], list[int]] = {}
    for seed in asked.seeds:
        try:
            drawn = draw_for(task, labels, asked, min(asked.shots), seed)
        except UserError as error:
            yield Problem("error", "too_few", str(error).removeprefix(f"task {task.name}: "))
            return
        for what, numbers in (("to train", drawn.train), ("to choose by", drawn.dev)):
            for label in set(labels) - {labels[number] for number in numbers}:
                missing.setdefault((what, label), []).append(seed)
    for label in sorted({label for _, label in missing}):
        parts = [
            f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))} {'draws' if len(seeds) == 1 else 'draw'} no "
            f'"{names[label]}" {what}'
            for (what, which), seeds in missing.items()
            if which == label
        ]
        if task.many_labels:
            change = "add rows of it"
        elif asked.stratified:
            change = "draw more (shots, dev_shots)"
        else:
            change = "stratified: true draws labels evenly, more shots and dev_shots draw more of them"
        share = f"{labels.count(label)} of {len(labels)} rows have it"
        yield Problem("warning", "absent_label", f"{', '.join(parts)} ({share}); {change}")


def _counts(task: Task, rows: TaskData) -> dict[str, tuple[int, int]]:
    """Rows to draw from and test rows of each label; of each letter where options are each row's own."""
    both: list[LabelledRow] = [*rows.train, *rows.test]
    names = task.labels or LETTERS[: max((row.label for row in both), default=-1) + 1]
    train, test = (Counter(row.label for row in part) for part in (rows.train, rows.test))
    return {name: (train[label], test[label]) for label, name in enumerate(names)}


def _are(n: int) -> str:
    return "is" if n == 1 else "are"
