from __future__ import annotations

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from corpora import stats
from corpora.common.blocks import Picture, Text
from corpora.common.files import read_json
from corpora.formats import FORMATS
from corpora.stats import collect
from corpora.stats_page import as_text, sections, write_page
from corpora.stats_plots import even_shares


@pytest.fixture(scope="module")
def found(build_dir: Path) -> dict[str, Any]:
    numbers = collect(build_dir)
    numbers["counts"] = {"quality": {"repaired encodings": 5}, "duplicates": {"near copies": 1234}}
    return numbers


@pytest.fixture(scope="module")
def page(found: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(found, tmp_path_factory.mktemp("stats") / "page")


class Reader(HTMLParser):
    """What a page asks for, and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "path", "use", "rect", "line", "stop"):
            self.open.append(tag)
        given = dict(attrs)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in ("script", "link", "img", "iframe"):
            self.asked.append(tag)
        if tag == "svg":
            self.pictures.append(given.get("aria-label") or "")

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_needs_nothing_but_itself_and_follows_light_and_dark(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    assert not [one for one in reader.asked if not one.startswith("#")]
    assert "http" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(reader.pictures) == 6 and all(reader.pictures)
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert all("var(--ink)" in svg and "#1b2027" not in svg for svg in svgs)  # inks follow the page's


def test_files_are_the_numbers_the_pictures_and_the_page(page: Path, found: dict[str, Any]) -> None:
    names = {path.name for path in page.parent.iterdir()}
    pictures = {"units", "lengths", "labels", "options", "option_counts", "dropped"}
    assert names == {"stats.html", "stats.json", *(f"{name}.png" for name in pictures)}
    assert read_json(page.parent / "stats.json") == found


def test_equal_numbers_give_equal_bytes_that_say_nothing_of_time_or_software(
    page: Path, found: dict[str, Any], tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    again = write_page(copy.deepcopy(found), tmp_path / "again")
    assert tree(page.parent) == tree(again.parent)
    for png in page.parent.glob("*.png"):
        assert not [
            word for word in (b"tEXt", b"Software", b"matplotlib", b"tIME") if word in png.read_bytes()
        ]
    assert str(tmp_path) not in again.read_text(encoding="utf-8")


def test_page_and_text_have_every_format_reason_and_count(page: Path, found: dict[str, Any]) -> None:
    html, text = page.read_text(encoding="utf-8"), as_text(found)
    for name, about in found["formats"].items():
        assert name in html and f"\n{name}: {about['examples']['train']:,} examples to train on" in text
        for reason, count in about["dropped"].items():
            assert reason in html and f"{count:,} {reason}" in text
    assert "near copies" in html and "1,234" in html
    assert re.search(r"\nduplicates\n +1,234  near copies\n", text)
    assert "lowest probability" in html and "lowest probability" in text


def test_blocks_of_text_rise_and_fall_with_the_bars(found: dict[str, Any]) -> None:
    bars = found["store"]["unit_tokens"]["bars"]
    line = as_text(found).splitlines()[4]
    drawn = line.removeprefix("  0 ")[: len(bars)]
    assert [height == " " for height in drawn] == [bar == 0 for bar in bars]
    assert drawn[bars.index(max(bars))] == "█"
    assert sorted(zip(bars, drawn, strict=True)) == sorted(
        zip(bars, drawn, strict=True), key=lambda pair: pair[0]
    )


@pytest.mark.parametrize("format", FORMATS)
def test_even_shares_are_what_even_places_would_give(found: dict[str, Any], format: str) -> None:
    shares = even_shares(found["formats"][format])
    assert sum(shares) == pytest.approx(1)
    if format == "unified":
        assert shares == sorted(shares, reverse=True) and shares[0] == shares[1] > shares[2]
    else:
        assert shares == pytest.approx([1 / len(shares)] * len(shares))


def test_a_sample_is_said_to_be_one(build_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "ROWS", 300)
    numbers = collect(build_dir)
    opening = sections(numbers, {"units": Picture("units", "", b"", "")})[0]
    said = [block.text for block in opening.blocks if isinstance(block, Text)]
    assert "over 300 examples drawn at random from sentence_pair, multiple_choice, single_text" in said[1]
    assert "  of 300 drawn at random:" in as_text(numbers)


def test_a_build_without_examples_has_a_page_that_warns(found: dict[str, Any], tmp_path: Path) -> None:
    numbers = copy.deepcopy(found)
    for about in numbers["formats"].values():
        words = dict.fromkeys(about["label_words"], 0)
        empty = {"n": 0}
        about |= {"examples": {"train": 0, "validation": 0}, "labels": {"train": words, "validation": words}}
        about |= {"looked_at": 0, "full": 0, "lengths": empty, "cut": {}, "kinds": {}, "n_options": {}}
    numbers["store"]["unknown_tokens"] = numbers["store"]["tokens"] // 2
    page = write_page(numbers, tmp_path / "page").read_text(encoding="utf-8")
    assert "unified has no examples to train on" in page and "50% of the tokens are &lt;unk&gt;" in page
    assert "warning: unified has no examples" in as_text(numbers)
