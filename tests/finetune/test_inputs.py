"""Rows as token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from corpora.common.errors import UserError
from corpora.tokenizer import Tokenizer
from finetune.inputs import Renderer, encode_rows
from finetune.rows import LabelledRow
from finetune.task import Task

LONG = "The old man carried the boat near the water of the river. " * 60


def quiz(tmp_path: Path, **changes: Any) -> Task:
    values = {
        "format": "multiple_choice",
        "pattern": "{article} ; {question} ? {options} ? The correct one is <X>",
        "hard": "{article} Based on this {question} ? {options} ? The correct one is <X>",
        "max_options": 4,
        "max_tokens": 120,
        "shorten": ["article"],
        **changes,
    }
    path = tmp_path / "quiz.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return Task.load(path)


@pytest.mark.defect(5)
@pytest.mark.parametrize("kind", ["plain", "hard", "unified"])
def test_a_long_row_loses_text_and_never_template_options_or_mask(
    kind: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = encode_rows(
        tokenizer,
        [
            LabelledRow({"article": text, "question": "who"}, ("a boat", "water"), 1)
            for text in (LONG, "Tom found it.")
        ],
    )
    long, short = Renderer(quiz(tmp_path), kind, tokenizer, prompt_len=20).render(rows)
    assert len(long.input_ids) == 100 and long.input_ids[-1] == tokenizer.sentinel(0)
    tail = len(short.input_ids) - len(tokenizer.encode(["Tom found it."])[0])
    np.testing.assert_array_equal(long.input_ids[-tail:], short.input_ids[-tail:])
    kept = 100 - tail
    np.testing.assert_array_equal(long.input_ids[:kept], tokenizer.encode([LONG])[0][:kept])


def test_answers_of_a_choice_are_bare_letters_and_options_stand_in_label_order(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    values = {
        "format": "sentence_pair",
        "verbalizer": ["no", "maybe", "yes"],
        "pattern": "{one} <X> {two}",
        "unified": "{two} ? {one} . {options} ? The correct one is <X>",
    }
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    task = Task.load(path)
    (row,) = encode_rows(tokenizer, [LabelledRow({"one": "water", "two": "fish"}, (), 2)])
    (item,) = (renderer := Renderer(task, "unified", tokenizer, 4)).render([row])
    (target,) = renderer.target_ids([item])
    assert target.tolist() == [tokenizer.sentinel(0), tokenizer.letters[2]]
    dot, question, (two, one, no, maybe, yes) = (
        tokenizer.glue("."),
        tokenizer.glue("?"),
        [tokenizer.encode([text])[0].tolist() for text in ("fish", "water", "no", "maybe", "yes")],
    )
    a, b, c = tokenizer.letters[:3]
    expected = [*two, question, *one, dot, a, dot, *no, dot, b, dot, *maybe, dot, c, dot, *yes, dot, question]
    assert item.input_ids.tolist()[: len(expected)] == expected
    (plain,) = (renderer := Renderer(task, "plain", tokenizer, 4)).render([row])
    assert plain.input_ids.tolist() == [*one, tokenizer.sentinel(0), *two]
    assert renderer.target_ids([plain])[0].tolist() == [tokenizer.sentinel(0), *tokenizer.word_ids("yes")]


def test_a_row_has_as_many_labels_as_options(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [LabelledRow({"article": "x", "question": "y"}, tuple("abcd"[:n]), 0) for n in (2, 3, 4)]
    items = Renderer(quiz(tmp_path), "plain", tokenizer, 4).render(encode_rows(tokenizer, rows))
    assert [item.n_labels for item in items] == [2, 3, 4]


def test_what_is_kept_of_a_row_is_what_is_rendered_and_its_text_is_for_people(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    texts = {"article": LONG, "question": "the old man carried " * 3}
    (row,) = encode_rows(tokenizer, [LabelledRow(texts, ("a boat", "water"), 1)])
    renderer = Renderer(quiz(tmp_path), "plain", tokenizer, 20)
    (item,) = renderer.render([row])
    kept = renderer.kept(row)
    assert [name for name, _, _ in kept] == ["article", "question", "options", "options"]
    assert [n < len(ids) for _, ids, n in kept] == [True, False, False, False]
    fixed = renderer.pattern.fixed_tokens(tokenizer, 2)
    assert sum(n for _, _, n in kept) + fixed == len(item.input_ids) == 100
    assert renderer.text(row, 12).startswith(
        "The old man ... ; the old man ... ? A. a boat . B. water . ? The"
    )
    assert renderer.text(row, 12).endswith(" <X>")


def test_a_prompt_that_leaves_no_room_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="takes 120 encoder tokens and the prompt 120; nothing is left"):
        Renderer(quiz(tmp_path), "plain", tokenizer, 120)
