"""Task files out of a user's own data: what is guessed, what is asked for, and that what is written reads the data."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import UserError
from corpora.formats import MAX_OPTIONS
from finetune.datasets import load_task
from finetune.task import Task
from finetune.task_new import new_task
from launch.task_commands import Chooser

WORDS = [
    "boat", "water", "rose", "seed", "bread", "soup", "train", "track", "river", "garden", "mill", "bridge", "oven", "salt", "wall", "path",
]  # fmt: skip


def sentence(number: int) -> str:
    """A sentence of its own for each number."""
    return f"The {WORDS[number % 16]} lay by the {WORDS[number // 16 % 16]} {WORDS[number * 7 % 16]} again."


def hanzi(number: int) -> str:
    return f"这家{'酒店饭馆书店花园'[number % 4 * 2 : number % 4 * 2 + 2]}第{number}次来还是很不错的"


def as_csv(rows: Sequence[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def made(folder: Path, text: Any, name: str = "train.csv", **flags: str) -> Task:
    """Write the same kind of rows as train and test file and make a task of them; `text` makes rows from a number on."""
    folder.mkdir(parents=True, exist_ok=True)
    render = as_jsonl if ".jsonl" in name else as_csv
    for part, start, n in (("train", 0, 64), ("test", 1000, 16)):
        rows = [text(number) for number in range(start, start + n)]
        (folder / name.replace("train", part)).write_text(render(rows), encoding="utf-8")
    out = folder / "task.yaml"
    new_task([folder], out, Chooser(flags, asking=False), overwrite=True)
    task = Task.load(out)
    data = load_task(task, None)  # every row is understood
    assert len(data.train) == 64 and len(data.test) == 16
    return task


EIGHT = ["sports", "world, news", "R&D", "cooking", "travel", "music", "film", "gardening"]


def test_a_csv_of_text_and_eight_labels_is_unified(tmp_path: Path) -> None:
    task = made(tmp_path, lambda i: {"headline": sentence(i), "topic": EIGHT[i % 8]})
    assert task.format == "unified" and task.labels == tuple(sorted(EIGHT))
    assert task.verbalizer[-1] == "world news" and task.verbalizer[:-1] == task.labels[:-1]
    assert task.local.label == "topic" and task.field_names() == ("headline",)
    assert task.pattern == "{headline} ? {options} ? The correct one is <X>" and "hard" in task.patterns()


def test_columns_come_in_any_order_and_what_is_no_text_is_left_out(tmp_path: Path) -> None:
    task = made(
        tmp_path,
        lambda i: {
            "id": i, "label": ["spam", "ham"][i % 2], "date": f"2024-01-{i % 28 + 1:02}", "body": sentence(i), "user_id": f"u{i}",
        },
    )  # fmt: skip
    assert task.format == "single_text" and task.field_names() == ("body",)
    assert task.labels == task.verbalizer == ("ham", "spam") and task.local.label == "label"


def test_quoted_cells_with_commas_quotes_and_line_breaks_are_read(tmp_path: Path) -> None:
    def row(i: int) -> dict[str, str]:
        return {"text": f'He said: "{sentence(i)}",\nthen left', "label": ["calm", "angry"][i % 2]}

    task = made(tmp_path, row)
    assert load_task(task, None).train[0].fields["text"] == row(0)["text"]


def test_names_of_columns_that_no_pattern_can_hold_are_mapped(tmp_path: Path) -> None:
    task = made(tmp_path, lambda i: {"Review Text": sentence(i), "Is it good?": ["yes", "no"][i % 2]},
                label="Is it good?")  # fmt: skip
    assert task.local.fields == {"review_text": "Review Text"} and task.local.label == "Is it good?"
    assert task.verbalizer == ("no", "yes") and task.pattern == "{review_text} <X>"
    chinese = made(tmp_path / "zh", lambda i: {"评论": hanzi(i), "标签": ["积极", "消极"][i % 2]})
    assert chinese.local.fields == {"text": "评论"} and chinese.local.label == "标签"


def test_two_texts_are_a_pair_and_known_labels_get_the_words_that_the_pair_prompt_knows(
    tmp_path: Path,
) -> None:
    names = ["entailment", "neutral", "contradiction"]
    task = made(
        tmp_path,
        lambda i: {"label": names[i % 3], "premise": sentence(i // 3), "hypothesis": sentence(i + 500)},
        "train.jsonl",
    )
    assert task.format == "sentence_pair" and task.pattern == "{premise} <X> {hypothesis}"
    assert task.labels == ("contradiction", "neutral", "entailment")
    assert task.verbalizer == ("no", "maybe", "yes")
    assert task.hard == "{hypothesis} ? <X> . {premise}"


def test_pairs_in_chinese_get_chinese_words_and_patterns(tmp_path: Path) -> None:
    task = made(
        tmp_path,
        lambda i: {"句子一": hanzi(i), "句子二": hanzi(i + 99), "标签": ["不同", "相同"][i % 2]},
        "train.jsonl",
    )
    assert (task.language, task.format) == ("zh", "sentence_pair")
    assert task.verbalizer == ("否", "是") and "正确的一项是" in str(task.unified)
    assert task.hard == "{second} 意思相同吗 ? <X> 。 {first}"
    assert task.local.fields == {"first": "句子一", "second": "句子二"}


def test_options_are_a_list_or_one_column_each(tmp_path: Path) -> None:
    def options(i: int) -> list[str]:
        return [sentence(i + j) for j in range(3)]

    as_list = made(
        tmp_path / "list",
        lambda i: {"q": f"What of {sentence(i)}?", "choices": options(i), "answer": i % 3},
        "train.jsonl",
    )
    assert as_list.format == "multiple_choice" and as_list.own_options and as_list.max_options == 3
    assert as_list.local.options == "choices" and as_list.local.label == "answer"
    assert as_list.pattern == "{q} {options} ? The correct one is <X>"  # the questions have a mark
    columns = made(
        tmp_path / "columns",
        lambda i: {
            "story": f"{sentence(i)} {sentence(i + 3)} {sentence(i + 8)}", "question": f"What of number {i}?",
            **dict(zip("ABC", options(i), strict=True)), "answer": "ABC"[i % 3],
        },
    )  # fmt: skip
    assert columns.local.options == ("A", "B", "C") and columns.field_names() == ("story", "question")
    assert columns.shorten == ("story",)
    turned = made(
        tmp_path / "turned",
        lambda i: {"question": f"Who, {i}?", "passage": sentence(i), "choices": options(i), "answer": i % 3},
        "train.jsonl",
    )
    assert turned.field_names() == ("passage", "question")  # whatever the columns' order
    assert [row.label for row in load_task(columns, None).train[:3]] == [0, 1, 2]


def test_options_that_are_counted_from_one_are_noticed(tmp_path: Path) -> None:
    task = made(
        tmp_path,
        lambda i: {"goal": sentence(i), "sol1": sentence(i + 1), "sol2": sentence(i + 2), "label": i % 2 + 1},
    )
    assert task.local.first_option == 1 and task.local.options == ("sol1", "sol2")
    assert [row.label for row in load_task(task, None).train[:2]] == [0, 1]


def test_rows_may_have_fewer_options_than_columns(tmp_path: Path) -> None:
    def row(i: int) -> dict[str, str]:
        last = sentence(i + 3) if i % 2 else ""
        return {"question": sentence(i), "A": sentence(i + 1), "B": sentence(i + 2), "C": last, "label": "B"}

    data = load_task(made(tmp_path, row, label="label"), None)
    assert [len(one.options) for one in data.train[:2]] == [2, 3]


@pytest.mark.parametrize("values", [[0, 1], ["0", "1"], ["__label__3", "__label__4"], ["a", "b"]])
def test_labels_that_say_nothing_want_words_and_the_error_shows_rows_and_the_flag(
    tmp_path: Path, values: list[Any]
) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"text": sentence(i), "label": values[i % 2]}

    with pytest.raises(UserError, match="numbers or codes") as caught:
        made(tmp_path, row, "train.jsonl")
    assert f"--words {values[0]}=WORD,{values[1]}=WORD" in str(caught.value)
    assert f'{values[0]} (32 rows, as "The boat lay' in str(caught.value)
    for words in (f"{values[1]}=good,{values[0]}=bad", "bad,good"):
        task = made(tmp_path, row, "train.jsonl", words=words)
        assert task.verbalizer == ("bad", "good") and task.labels == tuple(map(str, values))
    with pytest.raises(UserError, match="1 words"):
        made(tmp_path, row, "train.jsonl", words="bad")
    with pytest.raises(UserError, match='no word for the label "'):
        made(tmp_path, row, "train.jsonl", words=f"{values[0]}=bad")
    with pytest.raises(UserError, match='names the label "7"'):
        made(tmp_path, row, "train.jsonl", words="7=bad")


def test_numbers_are_named_by_a_labels_json_beside_them(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["positive", "negative"]')
    task = made(tmp_path, lambda i: {"text": sentence(i), "label": i % 2}, "train.jsonl")
    assert task.labels == ("negative", "positive") and task.verbalizer == ("bad", "good")
    assert [row.label for row in load_task(task, None).train[:2]] == [1, 0]
    assert task.hard == "{text} It was <X> ."


def test_a_column_of_names_goes_before_the_same_labels_as_numbers(tmp_path: Path) -> None:
    task = made(tmp_path, lambda i: {"label": i % 3, "text": sentence(i), "label_name": EIGHT[i % 3]})
    assert task.local.label == "label_name" and task.verbalizer == ("R&D", "sports", "world news")


def test_five_stars_are_a_scale_in_order_whatever_comes_first(tmp_path: Path) -> None:
    task = made(tmp_path, lambda i: {"review": sentence(i), "stars": 5 - i % 5},
                words="terrible,bad,maybe,good,great")  # fmt: skip
    assert task.labels == ("1", "2", "3", "4", "5") and task.format == "single_text"
    assert task.hard == "{review} It was <X> ."
    assert [row.label for row in load_task(task, None).train[:2]] == [4, 3]


def test_true_and_false_are_no_and_yes(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.csv"):
        task = made(tmp_path / name, lambda i: {"question": sentence(i), "answer": i % 2 == 0}, name)
        assert task.verbalizer == ("no", "yes") and [len(task.labels), task.labels[0].lower()] == [2, "false"]


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    rows = [{"text": sentence(i), "label": ["calm", "angry", ""][i % 3]} for i in range(60)]
    (folder / "train.csv").write_text(as_csv(rows))
    (folder / "dev.csv").write_text(as_csv([{"text": sentence(i), "label": "calm"} for i in range(100, 110)]))
    new_task([folder], folder / "t.yaml", Chooser({}, asking=False))
    data = load_task(Task.load(folder / "t.yaml"), None)
    assert data.counts["unlabelled"] == 20 and len(data.train) == 40


def test_files_may_be_packed_or_tabbed_lie_elsewhere_and_have_any_name(tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "deep"
    raw.mkdir(parents=True)
    rows = [{"text": sentence(i), "label": ["calm", "angry"][i % 2]} for i in range(64)]
    with gzip.open(raw / "all 2024.tsv.gz", "wt") as file:
        file.write(as_csv(rows, "\t"))
    held = tmp_path / "held.jsonl"
    held.write_text(as_jsonl([{"text": sentence(i), "label": "calm"} for i in range(100, 110)]))
    out = tmp_path / "mine" / "moods.yaml"
    new_task([raw / "all 2024.tsv.gz"], out, Chooser({}, asking=False), test=[held])
    data = load_task(Task.load(out), None)
    assert (len(data.train), len(data.test)) == (64, 10)


def test_of_a_folders_training_files_the_one_named_train_is_taken(tmp_path: Path) -> None:
    made(tmp_path, lambda i: {"text": sentence(i), "label": ["calm", "angry"][i % 2]}, "train.jsonl")
    (tmp_path / "old_train32.jsonl").write_text(as_jsonl([{"text": "x y", "label": "calm"}]))
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    new_task([tmp_path], tmp_path / "b.yaml", Chooser({}, asking=False))
    assert Task.load(tmp_path / "b.yaml").local.train == ("train.jsonl",)


def test_a_file_beside_another_of_its_name_is_the_one_that_was_named(tmp_path: Path) -> None:
    made(tmp_path, lambda i: {"text": sentence(i), "label": ["calm", "angry"][i % 2]}, "train.jsonl")
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text(
            as_csv([{"text": f"Another {part} {i}", "label": ["calm", "angry"][i % 2]} for i in range(9)])
        )
    new_task(
        [tmp_path / "train.csv"], tmp_path / "b.yaml", Chooser({}, asking=False), test=[tmp_path / "test.csv"]
    )
    assert len(load_task(Task.load(tmp_path / "b.yaml"), None).train) == 9


def test_a_test_set_is_held_out_when_asked_for_the_same_each_time_and_of_every_label(tmp_path: Path) -> None:
    rows = [{"text": sentence(i // 2), "label": EIGHT[i // 2 % 8]} for i in range(160)]  # every text twice
    (tmp_path / "all.csv").write_text(as_csv(rows))
    out = tmp_path / "mine" / "topics.yaml"
    with pytest.raises(UserError, match=r"--test FILE, or --split 0.2"):
        new_task([tmp_path / "all.csv"], out, Chooser({}, asking=False))
    assert not out.parent.exists()
    texts = []
    for _ in range(2):
        new_task([tmp_path / "all.csv"], out, Chooser({}, asking=False), split=0.2, overwrite=True)
        texts.append((out.parent / "topics" / "test.jsonl").read_bytes())
    assert texts[0] == texts[1]
    data = load_task(Task.load(out), None)
    assert data.counts["also_in_test"] == 0 and len(data.train) == 64
    assert sorted({row.label for row in data.test}) == list(range(8)) and len(data.test) == 32
    with pytest.raises(UserError, match="already exists"):
        new_task([tmp_path / "all.csv"], out, Chooser({}, asking=False), split=0.2)
    with pytest.raises(UserError, match="expected a share between 0 and 1"):
        new_task([tmp_path / "all.csv"], out, Chooser({}, asking=False), split=20, overwrite=True)


def test_the_data_themselves_are_never_written_over(tmp_path: Path) -> None:
    made(
        tmp_path / "mine" / "moods",
        lambda i: {"text": sentence(i), "label": ["calm", "angry"][i % 2]},
        "train.jsonl",
    )
    data = tmp_path / "mine" / "moods" / "train.jsonl"
    before = data.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for out in (tmp_path / "mine" / "moods.yaml", tmp_path / "link" / "moods.yaml"):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="made from it; choose another --out or --name") as caught:
                new_task([data], out, Chooser({}, asking=False), split=0.2, overwrite=overwrite)
            assert "--overwrite" not in str(caught.value) and data.read_bytes() == before
    new_task([data], tmp_path / "mine" / "moods.yaml", Chooser({}, asking=False), split=0.2, name="other")
    assert data.read_bytes() == before and (tmp_path / "mine" / "other" / "train.jsonl").exists()


def test_nothing_is_written_where_a_part_of_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "test.jsonl").write_text("mine\n")
    (tmp_path / "all.csv").write_text(
        as_csv([{"text": sentence(i), "label": "ab"[i % 2] * 3} for i in range(40)])
    )
    with pytest.raises(UserError, match=r"t/test.jsonl already exists; .* or say --overwrite"):
        new_task([tmp_path / "all.csv"], tmp_path / "t.yaml", Chooser({}, asking=False), split=0.2)
    assert not (tmp_path / "t" / "train.jsonl").exists()


def test_a_pattern_adds_no_question_mark_to_texts_that_have_one(tmp_path: Path) -> None:
    task = made(
        tmp_path,
        lambda i: {"text": sentence(i), "question": f"Is {sentence(i)[:-1]}?", "label": ["yes", "no"][i % 2]},
    )
    assert task.format == "sentence_pair" and task.hard == "{question} <X> . {text}"
    assert task.unified == "{question} {text} . {options} ? The correct one is <X>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text;label\na b;x\n", "separated by semicolons; expected commas"),
        ("A fine day out.,sports\n" + "".join(f"{sentence(i)},{('sports', 'art')[i % 2]}\n" for i in range(9)),
         "looks like data; expected the names of the columns there"),
        ("text,label\n", "has no rows"),
        ("text,label\na b,x\na c,x\n", "one label only"),
        ("a,b\n" + "".join(f"{i},{i * 3}\n" for i in range(40)), "name it with --label"),
        ("text,label\n" + "".join(f"{sentence(i)},{'abcdefghijklmnopqrst'[i % 20]}x\n" for i in range(80)),
         f"20 labels .* at most {MAX_OPTIONS}"),
        ("text,label\n" + "".join(f"{i},{('on', 'off')[i % 2]}\n" for i in range(40)), "name those to read with --fields"),
        ("text,label\na b\n", "line 2: the number of cells differs"),
    ],
)  # fmt: skip
def test_files_that_no_task_can_be_made_of_say_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=message) as caught:
        new_task([tmp_path], tmp_path / "t.yaml", Chooser({}, asking=False))
    assert "\n" not in str(caught.value) and not (tmp_path / "t.yaml").exists()


def test_a_test_file_without_a_column_is_named(tmp_path: Path) -> None:
    made(tmp_path, lambda i: {"text": sentence(i), "label": ["calm", "angry"][i % 2]})
    (tmp_path / "test.csv").write_text("body,label\na b,calm\n")
    with pytest.raises(UserError, match=r'test.csv has no column "text", which .*train.csv has; found body'):
        new_task([tmp_path], tmp_path / "t.yaml", Chooser({}, asking=False))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"label": "lable"}, 'did you mean "label"'),
        ({"fields": "txt"}, 'did you mean "text"'),
        ({"format": "sentence_pairs"}, 'did you mean "sentence_pair"'),
        ({"format": "multiple_choice"}, "does not go with 2 fixed labels"),
        ({"format": "sentence_pair"}, "reads two columns, not 1"),
        ({"language": "fr"}, "expected one of en, zh"),
        ({"labels": "calm"}, "did you mean|lacks"),
    ],
)
def test_flags_that_do_not_fit_the_data_are_refused(
    tmp_path: Path, flags: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        made(tmp_path, lambda i: {"text": sentence(i), "label": ["calm", "angry"][i % 2]}, **flags)


def test_the_file_explains_its_keys_and_says_what_it_was_made_from(tmp_path: Path) -> None:
    made(tmp_path, lambda i: {"title": sentence(i), "body": sentence(i) * 5, "kind": EIGHT[i % 3]})
    text = (tmp_path / "task.yaml").read_text()
    assert text.startswith("# Written by `ppt task new` from train.csv, test.csv.\n")
    lines = text.splitlines()
    for key in ("pattern: ", "hard: ", "verbalizer: ", "shorten: ", "version: "):
        (place,) = (i for i, line in enumerate(lines) if line.startswith(key))
        assert lines[place - 1].startswith("# "), key
    assert (
        Task.load(tmp_path / "task.yaml").pattern == "{title} {body} <X>"
    )  # a title and its text are no pair
