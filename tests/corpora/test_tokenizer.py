"""Tests of corpora/tokenizer.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corpora.common.errors import UserError
from corpora.tokenizer import LETTERS, REQUIRED_PIECES, Tokenizer

SENTENCES = [
    "Anna found the boat near the Mill; A. or B? Yes.",
    "  two  spaces,\tand a tab ",
    "Tom;Garden P O. unknown: éß你",
]
CHINESE = ["小猫在河边看书。", "今天天气很好，我们去公园。", "否", "也许", "是", "很差 一般 很好 差 好"]


def test_ids_of_t5_come_out_as_the_method_states_them(real_data: Path) -> None:
    t5 = Tokenizer.load(real_data / "tokenizers" / "t5_spiece.model")
    assert [t5.glue(char) for char in "?.;"] == [58, 5, 117]
    assert (t5.letters[0], t5.letters[-1]) == (188, 345)
    assert [t5.word_ids(word) for word in ("yes", "no", "maybe")] == [(4273,), (150,), (2087,)]
    assert (t5.size, t5.sentinel(0), t5.sentinel(99), t5.pad_id, t5.eos_id) == (32100, 32099, 32000, 0, 1)


def test_a_saved_t5_is_the_same_in_transformers(real_data: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    t5 = Tokenizer.load(real_data / "tokenizers" / "t5_spiece.model")
    t5.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == 32100
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == t5.sentinel(0)
    for text, ids in zip(SENTENCES, t5.encode(SENTENCES), strict=True):
        assert theirs(text, add_special_tokens=False).input_ids == ids.tolist()


def test_a_saved_vocabulary_is_the_same_in_transformers(tokenizer: Tokenizer, tokenizer_dir: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert len(theirs) == tokenizer.size
    for index in (0, 1, 99):
        assert theirs.convert_tokens_to_ids(f"<extra_id_{index}>") == tokenizer.sentinel(index)
    for text, ids in zip(SENTENCES, tokenizer.encode(SENTENCES), strict=True):
        assert theirs(text, add_special_tokens=False).input_ids == ids.tolist()
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (
        tokenizer.pad_id,
        tokenizer.eos_id,
        tokenizer.unk_id,
    )


def test_sentinels_stand_above_the_pieces_of_a_bare_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.sentinel(0) == tokenizer.size - 1
    assert tokenizer.sentinel(99) == tokenizer.size - 100
    assert tokenizer.pieces([tokenizer.sentinel(7)]) == ["<extra_id_7>"]
    with pytest.raises(UserError, match="<extra_id_100>"):
        tokenizer.sentinel(100)


def test_sentinels_among_the_pieces_are_found_by_name(
    train_model: Callable[..., Path], tmp_path: Path
) -> None:
    """MT5's model holds them as `▁<extra_id_0>`; nothing may then be added above."""
    names = [f"▁<extra_id_{index}>" for index in reversed(range(100))]
    model = train_model(user_defined_symbols=names, vocab_size=280, required_chars="".join(REQUIRED_PIECES))
    found = Tokenizer.load(model)
    assert found.pieces([found.sentinel(0), found.sentinel(99)]) == ["▁<extra_id_0>", "▁<extra_id_99>"]
    assert max(found.sentinel(index) for index in range(100)) < found.size
    found.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.size, again.fingerprint) == (found.size, found.fingerprint)
    spelt = found.encode(["see <extra_id_0> here"])[0]
    assert found.sentinel(0) not in spelt and found.unk_id in spelt


@pytest.mark.parametrize("load", ["sentencepiece", "transformers"])
def test_text_that_spells_a_special_token_does_not_become_one(
    tokenizer_dir: Path, tmp_path: Path, load: str
) -> None:
    found = Tokenizer.load(tokenizer_dir if load == "sentencepiece" else _as_json(tokenizer_dir, tmp_path))
    ids = set(found.encode(["a <extra_id_0> b </s> c <pad>"])[0].tolist())
    assert not ids & {found.sentinel(0), found.eos_id, found.pad_id}


