from __future__ import annotations

from pathlib import Path

import blingfire
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import segment
from corpora.documents import read_documents
from corpora.segment import detect_language, has_spaces, paragraphs, units


def test_paragraphs_are_the_lines_that_hold_text() -> None:
    assert units("one\n\n  two \r\nthree\r \t\n", "paragraphs") == ["one", "two", "three"]


def test_english_sentences_are_cut_at_ends_but_not_at_abbreviations() -> None:
    text = 'Mr. Smith paid $3.5 m. at 5 p.m. on Monday. "Yes," she said. What?! Next one\nNo end here'
    assert units(text, "sentences") == [
        "Mr. Smith paid $3.5 m. at 5 p.m. on Monday.",
        '"Yes," she said.',
        "What?!",
        "Next one",
        "No end here",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("她取得金牌。这是第一次。", ["她取得金牌。", "这是第一次。"]),
        ("他说：“你好。我很好！”然后走了。", ["他说：“你好。", "我很好！”", "然后走了。"]),
        ("《這是什么？》，拉開了序幕。後來", ["《這是什么？》，拉開了序幕。", "後來"]),
        ("「志士也，勿奪其節。」", ["「志士也，勿奪其節。」"]),
        ("真的吗？！是的。", ["真的吗？！", "是的。"]),
        ("總分178.64分，第二。", ["總分178.64分，第二。"]),
    ],
)
def test_chinese_sentences_keep_their_closing_marks(text: str, expected: list[str]) -> None:
    assert units(text, "sentences", "zh") == expected
    assert units(text, "sentences", "auto") == expected


def test_the_language_is_told_by_the_share_of_cjk_characters() -> None:
    assert detect_language("plain words") == "en"
    assert detect_language("naïve café") == "en"
    assert detect_language("The character 龍 means dragon.") == "en"
    assert detect_language("本田真凜 (Honda Marin) 是一位選手") == "zh"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab AB.!?।\u2028\n\r\"')”」。！？，：（）1 　"), max_size=60))
def test_no_character_but_space_is_lost(text: str) -> None:
    for unit in ("paragraphs", "sentences"):
        found = units(text, unit)  # type: ignore[arg-type]
        assert "".join("".join(found).split()) == "".join(text.split())
        assert all(part == part.strip() and part for part in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("هل رأيت القارب؟ نعم رأيته. كان كبيرا!", ["هل رأيت القارب؟", "نعم رأيته.", "كان كبيرا!"]),
        ("کیا آپ نے دیکھا؟ جی ہاں۔ وہ بڑا تھا۔", ["کیا آپ نے دیکھا؟", "جی ہاں۔", "وہ بڑا تھا۔"]),
        ("האם ראית? כן, ראיתי. סוף", ["האם ראית?", "כן, ראיתי.", "סוף"]),
        ("राम घर गया। वह सो गया॥ क्या हुआ? कुछ नहीं।", ["राम घर गया।", "वह सो गया॥", "क्या हुआ?", "कुछ नहीं।"]),
        ("ይህ ነው። እሱ ሄደ።", ["ይህ ነው።", "እሱ ሄደ።"]),
        (
            "「行きましょう。」と彼は言った。本当？はい！",
            ["「行きましょう。」", "と彼は言った。", "本当？", "はい！"],
        ),
        ("你好。Hello there. 今天！It is late.", ["你好。", "Hello there.", "今天！", "It is late."]),
        ("แมวอ่านหนังสือริมแม่น้ำ วันนี้อากาศดี", ["แมวอ่านหนังสือริมแม่น้ำ วันนี้อากาศดี"]),
    ],
)
def test_sentences_of_many_scripts_are_cut_at_their_own_ends(text: str, expected: list[str]) -> None:
    assert units(text, "sentences") == expected


def test_japanese_has_no_spaces_and_is_not_chinese() -> None:
    japanese, chinese = "猫が川で本を読んでいます。", "小猫在河边看书。"
    assert not has_spaces(japanese) and not has_spaces(chinese) and has_spaces("แมว cat 猫")
    assert (detect_language(japanese), detect_language(chinese)) == ("en", "zh")


def test_the_fast_call_cuts_as_the_library_does(text_file: Path) -> None:
    for line in text_file.read_text(encoding="utf-8").splitlines():
        assert segment._sentences(line) == blingfire.text_to_sentences(line).split("\n")
    long = "One is here. Two is there. " * 20_000  # longer than the buffer kept
    assert segment._sentences(long) == blingfire.text_to_sentences(long).split("\n")


def test_unicode_line_and_paragraph_separators_end_lines() -> None:
    assert units("one\u2028two\u2029three\rfour") == ["one", "two", "three", "four"]


WORDS = [
    "the boat",
    "Anna",
    "sold 3.5 tons",
    "in 1909",
    "Dr",
    "approx",
    "a sect",
    "etc",
    "e.g",
    "U.S",
    "café",
    "no way",
]
ENDS = [". ", "! ", "? ", ", ", "." + " " * 2, ".", '." ', "... ", " ", ".) "]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(ENDS)), min_size=1, max_size=8))
def test_easy_lines_are_cut_as_the_library_cuts_them(parts: list[tuple[str, str]]) -> None:
    line = "".join(word + end for word, end in parts).strip()
    library = [part.strip() for part in blingfire.text_to_sentences(line).split("\n")]
    assert units(line, "sentences") == segment._mend(library, False)


def test_easy_lines_of_real_news_are_cut_as_the_library_cuts_them(real_data: Path) -> None:
    easy = 0
    for document in read_documents([real_data / "text" / "en" / "bbc_news.jsonl.gz"]):
        for line in paragraphs(document.text):
            if segment.is_easy(line):
                easy += 1
                assert units(line, "sentences") == blingfire.text_to_sentences(line).split("\n")
    assert easy > 5_000
