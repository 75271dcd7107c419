"""Everything that can be wrong with a task file and its data is found, and says what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from corpora.common.errors import UserError
from corpora.tokenizer import Tokenizer
from finetune.draws import Asked
from finetune.fewshot import run_fewshot
from finetune.settings import FewshotSettings
from finetune.task_check import PROTOCOL, Checked, check_task

SMALL = Asked(shots=(8,), dev_shots=8, shots_per_label=2, seeds=(0, 1, 2), prompt_len=4)
MOOD: dict[str, Any] = {
    "name": "mood",
    "format": "single_text",
    "verbalizer": ["bad", "good"],
    "pattern": "{text} <X>",
    "hard": "{text} It was <X> .",
    "unified": "{text} ? {options} ? The correct one is <X>",
}
QUIZ: dict[str, Any] = {
    "name": "quiz",
    "format": "multiple_choice",
    "pattern": "{q} ? {options} ? The correct one is <X>",
    "hard": "{q} question: ? {options} ? The correct one is <X>",
}


THINGS = [
    "boat", "water", "fish", "bridge", "bank", "stone", "mill", "flood", "rose", "seed", "bread", "soup",
]  # fmt: skip


def moods(n: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of known words, another text for each number."""
    return [
        {
            "text": f"Tom moved the {THINGS[i % 12]} near the {THINGS[i // 12]}.",
            "label": ("bad", "good")[i % 2],
        }
        for i in range(start, start + n)
    ]


