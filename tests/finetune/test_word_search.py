"""The search for label words, on a backbone that understands opinions, and on one made to name two words of our choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpora.common.errors import UserError
from corpora.tokenizer import Tokenizer
from finetune.settings import FewshotSettings
from finetune.task import Task
from finetune.word_search import best_assignments, find_label_words, rank_words, score, whole_words
from finetune.workshop import Workshop
from launch.pocket.tasks import TASK_FILES, write_tasks
from launch.pocket.world import HERE

POCKET = HERE / "backbone"
VERDICT = str(TASK_FILES / "verdict.yaml")
PLANTED = ("spoon", "bridge")  # words that the backbone is made to say for bad and for good


def settings_for(backbone: Path, task: str, data: Path | None = None, **changes: Any) -> FewshotSettings:
    values: dict[str, Any] = {
        "out": "", "backbone": str(backbone), "tasks": [task], "data": str(data) if data else None, "shots": 32,
        "dev_shots": 20, "prompt_len": 4, "device": "cpu",
    }  # fmt: skip
    return FewshotSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of the pocket world, whose opinions its backbone understands."""
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, ("verdict", "stars"), 11, "test", 80, 4)
    return folder


@pytest.fixture(scope="module")
def doctored(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The pocket backbone, which says two words where it says bad and good, and tells the labels apart better by them."""
    from transformers import T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("doctored") / "tiny"
    shutil.copytree(POCKET, folder)
    model = T5ForConditionalGeneration.from_pretrained(POCKET).eval()
    workshop = Workshop(settings_for(POCKET, VERDICT, data))
    tokenizer = workshop.tokenizer("main")
    sentinel = tokenizer.sentinel(0)
    states: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for row in workshop.data(VERDICT).train:
        ids = [int(i) for text in (row.fields["text"], "This was") for i in tokenizer.encode([text])[0]]
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([[*ids, sentinel, tokenizer.glue(".")]]),
                decoder_input_ids=torch.tensor([[0, sentinel]]),
                output_hidden_states=True,
            )
        states[row.label].append(output.decoder_hidden_states[-1][0, 1])
    bad, good = (torch.stack(states[label]).mean(0) for label in (0, 1))
    mean, apart = bad + good, good - bad
    apart = (
        apart - mean * (apart @ mean) / mean.square().sum()
    )  # the labels together expect the word as before
    with torch.no_grad():
        known = [tokenizer.word_ids(word)[0] for word in ("bad", "good")]
        as_expected = model.lm_head.weight[known].mean(0)
        for word, sign in zip(PLANTED, (-1, 1), strict=True):
            (index,) = tokenizer.word_ids(word)
            model.lm_head.weight[index] = as_expected + sign * 4 * apart / apart.square().sum()
    model.save_pretrained(folder)
    return folder


def test_the_search_finds_the_words_that_a_backbone_was_made_to_say(doctored: Path, data: Path) -> None:
    found = find_label_words(settings_for(doctored, VERDICT, data), n=5)
    assert all(word in dict(ranked) for word, ranked in zip(PLANTED, found.words, strict=True))
    assert (found.kind, found.n_train, found.n_dev) == ("hard", 32, 20)
    assert found.best[0].words == PLANTED and all(len(set(one.words)) == 2 for one in found.best)
    order = [(-one.accuracy, one.loss) for one in found.best]
    assert order == sorted(order) and len(order) == 5
    assert found.own is not None and found.own.words == ("bad", "good")
    assert found.best[0].accuracy > found.own.accuracy


@pytest.mark.parametrize(
    ("name", "own"), [("verdict", ("bad", "good")), ("stars", ("terrible", "bad", "maybe", "good", "great"))]
)
def test_the_search_finds_the_words_that_the_pocket_backbone_was_taught(
    data: Path, name: str, own: tuple[str, ...]
) -> None:
    found = find_label_words(settings_for(POCKET, str(TASK_FILES / f"{name}.yaml"), data), n=3)
    assert found.own is not None and found.own.words == own
    assert found.best[0] == found.own


def test_what_was_found_goes_into_a_copy_of_the_task_and_dev_may_choose_it(
    doctored: Path, data: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from finetune.fewshot import run_fewshot
    from finetune.report import report
    from launch.cli import app

    out = tmp_path / "found.yaml"
    arguments = [
        "task", "words", VERDICT, "--backbone", str(doctored), "--data", str(data), "-n", "3", "--dev-shots", "20",
        "--prompt-len", "4", "--out", str(out),
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "  bad   bad +" in done.output and "  spoon, bridge" in done.output
    task, own = Task.load(str(out)), Task.load(VERDICT)
    new = task.wordings[len(own.wordings) :]
    assert task.name == "verdict" and task.wordings[: len(own.wordings)] == own.wordings
    assert [wording.name for wording in new] == [f"found{number}" for number in range(1, len(new) + 1)]
    assert new[0].verbalizer == PLANTED and f"{len(new)} wordings that the file had not" in done.output
    settings = settings_for(
        doctored, str(out), data, out=str(tmp_path / "run"), methods=["hybrid_pt"], wording="dev", epochs=1, seeds=[0],
        learning_rates=[0.1],
    )  # fmt: skip
    (row,) = map(json.loads, (run_fewshot(settings) / "results.jsonl").read_text().splitlines())
    assert row["chosen_wording"] == "found1" and row["verbalizer"] == list(PLANTED)
    assert new[0].search is not None and (new[0].search.seed, new[0].search.n_dev) == (0, 20)
    assert row["word_search"] == new[0].search.model_dump(mode="json")
    assert row["word_search"]["backbone_fingerprint"] == row["backbone_fingerprint"]
    made = report([settings.out], tmp_path / "report")
    section = made.text.split("## Label words that a search found")[1].split("\n## ")[0]
    assert "found1" in section and "spoon, bridge" in section
    assert any("wording found1, were searched on the examples of seed 0" in one for one in made.warnings)
    with pytest.raises(UserError, match="exists already"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_only_words_that_are_one_piece_behind_a_space_are_asked() -> None:
    tokenizer = Tokenizer.load(POCKET)
    ids, words = whole_words(tokenizer)
    assert len(set(words)) == len(words) > 100 and {"bad", "good", *PLANTED} <= set(words)
    for number, word in zip(ids.tolist(), words, strict=True):
        assert tokenizer.word_ids(word) == (number,) and word.isalpha() and len(word) > 1


def test_ranks_and_assignments_follow_the_log_probabilities() -> None:
    labels = np.array([0, 0, 1, 1])
    log_probs = np.log(
        np.array(
            [  # a word liked everywhere, one for each label, one that is rarer but as decisive
                [0.50, 0.20, 0.05, 0.002],
                [0.50, 0.20, 0.05, 0.002],
                [0.50, 0.02, 0.20, 0.008],
                [0.50, 0.02, 0.20, 0.008],
            ],
            dtype=np.float32,
        )
    )
    (first, ratios), (second, _) = rank_words(log_probs, labels, 2, 1000)
    assert first[:2].tolist() == [1, 0] and ratios[0] == pytest.approx(np.log(10), abs=1e-5)
    assert set(second[:2].tolist()) == {2, 3}
    best = best_assignments(log_probs, labels, [first, second], 3)
    assert best[0] == (1, 2)  # of equal accuracy the likelier word
    accuracy, loss = score(log_probs[:, [1, 2]], labels)
    assert accuracy == 1.0 and loss == pytest.approx(-np.log(0.2), abs=1e-5)
    assert all(len(set(places)) == 2 for places in best)
    few = [ranked.tolist() for ranked, _ in rank_words(log_probs, labels, 2, 100)]
    assert few == [[1, 0, 2], [2, 0, 1]]  # the rare one is expected less than a blind guess among 100 pieces
    assert [len(ranked) for ranked, _ in rank_words(log_probs, labels, 2, 3)] == [2, 2]


def test_a_task_that_answers_with_letters_is_refused(task_files: dict[str, str]) -> None:
    for name in ("quiz", "ten"):
        with pytest.raises(UserError, match="answers its hard pattern with letters"):
            find_label_words(settings_for(POCKET, task_files[name]))
