"""Nearest words: the right piece first, nothing that is no word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from corpora.common.errors import UserError
from corpora.common.rng import generator
from finetune.report_words import load_vocabulary, nearest_words, prompt_words, spelt, top_words
from pretrain.prompts import word_pieces

if TYPE_CHECKING:
    from corpora.tokenizer import Tokenizer


def made_table(tokenizer: Tokenizer, width: int = 24) -> np.ndarray:
    return generator(3, "table").normal(size=(tokenizer.size + 28, width)).astype(np.float32)


def test_a_scaled_embedding_finds_its_own_word_first(tokenizer: Tokenizer) -> None:
    table = made_table(tokenizer)
    ids, pieces = word_pieces(tokenizer)
    chosen = ids[[5, 17, 40]]
    nearest = nearest_words(3.0 * table[chosen], table, tokenizer, n=4)
    assert [row[0][0] for row in nearest] == [pieces[5], pieces[17], pieces[40]]
    for row in nearest:
        assert row[0][1] == pytest.approx(1.0, abs=1e-5)
        cosines = [cosine for _, cosine in row]
        assert len(row) == 4 and cosines == sorted(cosines, reverse=True)


def test_cosines_are_those_of_float64(tokenizer: Tokenizer) -> None:
    table = made_table(tokenizer)
    prompt = generator(4, "prompt").normal(size=(3, 24))
    ids, pieces = word_pieces(tokenizer)
    words = table[ids].astype(np.float64)
    cosine = prompt @ words.T / np.linalg.norm(prompt, axis=1)[:, None] / np.linalg.norm(words, axis=1)
    for row, expected in zip(nearest_words(prompt, table, tokenizer, n=3), cosine, strict=True):
        best = np.argsort(-expected)[:3]
        assert [word for word, _ in row] == [pieces[i] for i in best]
        assert [value for _, value in row] == pytest.approx(list(expected[best]), abs=1e-5)


def test_sentinels_and_control_pieces_are_no_words(tokenizer: Tokenizer) -> None:
    table = made_table(tokenizer)
    special = [
        tokenizer.pad_id,
        tokenizer.eos_id,
        tokenizer.unk_id,
        *(tokenizer.sentinel(i) for i in range(100)),
    ]
    found = {word for row in nearest_words(table[special], table, tokenizer, n=10) for word, _ in row}
    ids, pieces = word_pieces(tokenizer)
    assert not set(special) & set(ids.tolist())
    assert found <= set(pieces)
    assert not any(piece.startswith("<") and piece.endswith(">") for piece in pieces)


def test_another_width_or_a_short_table_is_refused(tokenizer: Tokenizer) -> None:
    table = made_table(tokenizer)
    with pytest.raises(UserError, match="width 8"):
        nearest_words(np.zeros((2, 8)), table, tokenizer)
    with pytest.raises(UserError, match="embeddings"):
        nearest_words(np.zeros((2, 24)), table[:50], tokenizer)


def test_top_words_keeps_each_word_once_with_its_best_cosine() -> None:
    nearest = [[("▁good", 0.5), ("▁bad", 0.4)], [("▁bad", 0.7), ("▁good", 0.2)]]
    assert top_words(nearest) == [("▁bad", 0.7), ("▁good", 0.5)]
    assert top_words(nearest, 1) == [("▁bad", 0.7)]


def test_pieces_are_spelt_for_people() -> None:
    assert [spelt(piece) for piece in ("▁good", "ness", "A", "▁A", "?", "好", "▁中")] == ["good", "-ness", "-A", "A", "?", "好", "中"]  # fmt: skip


def test_vocabulary_of_a_backbone_is_its_shared_table(backbone_dir: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file
    from transformers import T5ForConditionalGeneration

    vocabulary = load_vocabulary(backbone_dir)
    assert vocabulary is not None
    table = T5ForConditionalGeneration.from_pretrained(backbone_dir).shared.weight.detach().numpy()
    assert np.array_equal(vocabulary.embeddings_VD, table)
    ids, pieces = word_pieces(vocabulary.tokenizer)
    (tmp_path / "prompt").mkdir()
    save_file({"prompt": table[ids[:3]]}, tmp_path / "prompt" / "prompt.safetensors")
    found = prompt_words({"mine": tmp_path / "prompt", "gone": tmp_path / "gone"}, vocabulary, n=3)
    assert {word for word, _ in found["mine"]} == set(pieces[:3]) and set(found) == {"mine"}


def test_words_stand_in_the_report_when_the_backbone_is_at_hand(backbone_dir: Path, tmp_path: Path) -> None:
    import yaml
    from safetensors.numpy import save_file

    from finetune.report import report

    run = tmp_path / "run"
    vocabulary = load_vocabulary(backbone_dir)
    assert vocabulary is not None
    ids, pieces = word_pieces(vocabulary.tokenizer)
    row = {
        "cell": "c0", "task": "sst2", "method": "ppt", "shots": 32, "seed": 0, "learning_rate": 0.3, "dev": 0.5,
        "init": "feed", "chosen": True, "test": 0.5, "backbone_fingerprint": "b",
    }  # fmt: skip
    (run / "prompts" / "c0").mkdir(parents=True)
    (run / "results.jsonl").write_text(json.dumps(row) + "\n")
    (run / "config.yaml").write_text(yaml.safe_dump({"backbone": str(backbone_dir)}))
    save_file({"prompt": vocabulary.embeddings_VD[ids[20:22]]}, run / "prompts" / "c0" / "prompt.safetensors")
    text = report([run], tmp_path / "out").text
    listed = next(line for line in text.splitlines() if line.startswith("| PPT, sst2 (seed 0)"))
    assert f"{spelt(pieces[20])} 1.00" in listed
    without = report([run], tmp_path / "out", backbone=tmp_path / "nowhere").text
    assert "nearest words" not in without


def test_a_backbone_that_is_not_here_gives_nothing(tmp_path: Path) -> None:
    assert load_vocabulary("google/t5-v1_1-xxl") is None
    assert load_vocabulary(tmp_path) is None