def write(folder: Path, values: dict[str, Any], train: Any, test: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    for name, rows in (("train", train), ("test", test)):
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / "task.yaml"


def checked(folder: Path, tokenizer_dir: Path | None = None, **parts: Any) -> Checked:
    values = {**parts.get("values", MOOD), **parts.get("changes", {})}
    file = write(folder, values, parts.get("train", moods(30)), parts.get("test", moods(8, 100)))
    return check_task(file, None, tokenizer_dir, parts.get("asked", SMALL), parts.get("methods"))


def the_one(found: Checked, kind: str, level: str) -> str:
    """The text of the only problem of a kind; nothing else is an error."""
    (problem,) = (problem for problem in found.problems if problem.kind == kind)
    assert problem.level == level, problem
    assert [error for error in found.errors if error.kind != kind] == []
    assert "\n" not in problem.text
    return problem.text


def test_a_good_task_has_no_problems_and_shows_two_rows_as_the_backbone_reads_them(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    found = checked(tmp_path, tokenizer_dir)
    assert found.problems == [] and found.text.endswith("nothing is wrong")
    assert (found.train, found.test, found.labels) == (30, 8, {"bad": (15, 4), "good": (15, 4)})
    assert [line.splitlines()[1] for line in found.examples] == ["  answer: bad", "  answer: good"]
    assert all("boat" in line and "<X>" in line for line in found.examples)
    assert json.loads(json.dumps(found.as_json()))["ok"] is True


def test_protocol_and_settings_ask_the_same() -> None:
    settings = FewshotSettings(out="o", backbone="b", tasks=("t",))
    assert settings.asked == PROTOCOL


def test_all_faults_of_a_task_file_are_said_together(tmp_path: Path) -> None:
    found = checked(tmp_path, changes={"labels": ["negative"], "unified": "{text} <X>", "shorten": ["txet"]})
    texts = [problem.text for problem in found.errors]
    assert {problem.kind for problem in found.errors} == {"task_file"} and len(texts) == 3
    assert "1 labels (negative) but 2 verbalizer words" in texts[0]
    assert "has no {options}" in texts[1] and 'did you mean "text"' in texts[2]
    unknown = checked(tmp_path, changes={"vebalizer": 1, "paterns": 2})
    assert (
        len(unknown.errors) == 2
        and 'did you mean "verbalizer"' in unknown.errors[0].text + unknown.errors[1].text
    )


def test_all_faults_of_the_rows_are_said_together_each_once_with_its_place(tmp_path: Path) -> None:
    rows: list[Any] = moods(30)
    rows[3] = {"body": "x", "label": "bad"}
    rows[5] = {"body": "y", "label": "bad"}
    rows[7] = {"text": "z", "label": "horrid"}
    rows[9] = {"text": 5, "label": "bad"}
    found = checked(tmp_path, train=rows, test=[*moods(8, 100), "{broken"])
    texts = {problem.kind: problem.text for problem in found.errors}
    assert texts.keys() == {"missing_field", "unknown_label", "wrong_field", "data"}
    assert 'train.jsonl line 4: field "text" is missing; found body, label' in texts["missing_field"]
    assert "local: {fields: {text: COLUMN}}" in texts["missing_field"]
    assert texts["missing_field"].endswith("; 1 more row likewise")
    assert 'line 8: field "label" is "horrid"; expected one of bad, good' in texts["unknown_label"]
    assert "add it to labels and verbalizer, or to unlabelled" in texts["unknown_label"]
    assert 'line 10: field "text" is 5; expected text' in texts["wrong_field"]
    assert "test.jsonl line 9: not valid JSON" in texts["data"]
    assert found.train == 26


def test_a_missing_label_column_and_missing_options_say_which_key_names_them(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "lable": row["label"]} for row in moods(30)]
    found = checked(tmp_path, train=rows)
    text = next(problem.text for problem in found.errors if problem.kind == "missing_field")
    assert 'did you mean "lable"?' in text and "local: {label: COLUMN}" in text and "29 more rows" in text
    quiz = checked(tmp_path, values=QUIZ, train=[{"q": "a", "label": 0}] * 9, test=[{"q": "b", "label": 0}])
    assert any("local: {options: COLUMN}" in problem.text for problem in quiz.errors)


def test_options_counted_from_one_are_told_the_key(tmp_path: Path) -> None:
    rows = [{"q": f"a {i}", "options": ["x", "y"], "label": i % 2 + 1} for i in range(20)]
    found = checked(tmp_path, values=QUIZ, train=rows, test=rows[:1])
    text = next(problem.text for problem in found.errors if problem.kind == "unknown_label")
    assert "is 2; expected a number from 0 to 1" in text and "first_option: 1" in text
    mended = checked(tmp_path, values=QUIZ, train=rows, test=[{**rows[0], "q": "b"}],
                     changes={"local": {"first_option": 1}})  # fmt: skip
    assert mended.problems == []


def test_data_that_are_not_there_say_where_they_were_looked_for(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(MOOD))
    assert "say where its files are" in the_one(check_task(tmp_path / "task.yaml"), "no_data", "error")
    found = check_task(tmp_path / "task.yaml", tmp_path / "far")
    assert "looked for" in the_one(found, "no_data", "error")
    (tmp_path / "train.jsonl").write_text(json.dumps(moods(1)[0]))
    text = the_one(check_task(tmp_path / "task.yaml"), "no_data", "error")
    assert "test.jsonl does not exist" in text and "say under local" in text


def test_a_word_that_the_vocabulary_cannot_spell_is_an_error(tmp_path: Path, tokenizer_dir: Path) -> None:
    found = checked(
        tmp_path, tokenizer_dir, changes={"labels": ["bad", "good"], "verbalizer": ["плохо", "добро"]}
    )
    text = the_one(found, "unknown_word", "error")  # both words in one line
    assert 'label words "плохо", "добро" are unknown' in text and "choose words that it can spell" in text
    one = checked(
        tmp_path, tokenizer_dir, changes={"labels": ["bad", "good"], "verbalizer": ["bad", "добро"]}
    )
    assert 'label word "добро" is unknown' in the_one(one, "unknown_word", "error")


def test_labels_with_the_same_tokens_are_an_error(tmp_path: Path, tokenizer_dir: Path) -> None:
    found = checked(
        tmp_path, tokenizer_dir, changes={"labels": ["bad", "good"], "verbalizer": ["good", "good "]}
    )
    text = the_one(found, "same_tokens", "error")
    assert "have the same ids" in text and text.endswith("choose another word for one of them")
    three = {"labels": ["a", "b", "c"], "verbalizer": ["good", "good ", " good"]}
    found = checked(tmp_path, tokenizer_dir, changes=three, train=[], test=[])
    (text,) = (problem.text for problem in found.problems if problem.kind == "same_tokens")
    assert text.endswith("; 2 more pairs likewise")


def test_an_option_letter_that_is_no_single_piece_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import sentencepiece

    (tmp_path / "t.txt").write_text("the boat moved near the water\n" * 40 + "bad good it was\n" * 40)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "t.txt"), model_prefix=str(tmp_path / "lower"), vocab_size=60, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, hard_vocab_limit=False, required_chars="?.;", num_threads=1, minloglevel=2,
    )  # fmt: skip
    found = checked(tmp_path / "task", tmp_path / "lower.model")
    text = the_one(found, "tokenizer", "error")
    assert 'has no single piece "A"' in text and "ppt backbone vocab" in text


