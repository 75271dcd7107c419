"""A document's units: its paragraphs (lines) or its sentences."""

from __future__ import annotations

import re
from typing import Literal

import blingfire

Unit = Literal["paragraphs", "sentences"]
Language = Literal["en", "zh", "auto"]
CJK_SHARE = 0.2  # of a text's characters: above it, spaces do not separate its words

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LINE_ENDS = re.compile(r"\r\n|\r|\n")
_CLOSERS = "”’」』）》〉】〕］｝"  # never open a Chinese sentence
_GOES_ON = "，、；：,;:。！？…"  # nor do these


def detect_language(text: str) -> Literal["en", "zh"]:
    """Tell texts written without spaces ("zh") from others ("en") by the share of CJK characters."""
    if text.isascii():
        return "en"
    return "zh" if len(_CJK.findall(text)) > CJK_SHARE * len(text) else "en"


def paragraphs(text: str) -> list[str]:
    """The lines of a document that hold text, trimmed."""
    lines = _LINE_ENDS.split(text) if "\r" in text else text.split("\n")
    return [line for raw in lines if (line := raw.strip())]


def units(text: str, unit: Unit = "paragraphs", language: Language = "auto") -> list[str]:
    """Cut a document into units.

    Args:
        text: the document; its lines are paragraphs.
        unit: `paragraphs`, or `sentences` (which never cross a line's end).
        language: "zh" mends what the splitter does at Chinese closing marks; "auto" looks at the text.

    Returns:
        Trimmed units, none empty, in order.
    """
    lines = paragraphs(text)
    if unit == "paragraphs":
        return lines
    chinese = (detect_language(text) if language == "auto" else language) == "zh"
    found: list[str] = []
    for line in lines:
        sentences = blingfire.text_to_sentences(line).split("\n")
        found += _mend(sentences, chinese)
    return found


def _mend(sentences: list[str], chinese: bool) -> list[str]:
    """Put back what belongs to the sentence before.

    BlingFire cuts Chinese speech at `。” `, so that the closing mark opens the next sentence, and leaves
    stray punctuation on its own; quoted speech in the middle of a sentence is joined to it again.
    """
    mended: list[str] = []
    for sentence in sentences:
        sentence = sentence.strip()
        if not sentence:
            continue
        if mended:
            rest = sentence.lstrip(_CLOSERS + _GOES_ON) if chinese else sentence
            if not any(map(str.isalnum, sentence)):
                mended[-1] += sentence
                continue
            taken = sentence[: len(sentence) - len(rest)]
            if taken:
                mended[-1] += taken
                if taken[-1] in "，、；：,;:":  # a quotation inside a sentence that goes on
                    mended[-1] += rest
                else:
                    mended.append(rest)
                continue
        mended.append(sentence)
    return mended
