"""Writes a task file from a look at a user's data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from corpora.common.errors import UserError
from corpora.common.files import read_json, write_text_atomic
from corpora.common.rng import generator
from finetune.rows import label_text
from finetune.task import Task
from finetune.task_draft import Choose, Draft
from finetune.task_guess import guess_task
from finetune.task_look import Table, find_files, read_table

ANSWER = {"en": "The correct one is <X>", "zh": "正确的一项是 <X>"}
# Hard prompts: the English ones of pairs, choices and many labels are those of the released code for such tasks.
HARD_PAIR = {"en": "{%s} ? <X> . {%s}", "zh": "{%s} 对吗 ? <X> 。 {%s}"}
HARD_SAME = {"en": "{%s} Does it mean the same ? <X> . {%s}", "zh": "{%s} 意思相同吗 ? <X> 。 {%s}"}
HARD_CHOICE = {"en": "Based on the previous passage, we ask", "zh": "根据上文回答问题"}
HARD_QUESTION = {"en": "Which one is right", "zh": "哪一项正确"}
HARD_MANY = {"en": "Based on the previous text, we ask what the topic is", "zh": "以上内容属于哪个类别"}
HARD_OPINION = {"en": "It was <X> .", "zh": "总的来说 <X> 。"}
HARD_LABEL = {"en": "This is about <X> .", "zh": "以上内容属于 <X> 。"}
COMMENTS = {
    "pattern": "A row as text; the answer stands at <X>.",
    "hard": "The same with words of your own that say what is asked (FT, hybrid methods): make it fit the task.",
    "unified": "A row as a multiple choice.",
}
SAME = frozenset({"same", "duplicate", "equivalent", "相同", "相似"})
OPINIONS = frozenset({"terrible", "bad", "maybe", "good", "great", "很差", "差", "一般", "好", "很好"})


def new_task(
    data: Sequence[Path],
    out: Path,
    choose: Choose,
    test: Sequence[Path] = (),
    split: float | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Draft:
    """Look at files and write a task file that reads them.

    Args:
        data: training files, or folders that hold a training file and perhaps a test file.
        out: the task file to write.
        choose: settles what cannot be known.
        test: test files; empty: by their names among `data`.
        split: share of the rows to hold out as a test set where there is none; files of both go beside `out`.
        name: of the task; None: of the file.
        overwrite: whether what is there gives way.

    Returns:
        What was written.

    Raises:
        UserError: the files cannot be read or made sense of, there is no test set, or what is to be written exists or is one of them.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: expected a name that ends in .yaml")
    name = name or out.stem
    train, tests = find_files(data, test)
    parts: list[Path] = []
    if not tests:
        split = _share(choose, split, train)
        parts = [out.parent / name / f"{part}.jsonl" for part in ("train", "test")]
    elif split is not None:
        raise UserError(f"--split is for data without a test set; {tests[0]} is one: leave --split out")
    _check_targets([out, *parts], [*train, *tests], overwrite)
    table = read_table(train)
    draft = guess_task(table, _label_names(train), choose)
    if tests:
        _same_columns(draft, train[0], read_table(tests))
        origin = ", ".join(path.name for path in (*train, *tests))
    else:
        assert split is not None  # `_share` said so
        origin = f"{', '.join(path.name for path in train)}, {split:g} of the rows held out as a test set"
        train, tests = parts[:1], parts[1:]
        halves = split_rows(table, draft, split)
        for path, rows in zip(parts, halves, strict=True):
            write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_text_atomic(out, task_text(draft, name, out.parent, train, tests, origin))
    Task.load(out)  # what is written is a task file
    return draft


def _check_targets(targets: Sequence[Path], sources: Sequence[Path], overwrite: bool) -> None:
    """Refuse to write over what is there, and over the data themselves in any case."""
    for path in filter(Path.exists, targets):
        if any(path.samefile(source) for source in sources):
            raise UserError(
                f"{path} would be written over, and the task is made from it; choose another --out or --name"
            )
        if not overwrite:
            raise UserError(f"{path} already exists; choose another --out or --name, or say --overwrite")


def _share(choose: Choose, split: float | None, train: Sequence[Path]) -> float:
    if split is not None:
        return _share_of(str(split))
    answer = choose(
        "split", "Share of the rows to hold out", None, (),
        f"no test set beside {train[0]}: name it with --test FILE, or --split 0.2 holds a fifth of the rows out as one",
        _share_of,
    )  # fmt: skip
    return _share_of(answer)


def _share_of(answer: str) -> float:
    try:
        share = float(answer)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"--split {answer}: expected a share between 0 and 1, as 0.2")
    return share


def _label_names(train: Sequence[Path]) -> list[str]:
    """What label numbers mean, where a labels.json beside the files says it."""
    path = train[0].parent / "labels.json"
    if not path.exists():
        return []
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a list of the labels' names")
    return names


def _same_columns(draft: Draft, train: Path, test: Table) -> None:
    options = (draft.options,) if isinstance(draft.options, str) else draft.options
    for column in filter(None, (*draft.fields.values(), draft.label, *options)):
        if column not in test.columns:
            raise UserError(
                f'{test.paths[0]} has no column "{column}", which {train} has; found {", ".join(test.columns)}'
            )


