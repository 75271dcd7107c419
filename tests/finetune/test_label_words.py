"""The search for label words, on a backbone whose head is made to name two known words."""

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
from finetune.label_words import best_assignments, find_label_words, rank_words, score, whole_words
from finetune.settings import FewshotSettings
from finetune.task import Task
from finetune.workshop import Workshop
from launch.pocket.world import HERE

POCKET = HERE / "backbone"  # its vocabulary has whole words
PLANTED = ("spoon", "bridge")  # words that the backbone is made to say for bad and for good


@pytest.fixture(scope="module")
def doctored(tmp_path_factory: pytest.TempPathFactory, task_files: dict[str, str]) -> Path:
    """The pocket backbone with two rows of its head along what tells the decoder's states of the labels apart."""
    from transformers import T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("doctored") / "tiny"
    shutil.copytree(POCKET, folder)
    model = T5ForConditionalGeneration.from_pretrained(POCKET).eval()
    workshop = Workshop(settings_for(POCKET, task_files["mood"]))
    tokenizer = workshop.tokenizer("main")
    sentinel = tokenizer.sentinel(0)
    states: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for row in workshop.data(task_files["mood"]).train:
        texts = [row.fields["text"], "It was"]
        ids = [int(i) for text in texts for i in tokenizer.encode([text])[0]]
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([[*ids, sentinel, tokenizer.glue(".")]]),
                decoder_input_ids=torch.tensor([[0, sentinel]]),
                output_hidden_states=True,
            )
        states[row.label].append(output.decoder_hidden_states[-1][0, 1])
    apart = torch.stack(states[1]).mean(0) - torch.stack(states[0]).mean(0)
    for word, sign in zip(PLANTED, (-1, 1), strict=True):
        (index,) = tokenizer.word_ids(word)
        with torch.no_grad():
            model.lm_head.weight[index] = sign * 40 * apart / apart.norm()
    model.save_pretrained(folder)
    return folder


def settings_for(backbone: Path, task: str, **changes: Any) -> FewshotSettings:
    values: dict[str, Any] = {
        "out": "", "backbone": str(backbone), "tasks": [task], "shots": 32, "dev_shots": 20, "prompt_len": 4,
        "device": "cpu",
    }  # fmt: skip
    return FewshotSettings(**{**values, **changes})


def test_the_search_finds_the_words_that_the_backbone_says_for_each_label(
    doctored: Path, task_files: dict[str, str]
) -> None:
    found = find_label_words(settings_for(doctored, task_files["mood"]), n=5)
    assert [ranked[0][0] for ranked in found.words] == list(PLANTED)
    assert all(ratio > 0 for ranked in found.words for _, ratio in ranked[:1])
    assert (found.kind, found.n_train, found.n_dev) == ("hard", 32, 20)
    assert len(found.best) == 5 and all(len(set(one.words)) == 2 for one in found.best)
    order = [(-one.accuracy, one.loss) for one in found.best]
    assert order == sorted(order)
    assert found.own is not None and found.own.words == ("bad", "good")
    assert found.best[0].accuracy > found.own.accuracy


def test_what_was_found_goes_into_a_copy_of_the_task_and_dev_may_choose_it(
    doctored: Path, task_files: dict[str, str], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from finetune.fewshot import run_fewshot
    from launch.cli import app

    out = tmp_path / "found.yaml"
    arguments = [
        "task", "words", task_files["mood"], "--backbone", str(doctored), "-n", "3", "--dev-shots", "20", "--prompt-len", "4",
        "--out", str(out), "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout[done.stdout.index("{") :].rpartition("}")[0] + "}")
    assert value["labels"]["good"][0]["word"] == PLANTED[1] and len(value["best"]) == 3
    task = Task.load(str(out))
    assert task.name == "mood"
    assert [list(wording.verbalizer) for wording in task.wordings] == [one["words"] for one in value["best"]]
    settings = settings_for(
        doctored, str(out), out=str(tmp_path / "run"), methods=["hybrid_pt"], wording="dev", epochs=1, seeds=[0],
        learning_rates=[0.1], data={"mood": str(Path(task_files["mood"]).parent)},
    )  # fmt: skip
    (row,) = map(json.loads, (run_fewshot(settings) / "results.jsonl").read_text().splitlines())
    assert row["chosen_wording"].startswith("found") and row["verbalizer"] in [
        o["words"] for o in value["best"]
    ]
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
    (first, ratios), (second, _) = rank_words(log_probs, labels, 2)
    assert first[0] == 1 and ratios[0] == pytest.approx(np.log(10), abs=1e-5)
    assert set(second[:2].tolist()) == {2, 3}
    best = best_assignments(log_probs, labels, [first, second], 3)
    assert best[0] == (1, 2)  # of equal accuracy the likelier word
    accuracy, loss = score(log_probs[:, [1, 2]], labels)
    assert accuracy == 1.0 and loss == pytest.approx(-np.log(0.2), abs=1e-5)
    assert all(len(set(places)) == 2 for places in best)


def test_a_task_that_answers_with_letters_is_refused(doctored: Path, task_files: dict[str, str]) -> None:
    for name in ("quiz", "ten"):
        with pytest.raises(UserError, match="answers its hard pattern with letters"):
            find_label_words(settings_for(doctored, task_files[name]))
