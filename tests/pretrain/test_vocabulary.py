"""`ppt backbone vocab`: T5's layout, the pieces that patterns need, the same bytes each time."""

import pytest

from corpora.common.errors import UserError
from corpora.tokenizer import REQUIRED_PIECES, Tokenizer
from pretrain.vocabulary import sample_lines, train_vocabulary


def test_the_layout_is_t5s_and_required_pieces_are_single(tmp_path, text_file):
    tokenizer = train_vocabulary([str(text_file)], 150, tmp_path / "out")
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.sentinel(0) == tokenizer.size - 1
    assert len({tokenizer.piece_id(piece) for piece in REQUIRED_PIECES}) == len(REQUIRED_PIECES) == 19
    assert Tokenizer.load(tmp_path / "out").fingerprint == tokenizer.fingerprint


def test_transformers_reads_it_alike(tmp_path, text_file):
    from transformers import AutoTokenizer

    tokenizer = train_vocabulary([str(text_file)], 150, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Anna found the boat near the mill."
    assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode([text])[0].tolist()
    assert len(theirs) == tokenizer.size


def test_words_that_always_stand_alike_are_still_whole_pieces(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(["the boat saw the fish near the mill"] * 200), encoding="utf-8")
    tokenizer = train_vocabulary([str(text)], 60, tmp_path / "out")
    assert tokenizer.pieces(tokenizer.encode(["the fish"])[0]) == ["▁the", "▁fish"]


def test_the_same_text_gives_the_same_bytes(tmp_path, text_file):
    for name in "ab":
        train_vocabulary([str(text_file)], 150, tmp_path / name)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_chinese_is_told_by_itself_and_letters_are_there_all_the_same(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(["今天天气很好,我们去公园玩。", "他在河边看见一条船。"] * 50), encoding="utf-8"
    )
    tokenizer = train_vocabulary([str(text)], 80, tmp_path / "out")
    assert '"language": "zh"' in (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    assert len(tokenizer.letters) == 16
    assert tokenizer.unk_id not in tokenizer.encode(["天气很好"])[0].tolist()


def test_long_text_is_thinned_out_evenly():
    lines, stride = sample_lines((f"{i:03d}" for i in range(1000)), 900)
    assert stride == 4
    first = int(lines[0])
    assert lines == [f"{i:03d}" for i in range(first, 1000, 4)]


@pytest.mark.parametrize(
    ("size", "language", "message"),
    [(10, "auto", "too small"), (150, "fr", "expected one of"), (30, "en", "choose another")],
)
def test_what_cannot_be_is_refused(tmp_path, text_file, size, language, message):
    with pytest.raises(UserError, match=message):
        train_vocabulary([str(text_file)], size, tmp_path / "out", language)
    assert not (tmp_path / "out").exists()