def _as_json(tokenizer_dir: Path, folder: Path) -> Path:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(folder)
    assert not (folder / "spiece.model").exists()
    return folder


def test_a_tokenizer_of_transformers_gives_the_same_ids(
    tokenizer: Tokenizer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    theirs = Tokenizer.load(_as_json(tokenizer_dir, tmp_path))
    assert (theirs.size, theirs.letters, theirs.sentinel(5)) == (
        tokenizer.size,
        tokenizer.letters,
        tokenizer.sentinel(5),
    )
    assert theirs.word_ids("yes") == tokenizer.word_ids("yes")
    for one, two in zip(theirs.encode(SENTENCES), tokenizer.encode(SENTENCES), strict=True):
        assert one.tolist() == two.tolist()
    theirs.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == theirs.fingerprint


def test_letters_and_glue_are_bare_pieces(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces(tokenizer.letters) == list(LETTERS)
    assert [tokenizer.pieces([tokenizer.glue(char)]) for char in "?.;"] == [["?"], ["."], [";"]]


def test_label_words_begin_a_word(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces(tokenizer.word_ids("yes"))[0].startswith("▁")


@pytest.mark.parametrize("word", ["漢", ""])
def test_an_unknown_label_word_is_refused_by_name(tokenizer: Tokenizer, word: str) -> None:
    with pytest.raises(UserError, match=f'label word "{word}" is unknown'):
        tokenizer.word_ids(word)


def test_a_vocabulary_without_a_letter_is_refused_naming_it(train_model: Callable[..., Path]) -> None:
    model = train_model(required_chars="".join(piece for piece in REQUIRED_PIECES if piece != "K"))
    with pytest.raises(UserError, match='no single piece "K"'):
        Tokenizer.load(model)


def test_a_chinese_vocabulary_has_the_pieces_and_the_label_words(train_model: Callable[..., Path]) -> None:
    model = train_model("\n".join(CHINESE * 20), required_chars="".join(REQUIRED_PIECES), vocab_size=70)
    found = Tokenizer.load(model)
    for word in ("否", "也许", "是", "很差", "一般"):
        assert found.decode(found.word_ids(word)) == word
    assert found.decode([*found.word_ids("是"), found.sentinel(0), found.glue("?")]) == "是 <extra_id_0> ?"


def test_encode_gives_one_array_a_text_even_of_nothing(tokenizer: Tokenizer) -> None:
    found = tokenizer.encode(["", "the boat", "\ud800 half a surrogate"])
    assert [ids.dtype for ids in found] == [np.int32] * 3
    assert len(found[0]) == 0 and len(found[1]) > 0 and len(found[2]) > 0
    assert tokenizer.encode([]) == []


@pytest.mark.defect(8)
def test_ids_get_32_bits_where_the_vocabulary_needs_them(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokenizer.dtype == np.uint16
    for size, dtype in ((65_536, np.uint16), (65_537, np.uint32), (250_112, np.uint32)):
        monkeypatch.setattr(tokenizer, "size", size)
        assert tokenizer.dtype == dtype
        assert np.array([size - 1]).astype(tokenizer.dtype)[0] == size - 1


def test_the_fingerprint_tells_vocabularies_apart(
    tokenizer: Tokenizer, tokenizer_dir: Path, train_model: Callable[..., Path]
) -> None:
    other = train_model(vocab_size=120, required_chars="".join(REQUIRED_PIECES))
    assert Tokenizer.load(tokenizer_dir).fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(other).fingerprint != tokenizer.fingerprint


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "words.txt").write_text("a\nb\n")
    (tmp_path / "broken.model").write_bytes(b"nothing")
    shutil.copytree(tokenizer_dir, tmp_path / "config")
    (tmp_path / "config" / "tokenizer_config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for name in ("words.txt", "broken.model", "config", "empty", "missing/folder"):
        with pytest.raises(UserError) as caught:
            Tokenizer.load(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
