"""Task files: the shipped ones and what is refused in a user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from corpora.common.errors import UserError
from corpora.formats import Pattern
from finetune.task import Task, shipped_tasks

ENGLISH = {"sst2", "sst5", "race_m", "race_h", "boolq", "rte", "cb", "yahoo_answers"}
CHINESE = {"chnsenticorp", "amazon_zh", "ccpm", "c3", "lcqmc", "cmnli", "ocnli", "tnews"}
GOOD: dict[str, Any] = {
    "format": "single_text",
    "verbalizer": ["bad", "good"],
    "pattern": "{text} <X>",
    "hard": "{text} It was <X> .",
    "unified": "{text} ? {options} ? The correct one is <X>",
}


def load(tmp_path: Path, **changes: Any) -> Task:
    values = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return Task.load(path)


@pytest.mark.defect(11)
def test_every_set_of_the_method_has_a_task_file() -> None:
    assert set(shipped_tasks()) == ENGLISH | CHINESE


@pytest.mark.parametrize("name", sorted(ENGLISH | CHINESE))
def test_a_shipped_task_has_every_pattern_and_a_source(name: str) -> None:
    task = Task.load(name)
    assert task.language == ("zh" if name in CHINESE else "en")
    assert set(task.patterns()) == {"plain", "hard", "unified"}
    assert task.hub is not None or name == "amazon_zh"
    if task.hub is not None:
        assert "/" in task.hub.path and not task.hub.verified
    for kind, text in task.patterns().items():
        pattern = Pattern.parse(text)
        assert set(pattern.fields) == set(task.field_names())
        assert pattern.has_options == (kind == "unified" or task.format in ("unified", "multiple_choice"))


@pytest.mark.parametrize(
    ("name", "words", "plain", "hard"),
    [
        ("sst2", "bad good", "{sentence} <X>", "{sentence} It was <X> ."),
        ("sst5", "terrible bad maybe good great", "{sentence} <X>", "{sentence} It was <X> ."),
        ("boolq", "no yes", "{question} <X> {passage}", "question: {question} ? <X> . {passage}"),
        ("rte", "no yes", "{premise} <X> {hypothesis}", "{hypothesis} ? <X> . {premise}"),
        ("cb", "no maybe yes", "{hypothesis} <X> {premise}", "{hypothesis} ? <X> . {premise}"),
    ],
)
def test_english_patterns_are_those_of_the_released_code(
    name: str, words: str, plain: str, hard: str
) -> None:
    task = Task.load(name)
    assert " ".join(task.verbalizer) == words
    assert (task.pattern, task.hard) == (plain, hard)


def test_lengths_and_what_is_shortened_are_those_of_the_method() -> None:
    assert Task.load("boolq").encoder_tokens("plain") == 512 and Task.load("boolq").shorten == ("passage",)
    assert Task.load("race_m").encoder_tokens("unified") == 612 and Task.load("race_h").shorten == (
        "article",
    )
    assert Task.load("cb").also == ("macro_f1",)
    assert (
        Task.load("sst2").encoder_tokens("plain") == 368
        and Task.load("sst2").encoder_tokens("unified") == 768
    )


@pytest.mark.defect(11)
def test_more_than_five_labels_are_a_multiple_choice_in_every_pattern() -> None:
    for name, n in (("yahoo_answers", 10), ("tnews", 15)):
        task = Task.load(name)
        assert task.many_labels and len(task.verbalizer) == n and task.pattern == task.unified


def test_a_user_task_file_by_path_needs_no_names(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert task.name == "mine" and task.labels == ("bad", "good") and task.folder == tmp_path
    bare = load(tmp_path, hard=None, unified=None)
    with pytest.raises(UserError, match="no hard pattern"):
        bare.pattern_text("hard")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vebalizer": ["a"]}, 'unknown key "vebalizer"; did you mean "verbalizer"'),
        ({"labels": ["negative"]}, "1 labels"),
        ({"verbalizer": ["good"]}, "expected two labels"),
        ({"pattern": "{text}"}, "<X>"),
        ({"unified": "{text} ? The correct one is <X>"}, "has no {options}"),
        ({"shorten": ["txet"]}, 'did you mean "text"'),
        ({"local": {"labels": ["bed", "good"]}}, 'did you mean "bad"'),
        ({"verbalizer": list("abcdef"), "unified": None}, "need format: unified"),
        ({"verbalizer": [f"w{i}" for i in range(17)], "format": "unified"}, "17 labels; .* at most 16"),
        ({"format": "sentence"}, "sentence_pair"),
        ({"verbalizer": [True, False]}, 'write "yes"'),
        ({"pattern": None}, '"pattern" is missing'),
    ],
)
def test_a_wrong_task_file_is_one_line_that_names_it(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, **changes)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "sst2"'):
        Task.load("sst22")
    with pytest.raises(UserError, match="does not exist"):
        Task.load("no/such.yaml")


def test_labels_are_numbers_names_or_words() -> None:
    task = Task.load("cb")  # verbalizer order: contradiction, neutral, entailment
    assert [task.label_index(value, task.local) for value in (0, 1, 2)] == [2, 0, 1]
    assert [task.label_index(value, task.local) for value in ("entailment", "no", "2")] == [2, 0, 1]
    assert task.label_index(0, task.local, ("neutral", "entailment", "contradiction")) == 1
    assert [task.label_index(value, task.local) for value in (3, -1, "mayb", None)] == [None] * 4
    boolq, stars = Task.load("boolq"), Task.load("amazon_zh")
    assert [boolq.label_index(value, boolq.local) for value in (True, False, "true")] == [1, 0, 1]
    assert [stars.label_index(value, stars.local) for value in (1, 5, "3", 0)] == [0, 4, 2, 0]


@pytest.mark.parametrize("name", shipped_tasks())
def test_the_test_set_is_the_validation_set_of_the_original_locally_as_on_the_hub(name: str) -> None:
    task = Task.load(name)
    if name == "tnews":  # FewCLUE's files of their own, with a public test set
        assert task.local.test == ("test",)
    elif task.hub is not None and task.hub.test == "validation":
        assert task.local.test == ("validation",)
    else:
        assert name in ("amazon_zh", "yahoo_answers")  # no hub; a set that has no validation part