def test_fewer_rows_than_asked_for_are_an_error_that_counts_them_unless_allowed(tmp_path: Path) -> None:
    text = the_one(checked(tmp_path, asked=PROTOCOL), "too_few", "error")
    assert "30 rows to draw from, 64 asked for (32 to train, 32 to choose by)" in text
    assert "(shots, dev_shots) or set allow_fewer: true" in text
    allowed = Asked(allow_fewer=True, dev_shots=8, prompt_len=4)
    assert checked(tmp_path, asked=allowed).errors == []
    assert checked(tmp_path, asked=Asked(allow_fewer=True, prompt_len=4)).errors == []  # halves of 30 rows


def test_each_of_many_labels_has_to_have_rows_enough_those_without_any_included(tmp_path: Path) -> None:
    words = ["boat", "water", "rose", "seed", "bread", "soup"]
    values = {"name": "six", "format": "unified", "verbalizer": words, "unified": "{text} ? {options} ? The correct one is <X>",
              "hard": "{text} question: ? {options} ? <X>"}  # fmt: skip
    rows = [{"text": f"The mill {i}.", "label": words[i % 5]} for i in range(40)]
    found = checked(tmp_path, values=values, train=[*rows, {"text": "a", "label": "bread"}], test=[
        {"text": "test", "label": "boat"}], asked=Asked(shots_per_label=4, seeds=(0,)))  # fmt: skip
    text = the_one(found, "too_few", "error")
    assert '0 rows to draw from with label "soup", 8 asked for' in text and "shots_per_label" in text
    found = checked(tmp_path, values=values, train=rows, test=[{"text": "test", "label": "boat"}],
                    asked=Asked(shots_per_label=8, seeds=(0,)))  # fmt: skip
    text = the_one(found, "too_few", "error")  # one line for all labels
    assert '0 rows to draw from with label "soup" (and too few of 5 other labels), 16 asked for' in text


def test_too_few_rows_for_several_numbers_of_examples_are_one_line(tmp_path: Path) -> None:
    text = the_one(checked(tmp_path, asked=Asked(shots=(16, 32, 64), dev_shots=20)), "too_few", "error")
    assert "30 rows to draw from, 84 asked for (64 to train, 20 to choose by)" in text


def test_a_class_that_a_seed_does_not_draw_is_a_warning_with_the_seeds(tmp_path: Path) -> None:
    rows = [{"text": f"The boat {i}.", "label": "bad" if i < 3 else "good"} for i in range(60)]
    asked = Asked(shots=(8,), dev_shots=8, seeds=tuple(range(6)), prompt_len=4)
    text = the_one(checked(tmp_path, train=rows, asked=asked), "absent_label", "warning")
    assert 'no "bad" to train' in text and "3 of 60 rows have it" in text and "stratified: true" in text
    from finetune.draws import draw

    labels = [0 if i < 3 else 1 for i in range(60)]
    lacking = [
        s
        for s in range(6)
        if 0 not in {labels[j] for j in draw(labels, s, "mood", shots=8, dev_shots=8).train}
    ]
    assert f"seeds {', '.join(map(str, lacking))} draw no" in text
    even = Asked(shots=(2,), dev_shots=2, seeds=(0, 1, 2, 3, 4, 5), stratified=True, prompt_len=4)
    assert [p for p in checked(tmp_path, train=rows, asked=even).problems if p.kind == "absent_label"] == []


def test_a_label_without_rows_is_a_warning(tmp_path: Path) -> None:
    changes = {"verbalizer": ["bad", "maybe", "good"]}
    text = the_one(checked(tmp_path, changes=changes), "unused_label", "warning")
    assert 'no training row has the label "maybe"' in text and "take it out of labels and verbalizer" in text


def test_one_label_alone_is_an_error(tmp_path: Path) -> None:
    rows = [{"text": f"x {i}", "label": "good"} for i in range(20)]
    assert "nothing to learn" in the_one(checked(tmp_path, train=rows), "one_label", "error")


def test_training_rows_that_stand_in_test_are_a_warning_and_leave_the_pool(tmp_path: Path) -> None:
    found = checked(tmp_path, train=[*moods(30), *moods(2, 100)])
    text = the_one(found, "also_in_test", "warning")
    assert text.startswith("2 training rows also stand in the test set and are not drawn from")
    assert '"Tom moved the bank near the rose."' in text and "take them out" in text and found.train == 30
    all_of_it = checked(tmp_path, train=moods(8, 100))
    assert any("every training row also stands in the test set" in p.text for p in all_of_it.errors)


