from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from corpora.show import describe
from corpora.show_text import as_text, example_text

CODES = re.compile(r"\x1b\[[\d;]*m")


def segment(text: str, **fields: Any) -> dict[str, Any]:
    return {"document": 0, "place": "a.txt line 3", "text": text, "tokens": 1, "cut": 0, **fields}


def pair(first: str, second: str, label: str = "yes", **fields: Any) -> dict[str, Any]:
    """An example as `describe` gives it, of texts that a test chooses."""
    parts = [
        segment(first, role="query"),
        {"role": "mask", "text": "<X>"},
        segment(second, role="option", **{"kind": "adjacent", "distance": 1, **fields}),
    ]
    return {"row": 0, "label": label, "tokens": 3, "text": f"{first} <X> {second}", "parts": parts}


def build_of(*examples: dict[str, Any], sources: tuple[str, ...] = ("a.txt",)) -> dict[str, Any]:
    store = {"documents": 1, "units": 2, "unit": "paragraphs", "tokens": 3, "sources": sources, "dropped": {}}
    about = {"labels": {"train": {"yes": len(examples)}}, "budget": 412, "examples": list(examples)}
    return {"store": store, "formats": {"sentence_pair": about}}


def test_a_choice_is_read_from_top_to_bottom_with_its_label_at_the_mask(build_dir: Path) -> None:
    build = describe(build_dir, n=4, format="unified")
    blocks = as_text(build).split("\n\n")[2:]
    for block, example in zip(blocks, build["formats"]["unified"]["examples"], strict=True):
        lines = block.splitlines()
        assert lines[-1] == f"     ? The correct one is <X> = {example['label']}"
        ticked = [line for line in lines if line.startswith("   ✓ ")]
        assert len(ticked) == 1 and ticked[0].startswith(f"   ✓ {example['label']}. adjacent, ")
        letters = [match[1] for line in lines if (match := re.match(r"   [ ✓] ([A-P])\. ", line))]
        assert letters == [part["letter"] for part in example["parts"] if part["role"] == "option"]
        for part in example["parts"]:
            if part["role"] == "option":
                assert f"       {part['text']} ." in lines


def test_a_pair_says_where_its_second_text_stands() -> None:
    before = as_text(build_of(pair("one", "two", distance=-1)))
    assert (
        "     first: document 0 (a.txt line 3)\n       one\n     <X> = yes\n     second: adjacent, the unit before it\n"
        in before
    )
    apart = as_text(build_of(pair("one", "two", kind="same document", distance=3)))
    assert "second: same document, 3 units after it\n" in apart
    elsewhere = pair("one", "two", "no", kind="other document", document=7, place="b.txt line 9", cut=9)
    del elsewhere["parts"][2]["distance"]
    assert "second: other document 7 (b.txt line 9), 9 tokens cut off\n" in as_text(build_of(elsewhere))


def test_colours_are_there_when_asked_for_and_say_nothing_that_the_plain_text_does_not(
    build_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = describe(build_dir, n=2)
    monkeypatch.setenv("FORCE_COLOR", "1")
    plain = as_text(build)
    assert "\x1b" not in plain
    monkeypatch.setenv("NO_COLOR", "1")
    coloured = as_text(build, colour=True)
    assert len(set(CODES.findall(coloured))) > 6
    assert CODES.sub("", coloured).split() == plain.split()


def test_wrapped_lines_lose_no_word_and_fit_the_terminal(build_dir: Path) -> None:
    build = describe(build_dir, n=2)
    wrapped = as_text(build, columns=60)
    assert max(map(cell_len, wrapped.splitlines())) <= 60
    assert wrapped.split() == as_text(build).split()


PIECES = ["中文", "字。", "更多，", "word ", "（7）", "é"]


@given(st.lists(st.sampled_from(PIECES), min_size=1), st.integers(50, 90))
def test_chinese_fits_the_terminal_and_no_line_begins_with_a_closing_mark(
    pieces: list[str], columns: int
) -> None:
    text = "".join(pieces).strip()
    shown = as_text(build_of(pair("one", text)), columns=columns)
    body = shown[shown.index("second:") :].splitlines()[1:]
    assert max(map(cell_len, body)) <= columns
    assert "".join(shown.split()).endswith("".join(text.split()))
    assert not [line for line in body if line.strip()[0] in "。，）"]


@given(st.text(st.sampled_from("a中 b字"), min_size=1, max_size=60), st.integers(1, 30))
def test_a_text_wider_than_asked_for_ends_with_an_ellipsis(text: str, width: int) -> None:
    shown = as_text(build_of(pair("one", text)), width=width).splitlines()[-1][7:]
    assert cell_len(shown) <= width
    assert shown == text if cell_len(text) <= width else (shown.endswith("…") and text.startswith(shown[:-1]))


def test_right_to_left_lines_carry_their_own_direction_on_a_terminal_and_on_a_page() -> None:
    hebrew = pair("one", "הרופא קנה מכונית BMW בשנת 2015 " * 4)
    for text in (as_text(build_of(hebrew), columns=50), example_text(hebrew, "sentence_pair")):
        with_hebrew = [line for line in text.splitlines() if re.search("[א-ת]", line)]
        assert with_hebrew
        for line in with_hebrew:
            assert re.fullmatch(r" +\u2068[^\u2066-\u2069]+\u2069", line)
        assert "\u2068" not in text.splitlines()[0]
    assert "\u2068" not in as_text(build_of(hebrew))  # in a pipe the text is what it is


def test_control_characters_of_the_text_never_reach_the_terminal() -> None:
    shown = as_text(build_of(pair("a\x1b[31mred", "b\x07\x9bc")), colour=True, columns=80)
    assert "\x1b[31m" not in shown and "\x07" not in shown and "\x9b" not in shown
    assert "a\N{REPLACEMENT CHARACTER}[31mred" in CODES.sub("", shown)


def test_of_many_sources_the_first_few_are_named() -> None:
    build = build_of(sources=tuple(f"part-{number}.jsonl" for number in range(100)))
    assert "  from part-0.jsonl, part-1.jsonl, part-2.jsonl ... and 97 more\n" in as_text(build)
