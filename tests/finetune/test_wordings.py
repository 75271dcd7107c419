"""Several wordings of a task: what a file may say, which one dev chooses, and that runs and reports say it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from corpora.common.errors import UserError
from finetune.fewshot import run_fewshot
from finetune.plan import plan
from finetune.report import report
from finetune.task import Task
from finetune.wordings import Candidate, WordingChoices, best
from finetune.workshop import Workshop

WORDINGS = [
    {"name": "terse", "hard": "{text} <X>"},
    {"name": "strong", "verbalizer": ["terrible", "great"]},
    {"name": "turned", "verbalizer": ["good", "bad"]},
]


@pytest.fixture
def worded(tmp_path: Path, task_files: dict[str, str]) -> str:
    """The task `mood` with three wordings beside its own."""
    return reworded(tmp_path, task_files, WORDINGS)


def reworded(folder: Path, task_files: dict[str, str], wordings: list[dict[str, Any]]) -> str:
    values = yaml.safe_load(Path(task_files["mood"]).read_text())
    for part in ("train", "test"):
        (folder / f"{part}.jsonl").write_bytes(
            Path(task_files["mood"]).with_name(f"{part}.jsonl").read_bytes()
        )
    (folder / "mood.yaml").write_text(yaml.safe_dump({"name": "mood", **values, "wordings": wordings}))
    return str(folder / "mood.yaml")


def rows_of(out: str | Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / name).read_text().splitlines()]


def candidate(name: str, accuracy: float, loss: float) -> Candidate:
    return Candidate(name, "{text} <X>", ("bad", "good"), accuracy, loss)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([("first", 0.5, 1.0), ("b", 0.6, 9.0)], "b"),
        ([("first", 0.5, 1.0), ("b", 0.5, 0.9)], "b"),
        ([("first", 0.5, 1.0), ("b", 0.5, 1.0)], "first"),
        ([("first", 0.5, float("nan")), ("b", 0.5, 70.0)], "b"),
        ([("first", 0.5, float("inf")), ("b", 0.5, float("nan"))], "first"),
    ],
)
def test_accuracy_decides_then_loss_then_the_order_of_the_file(
    scores: list[tuple[str, float, float]], chosen: str
) -> None:
    assert best([candidate(*one) for one in scores]).name == chosen


def test_a_wording_changes_what_it_names_and_nothing_else(worded: str) -> None:
    task = Task.load(worded)
    terse, strong = task.worded("terse"), task.worded("strong")
    assert (terse.hard, terse.pattern, terse.verbalizer) == ("{text} <X>", task.pattern, ("bad", "good"))
    assert (strong.hard, strong.verbalizer) == (task.hard, ("terrible", "great"))
    assert strong.labels == task.labels == ("bad", "good") and strong.folder == task.folder
    assert task.worded("first") is task
    with pytest.raises(UserError, match='no wording "tersee"; did you mean "terse"'):
        task.worded("tersee")


def test_one_pattern_under_two_names_stays_one(tmp_path: Path, task_files: dict[str, str]) -> None:
    values = yaml.safe_load(Path(task_files["ten"]).read_text())
    path = tmp_path / "ten.yaml"
    other = "{text} what is it ? {options} ? The correct one is <X>"
    path.write_text(yaml.safe_dump({**values, "wordings": [{"name": "asked", "pattern": other}]}))
    task = Task.load(path).worded("asked")
    assert task.pattern == task.unified == other


@pytest.mark.parametrize(
    ("wordings", "message"),
    [
        ([{"name": "dev", "hard": "{text} <X>"}], '"dev" has a meaning of its own'),
        ([{"name": "first", "hard": "{text} <X>"}], '"first" has a meaning of its own'),
        ([{"name": "idle"}], 'wording "idle" changes nothing'),
        ([{"name": "a", "hard": "{text} <X>"}, {"name": "a", "hard": "<X> {text}"}], "holds a name twice: a, a"),
        ([{"name": "a", "verbalizer": ["one"]}], 'wording "a": verbalizer has one word'),
        ([{"name": "a", "verbalizer": ["x", "y", "z"]}], 'wording "a": 2 labels .* but 3 verbalizer words'),
        ([{"name": "a", "verbalizer": [False, True]}], "verbalizer holds a bare yes, no, true or false"),
        ([{"name": "a", "hard": "{text}"}], 'wording "a": the hard pattern: '),
        ([{"name": "a", "hard": "{texts} <X>"}], 'reads the field "texts"; did you mean "text"'),
        ([{"name": "a", "hrad": "{text} <X>"}], "hrad"),
    ],
)  # fmt: skip
def test_wrong_wordings_are_refused_by_name(
    tmp_path: Path, task_files: dict[str, str], wordings: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Task.load(reworded(tmp_path, task_files, wordings))
    assert "\n" not in str(caught.value)


def hf_accuracy(workshop: Workshop, task: Task, text: str, rows: list[int]) -> tuple[float, float]:
    """Accuracy and loss of a pattern with a verbalizer, by plain transformers, one example after the other."""
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(workshop.settings.backbone)
    tokenizer = workshop.tokenizer("main")
    words = [tokenizer.word_ids(word) for word in task.verbalizer]
    right, losses = [], []
    for row in rows:
        example = workshop.data(workshop.settings.tasks[0]).train[row]
        before, after = text.split("<X>")
        ids = []
        for part in before.replace("{text}", "\0{text}\0").split("\0"):
            part = part.replace("{text}", example.fields["text"]).strip()
            ids += list(tokenizer.encode([part])[0]) if part else []
        ids.append(tokenizer.sentinel(0))
        if after.strip() == ".":
            ids.append(tokenizer.glue("."))
        scores = []
        for word in words:
            decoder = [0, tokenizer.sentinel(0), *word[:-1]]
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([[int(i) for i in ids]]), decoder_input_ids=torch.tensor([decoder])
                ).logits[0, 1:]
            scores.append(float(sum(logits.log_softmax(-1)[i, token] for i, token in enumerate(word))))
        right.append(max(range(len(words)), key=lambda i: scores[i]) == example.label)
        losses.append(-scores[example.label] / len(words[example.label]))
    return sum(right) / len(right), sum(losses) / len(losses)


def test_each_seed_takes_the_best_of_its_dev_examples_and_every_candidate_is_written_down(
    small_run: Any, worded: str
) -> None:
    settings = small_run(tasks=[worded], methods=["ft", "vanilla_pt", "hybrid_pt"], wording="dev", epochs=1)
    out = run_fewshot(settings)
    choices = {(row["kind"], row["seed"]): row for row in rows_of(out, "wordings.jsonl")}
    assert set(choices) == {(kind, seed) for kind in ("hard", "plain") for seed in (0, 1)}
    workshop, task = Workshop(settings), Task.load(worded)
    for (kind, seed), choice in choices.items():
        names = [one["name"] for one in choice["candidates"]]
        assert names == ["first", *(["terse"] if kind == "hard" else []), "strong", "turned"]
        dev = workshop.draw(worded, 12, seed).dev.tolist()
        for one in choice["candidates"]:
            accuracy, loss = hf_accuracy(workshop, task.worded(one["name"]), one["pattern"], dev)
            assert one["accuracy"] == pytest.approx(accuracy, abs=1e-6)
            assert one["loss"] == pytest.approx(loss, abs=1e-4)
        scores = [Candidate(o["name"], "", (), o["accuracy"], o["loss"]) for o in choice["candidates"]]
        assert choice["chosen"] == best(scores).name and choice["n_dev"] == 12
    for row in rows_of(out):
        kind = "plain" if row["method"] == "vanilla_pt" else "hard"
        chosen = task.worded(choices[kind, row["seed"]]["chosen"])
        assert row["wording"] == "dev" and row["chosen_wording"] == choices[kind, row["seed"]]["chosen"]
        assert row["verbalizer"] == list(chosen.verbalizer) and row["pattern"] == chosen.pattern_text(kind)
        if row["chosen"] and row["method"] != "ft":
            saved = json.loads((out / "prompts" / row["cell"] / "prompt.json").read_text())["task"]
            assert (saved["verbalizer"], saved["hard"]) == (list(chosen.verbalizer), chosen.hard)


def test_a_choice_that_was_made_is_kept_when_the_run_goes_on(small_run: Any, worded: str) -> None:
    changes: dict[str, Any] = {"tasks": [worded], "methods": ["hybrid_pt"], "wording": "dev", "epochs": 1}
    out = run_fewshot(small_run(**changes, seeds=[0]))
    (choice,) = rows_of(out, "wordings.jsonl")
    other = next(one["name"] for one in choice["candidates"] if one["name"] != choice["chosen"])
    (out / "wordings.jsonl").write_text(json.dumps({**choice, "chosen": other}) + "\n")
    assert Workshop(small_run(**changes)).wording(plan(Workshop(small_run(**changes)))[0].cells[0]) == other
    run_fewshot(small_run(**changes, seeds=[0, 1]))
    assert [row["seed"] for row in rows_of(out, "wordings.jsonl")] == [0, 1]
    (out / "wordings.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"wordings.jsonl line 1: not a choice of a wording"):
        WordingChoices(out)


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": "contextual"},
        {"length_normalised": True},
        {"dtype": "bfloat16"},
        {"weights": "int8"},
        {"prompt_len": 5},
        {"max_tokens": 40},
        {"shorten": ["text"]},
    ],
)
def test_a_choice_that_was_made_under_other_settings_is_made_again(
    small_run: Any, worded: str, change: dict[str, Any]
) -> None:
    changes: dict[str, Any] = {"tasks": [worded], "methods": ["hybrid_pt"], "wording": "dev", "seeds": [0]}
    first = Workshop(small_run(**changes))
    (cell,) = {choice.cells[0] for choice in plan(first)}
    first.wordings.save()
    (choice,) = rows_of(first.settings.out, "wordings.jsonl")
    other = next(one["name"] for one in choice["candidates"] if one["name"] != choice["chosen"])
    (Path(first.settings.out) / "wordings.jsonl").write_text(json.dumps({**choice, "chosen": other}) + "\n")
    assert Workshop(small_run(**changes)).wording(cell) == other  # the same settings: kept as it stands
    if "max_tokens" in change or "shorten" in change:
        text = yaml.safe_dump({**yaml.safe_load(Path(worded).read_text()), **change})
        Path(worded).write_text(text)
    else:
        changes.update(change)
    again = Workshop(small_run(**changes))
    again.wording(cell)
    again.wordings.save()
    old, new = rows_of(first.settings.out, "wordings.jsonl")
    (name,) = change
    assert old["chosen"] == other and new[name] == change[name] != old[name]


def test_a_process_that_follows_waits_for_the_choices_of_the_first(small_run: Any, worded: str) -> None:
    settings = small_run(tasks=[worded], methods=["hybrid_pt"], wording="dev")
    first = Workshop(settings)
    cells = [key["cell"] for choice in plan(first) for key in choice.keys]
    followed: list[str] = []

    def follow() -> None:
        followed.extend(
            key["cell"] for choice in plan(Workshop(settings, follows=True)) for key in choice.keys
        )

    thread = threading.Thread(target=follow)
    thread.start()
    thread.join(1.0)
    assert thread.is_alive() and not followed
    first.wordings.save()
    thread.join(60)
    assert followed == cells


def test_named_wordings_are_lines_of_their_own_and_equal_ones_run_once(
    small_run: Any, worded: str, tmp_path: Path
) -> None:
    settings = small_run(
        tasks=[worded], methods=["vanilla_pt", "hybrid_pt"], wording=["first", "terse", "strong"], epochs=1,
        learning_rates=[0.3],
    )  # fmt: skip
    rows = rows_of(run_fewshot(settings))
    assert sorted((row["method"], row["wording"]) for row in rows if row["seed"] == 0) == [
        ("hybrid_pt", "first"), ("hybrid_pt", "strong"), ("hybrid_pt", "terse"),
        ("vanilla_pt", "first"), ("vanilla_pt", "strong"),  # `terse` has the plain pattern of `first`
    ]  # fmt: skip
    assert len({row["cell"] for row in rows}) == len(rows) == 10
    made = report([settings.out], tmp_path / "report")
    assert made.table is not None
    assert {line[0].text for line in made.table.body} == {
        "Vanilla PT (wording first)", "Vanilla PT (wording strong)", "Hybrid PT (wording first)",
        "Hybrid PT (wording terse)", "Hybrid PT (wording strong)",
    }  # fmt: skip
    assert "Wordings chosen" not in made.text


def test_the_report_shows_what_dev_chose_among(small_run: Any, worded: str, tmp_path: Path) -> None:
    settings = small_run(tasks=[worded], methods=["hybrid_pt"], wording="dev", epochs=1, learning_rates=[0.3])
    out = run_fewshot(settings)
    text = report([out], tmp_path / "report").text
    assert "## Wordings chosen on development examples" in text and "12 development examples" in text
    choices = rows_of(out, "wordings.jsonl")
    for number, name in enumerate(("first", "terse", "strong", "turned")):
        n = sum(choice["chosen"] == name for choice in choices)
        mean = 50 * sum(choice["candidates"][number]["accuracy"] for choice in choices)
        (line,) = (line for line in text.splitlines() if f"| {name} " in line and "of 2 seeds" in line)
        assert f"{n} of 2 seeds" in line and f"{mean:.1f}" in line


def test_rows_of_one_wording_with_other_words_are_refused_but_not_what_dev_chose(
    small_run: Any, worded: str, tmp_path: Path
) -> None:
    settings = small_run(tasks=[worded], methods=["hybrid_pt"], epochs=1, learning_rates=[0.3])
    out = run_fewshot(settings)
    rows = rows_of(out)

    def write(name: str) -> Path:
        made = [{**row, "wording": name, "verbalizer": ["bad", str(row["seed"])]} for row in rows]
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        return tmp_path / name

    with pytest.raises(UserError, match='differ in "verbalizer"'):
        report([write("first")], tmp_path / "one")
    assert report([write("dev")], tmp_path / "two").table is not None


def test_a_wording_that_no_file_has_and_words_that_a_backbone_cannot_spell_are_refused(
    small_run: Any, worded: str, tmp_path: Path, task_files: dict[str, str]
) -> None:
    with pytest.raises(UserError, match='task mood has no wording "tersed"; did you mean "terse"'):
        plan(Workshop(small_run(tasks=[worded], methods=["hybrid_pt"], wording="tersed")))
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = reworded(folder, task_files, [{"name": "russian", "verbalizer": ["плохо", "хорошо"]}])
    with pytest.raises(UserError, match=r"плохо.*\(wording russian\)"):
        plan(Workshop(small_run(tasks=[odd], methods=["hybrid_pt"], wording="dev")))