def split_rows(table: Table, draft: Draft, share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Hold rows out as a test set: of each label the same share, at least one; rows of one text stay together.

    The same rows and labels are always split alike.

    Returns:
        Training rows and test rows, each in the order of the file.
    """
    texts = [tuple(str(row.get(column, "")) for column in draft.fields.values()) for row in table.rows]
    by_label: dict[str, list[int]] = {}
    first: dict[tuple[str, ...], int] = {}
    for number, (row, text) in enumerate(zip(table.rows, texts, strict=True)):
        label = label_text(row.get(draft.label, ""))
        if first.setdefault(text, number) == number and label not in draft.unlabelled:
            by_label.setdefault("" if draft.options or label is None else label, []).append(number)
    held: set[tuple[str, ...]] = set()
    for label, numbers in sorted(by_label.items()):
        n = max(1, round(share * len(numbers)))
        held.update(texts[numbers[i]] for i in generator(0, "split", label).permutation(len(numbers))[:n])
    train = [row for row, text in zip(table.rows, texts, strict=True) if text not in held]
    return train, [row for row, text in zip(table.rows, texts, strict=True) if text in held]


def patterns_of(draft: Draft) -> dict[str, str]:
    """The plain, hard and unified pattern of a draft; where two are the same, one of them. No question mark is doubled."""
    found = _patterns(draft)
    for name in draft.asking:
        found = {kind: text.replace(f"{{{name}}} ?", f"{{{name}}}") for kind, text in found.items()}
    return found


def _patterns(draft: Draft) -> dict[str, str]:
    names = list(draft.fields)
    braced = [f"{{{name}}}" for name in names]
    all_texts = " ".join(braced)
    answer, language = ANSWER[draft.language], draft.language
    choice = f"{{options}} ? {answer}"
    if draft.format == "sentence_pair":
        first, second = names
        return {
            "pattern": f"{{{first}}} <X> {{{second}}}",
            "hard": (HARD_SAME if SAME & set(draft.labels) else HARD_PAIR)[language] % (second, first),
            "unified": f"{{{second}}} ? {{{first}}} . {choice}",
        }
    if draft.format == "single_text":
        hard = HARD_OPINION if OPINIONS.issuperset(draft.words) else HARD_LABEL
        return {
            "pattern": f"{all_texts} <X>",
            "hard": f"{all_texts} {hard[language]}",
            "unified": f"{all_texts} ? {choice}",
        }
    if not draft.options:
        return {"unified": f"{all_texts} ? {choice}", "hard": f"{all_texts} {HARD_MANY[language]} ? {choice}"}
    *before, last = braced
    if not before:
        return {"pattern": f"{last} ? {choice}", "hard": f"{last} {HARD_QUESTION[language]} ? {choice}"}
    context = " ".join(before)
    return {
        "pattern": f"{context} ; {last} ? {choice}",
        "hard": f"{context} {HARD_CHOICE[language]} {last} ? {choice}",
    }


def task_text(
    draft: Draft, name: str, folder: Path, train: Sequence[Path], test: Sequence[Path], origin: str
) -> str:
    """The task file, with comments.

    Args:
        draft: the task.
        name: its name.
        folder: where the file will lie.
        train: training files.
        test: test files.
        origin: what it was made from.
    """
    patterns = patterns_of(draft)
    lines = [
        f"# Written by `ppt task new` from {origin}.",
        "# What it says is a guess: read it, change it, then `ppt task check` it.",
        f"name: {_yaml(name)}",
        "# Goes up when you change what the task means: results of both are then told apart.",
        "version: 1",
        f"language: {draft.language}",
        "# Whose pre-trained prompt PPT starts from.",
        f"format: {draft.format}",
    ]
    if draft.labels:
        if draft.labels != draft.words:
            lines += ["# The labels as the data name them.", f"labels: {_yaml(list(draft.labels))}"]
        many = draft.format == "unified"
        what = "options, in this order" if many else "what the backbone is to say for each label"
        lines += [f"# A word for each label: {what}.", f"verbalizer: {_yaml(list(draft.words))}"]
    for key, text in patterns.items():
        lines += [f"# {COMMENTS[key]}", f"{key}: {_yaml(text)}"]
    if draft.labels and draft.uneven:
        lines += ["# Labels are unequal: accuracy alone would flatter the commonest.", "also: [macro_f1]"]
    if draft.shorten:
        lines += ["# What is cut first where a row is too long.", f"shorten: {_yaml(list(draft.shorten))}"]
    if draft.options:
        lines.append(f"max_options: {draft.max_options}")
    lines += ["# Where the data are and what their columns are called.", "local:"]
    lines += [
        f"  {key}: {_yaml(value)}{note}" for key, value, note in _source(draft, name, folder, train, test)
    ]
    return "\n".join(lines) + "\n"


def _source(
    draft: Draft, name: str, folder: Path, train: Sequence[Path], test: Sequence[Path]
) -> list[tuple[str, Any, str]]:
    """Keys of `local` with their values and comments."""
    where = Path(os.path.commonpath([path.resolve().parent for path in (*train, *test)]))
    relative = os.path.relpath(where, folder.resolve())
    found: list[tuple[str, Any, str]] = []
    if relative != name:
        found.append(("folder", relative, "  # seen from this file"))
    found += [
        (key, [os.path.relpath(path.resolve(), where) for path in paths], "")
        for key, paths in (("train", train), ("test", test))
    ]
    renamed = {field: column for field, column in draft.fields.items() if field != column}
    if renamed:
        found.append(("fields", renamed, "  # pattern field: column"))
    if draft.options:
        options = draft.options if isinstance(draft.options, str) else list(draft.options)
        if options != "options":
            found.append(("options", options, "  # a row's own options"))
        if draft.first_option:
            found.append(("first_option", 1, "  # the label of the first option"))
    if draft.label != "label":
        found.append(("label", draft.label, "  # the label's column"))
    if draft.numbering:
        found.append(("labels", list(draft.numbering), "  # what the label numbers 0, 1, ... mean"))
    if draft.unlabelled:
        found.append(("unlabelled", list(draft.unlabelled), "  # rows with these labels are left out"))
    return found


def _yaml(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=1_000_000, sort_keys=False
    )
    return text.removesuffix("\n...\n").strip()