def test_duplicates_are_a_warning_that_counts_those_with_another_label(tmp_path: Path) -> None:
    text = the_one(checked(tmp_path, train=[*moods(30), *moods(1)]), "duplicates", "warning")
    assert text.startswith("1 training row repeats the text of an earlier one and is not drawn from")
    other = {**moods(1)[0], "label": "good"}
    text = the_one(checked(tmp_path, train=[*moods(30), *moods(1), other]), "duplicates", "warning")
    assert "2 training rows" in text and "1 of them under another label" in text
    assert "see which label is right" in text


def test_unlabelled_rows_are_a_warning(tmp_path: Path) -> None:
    rows = [*moods(30), {"text": "x y", "label": "-"}]
    found = checked(tmp_path, train=rows, changes={"local": {"unlabelled": ["-"]}})
    assert the_one(found, "unlabelled", "warning").startswith("1 row without a label is left out")


def test_empty_texts_are_a_warning(tmp_path: Path) -> None:
    found = checked(tmp_path, train=[*moods(30), {"text": " ", "label": "bad"}])
    assert the_one(found, "empty_text", "warning").startswith('1 row has an empty "text"; take')


def test_texts_that_are_cut_are_a_warning_with_share_and_field(tmp_path: Path, tokenizer_dir: Path) -> None:
    pair = {"name": "pair", "format": "sentence_pair", "verbalizer": ["bad", "good"], "pattern": "{one} <X> {two}",
            "hard": "{two} ? <X> . {one}", "max_tokens": 40}  # fmt: skip
    long = "The old man carried the boat near the water of the river. " * 20
    rows = [
        {"one": long if i % 4 == 0 else f"a {i}", "two": f"b {i}", "label": ("bad", "good")[i // 4 % 2]}
        for i in range(40)
    ]
    found = checked(
        tmp_path, tokenizer_dir, values=pair, train=rows, test=[{"one": "c", "two": "d", "label": "bad"}]
    )
    text = the_one(found, "cut", "warning")
    share = found.problems[[p.kind for p in found.problems].index("cut")].text.split(" of the rows")[0]
    assert share in ("22 %", "24 %") and "longer than 40 tokens (4 of them the prompt's)" in text
    assert f"one in {share}" in text and "two in" not in text
    assert "raise max_tokens, or name in shorten" in text


def test_a_limit_that_leaves_no_room_is_an_error(tmp_path: Path, tokenizer_dir: Path) -> None:
    asked = Asked(shots=(4,), dev_shots=4, seeds=(0,), prompt_len=400)
    found = checked(tmp_path, tokenizer_dir, asked=asked)
    text = the_one(found, "no_room", "error")
    assert "prompt 400" in text and "raise max_tokens" in text and text.endswith("; 1 more pattern likewise")


def test_a_language_that_the_vocabulary_does_not_know_is_a_warning(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    rows = [{"text": f"这是第{i}句", "label": ("bad", "good")[i % 2]} for i in range(30)]
    text = the_one(checked(tmp_path, tokenizer_dir, train=rows), "unknown_text", "warning")
    assert "unknown to tokenizer" in text and "take a backbone that knows their language" in text


def test_very_unequal_classes_are_a_warning(tmp_path: Path) -> None:
    rows = [{"text": f"The boat {i}.", "label": "bad" if i < 9 else "good"} for i in range(100)]
    text = the_one(checked(tmp_path, train=rows), "unbalanced", "warning")
    assert '"good" has 91 training rows, "bad" 9' in text and "right for 91%" in text
    assert "also: [macro_f1]" in text and "stratified: true" in text


def test_a_right_option_that_always_stands_first_is_a_warning(tmp_path: Path) -> None:
    rows = [{"q": f"a {i}", "options": [f"x {i}", "y"], "label": 0} for i in range(20)]
    found = checked(tmp_path, values=QUIZ, train=rows, test=[{"q": "b", "options": ["x", "y"], "label": 0}])
    text = the_one(found, "unbalanced", "warning")
    assert "the right option is A in 100% of the training rows" in text and "shuffle" in text


def test_a_pattern_that_methods_need_is_a_warning_or_an_error_where_they_are_asked_for(
    tmp_path: Path,
) -> None:
    bare = {key: value for key, value in MOOD.items() if key != "hard"}
    text = the_one(checked(tmp_path, values=bare), "no_pattern", "warning")
    assert "no hard pattern, which ft, hybrid_pt, hybrid_ppt need" in text and 'add the key "hard"' in text
    the_one(checked(tmp_path, values=bare, methods=("ft", "ppt")), "no_pattern", "error")
    assert checked(tmp_path, values=bare, methods=("ppt",)).problems == []


def test_a_run_refuses_by_the_same_errors_and_says_the_same_warnings_before_it_trains(
    tmp_path: Path, small_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"The boat {i}.", "label": "bad" if i < 3 else "good"} for i in range(60)]
    file = write(tmp_path / "a", MOOD, [*rows, rows[0]], moods(8, 100))
    settings = small_run(tasks=[str(file)], methods=["vanilla_pt"], learning_rates=[0.1], epochs=1)
    run_fewshot(settings)
    said = capsys.readouterr().err
    found = check_task(file, None, settings.backbone, settings.asked, settings.methods)
    assert [problem.level for problem in found.problems] and not found.errors
    for problem in found.problems:
        assert f"mood: warning: {problem.text}" in said
    file = write(
        tmp_path / "b",
        {**MOOD, "labels": ["bad", "good"], "verbalizer": ["плохо", "добро"]},
        rows,
        moods(8, 100),
    )
    settings = small_run(tasks=[str(file)], methods=["vanilla_pt"], out=str(tmp_path / "never"))
    found = check_task(file, None, settings.backbone, settings.asked, settings.methods)
    with pytest.raises(UserError) as caught:
        run_fewshot(settings)
    assert str(caught.value) == f"task mood: {found.errors[0].text}"
    settings = small_run(tasks=[str(file)], methods=["vanilla_pt"], shots=100, out=str(tmp_path / "never"))
    with pytest.raises(UserError, match=r"100 to train.* \(and 1 more error: see ppt task check\)"):
        run_fewshot(settings)
    assert not (tmp_path / "never").exists()


OTHERS = {
    "wordings": [
        {"name": "odd", "verbalizer": ["плохо", "good"]},
        {"name": "long", "hard": "It was " * 30 + "{text} <X>"},
    ]
}


def test_all_wordings_of_a_file_are_looked_at_and_named(tmp_path: Path, tokenizer_dir: Path) -> None:
    found = checked(tmp_path, tokenizer_dir, changes={**OTHERS, "max_tokens": 60})
    texts = {problem.kind: problem.text for problem in found.errors}
    assert texts.keys() == {"unknown_word", "no_room"} and len(found.errors) == 2
    assert '"плохо" is unknown' in texts["unknown_word"] and texts["unknown_word"].endswith("(wording odd)")
    assert "leaves no room for them (wording long); raise max_tokens" in texts["no_room"]
    assert len(found.examples) == 2  # under the file's own keys, which are right
    cut = checked(tmp_path, tokenizer_dir, changes={"max_tokens": 56, "wordings": [
        {"name": "wordy", "pattern": "The correct one is " * 3 + "{text} <X>"}]})  # fmt: skip
    assert "under the plain pattern (wording wordy) and lose text" in the_one(cut, "cut", "warning")


def test_a_run_looks_at_the_wordings_that_it_uses_and_at_no_other(tmp_path: Path, small_run: Any) -> None:
    values = {**MOOD, "labels": ["bad", "good"], "verbalizer": ["плохо", "добро"],
              "wordings": [{"name": "known", "verbalizer": ["bad", "good"]},
                           {"name": "odd", "verbalizer": ["худо", "good"]}]}  # fmt: skip
    file = write(tmp_path / "a", values, moods(30), moods(8, 100))
    changes = {"tasks": [str(file)], "methods": ["vanilla_pt"], "learning_rates": [0.1], "epochs": 1}
    out = run_fewshot(small_run(**changes, wording="known"))
    assert (out / "results.jsonl").exists()
    for wording, message in (
        ("first", 'words "плохо", "добро" are unknown'),
        ("odd", r'word "худо" is unknown .*\(wording odd\)'),
        (["known", "odd"], r'word "худо" is unknown .*\(wording odd\)'),
        ("dev", r'words "плохо", "добро" are unknown .*\(and 1 more error'),
    ):
        with pytest.raises(UserError, match=message):
            run_fewshot(small_run(**changes, wording=wording, out=str(tmp_path / "never")))
