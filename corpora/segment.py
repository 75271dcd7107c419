"""A document's units: its paragraphs (lines) or its sentences."""

from __future__ import annotations

import ctypes
import re
import threading
from typing import Any, Literal

import blingfire

Unit = Literal["paragraphs", "sentences"]
Language = Literal["en", "zh", "auto"]
CJK_SHARE = 0.2  # of a text's characters: above it, spaces do not separate its words
KANA_SHARE = 0.05  # of its CJK characters: above it, the text is Japanese
HEAD = 1024  # characters of a text that are looked at

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3040-\u30ff]")
_LINE_ENDS = re.compile("\r\n|[\r\n\u2028\u2029]")
# Sentence ends that BlingFire does not know: Devanagari and its kin, Armenian, Ethiopic, Burmese, Tibetan, Khmer.
_MORE_ENDS = "।॥։።။།༎។៕"
_BEHIND_END = re.compile(f"(?<=[{_MORE_ENDS}])(?![{_MORE_ENDS}])")
# Where only a library knows whether a sentence ends: letters beyond Latin ones, and a mark that neither ends the line, nor
# stands inside a number, nor behind a small word of four letters or more and before a space and a capital. There BlingFire
# always cuts, but for a few abbreviations; half of the lines of an encyclopedia have no other marks (104,000 of 196,000
# tried, each cut alike).
_ABBREVIATED = (
    "sect|incl|ssrs|resp|prox|govt|orig"  # the last four letters: section, Messrs, approximately, ...
)
_BEYOND_LATIN = re.compile("[\u0370-\u1fff\u2022-\U0010ffff]")
_HARD_MARK = re.compile(
    rf"[.!?](?!$)(?!(?<=[a-z][a-z][a-z][a-z][.!?])(?<!(?:{_ABBREVIATED})\.) [A-Z])(?!(?<=\d\.)\d)"
)
_CLOSERS = "”’」』）》〉】〕］｝"  # never open a Chinese sentence
_GOES_ON = "，、；：,;:。！？…"  # nor do these


def has_spaces(text: str) -> bool:
    """Whether spaces separate a text's words, by the share of CJK characters in its head."""
    head = text[:HEAD]
    return head.isascii() or len(_CJK.findall(head)) <= CJK_SHARE * len(head)


def detect_language(text: str) -> Literal["en", "zh"]:
    """Tell Chinese ("zh") from every other language ("en"), whose patterns and label words are English."""
    if has_spaces(text):
        return "en"
    head = text[:HEAD]
    return "zh" if len(_KANA.findall(head)) <= KANA_SHARE * len(_CJK.findall(head)) else "en"


def paragraphs(text: str) -> list[str]:
    """The lines of a document that hold text, trimmed."""
    odd = "\r" in text or "\u2028" in text or "\u2029" in text
    lines = _LINE_ENDS.split(text) if odd else text.split("\n")
    return [line for raw in lines if (line := raw.strip())]


def units(text: str, unit: Unit = "paragraphs", language: Language = "auto") -> list[str]:
    """Cut a document into units.

    Args:
        text: the document; its lines are paragraphs.
        unit: `paragraphs`, or `sentences` (which never cross a line's end).
        language: "zh" mends what the splitter does at Chinese and Japanese closing marks; "auto" looks at the text.

    Returns:
        Trimmed units, none empty, in order.
    """
    lines = paragraphs(text)
    if unit == "paragraphs":
        return lines
    spaced = has_spaces(text) if language == "auto" else language != "zh"
    more_ends = not text.isascii() and any(end in text for end in _MORE_ENDS)
    found: list[str] = []
    for line in lines:
        if spaced and is_easy(line):
            found += line.replace(". ", ".\n").replace("! ", "!\n").replace("? ", "?\n").split("\n")
            continue
        cut = _sentences(line)
        if more_ends:
            cut = [part for sentence in cut for part in _BEHIND_END.split(sentence)]
        if len(cut) == 1:
            found.append(line)
        elif spaced and all(sentence[:1].isalnum() for sentence in cut):  # nothing to put back
            found += [sentence.strip() for sentence in cut]
        else:
            found += _mend(cut, not spaced)
    return found


def is_easy(line: str) -> bool:
    """Whether a line's sentences end at each mark with a space behind it."""
    return not _HARD_MARK.search(line) and (line.isascii() or not _BEYOND_LATIN.search(line))


class _Buffer(threading.local):
    """Where BlingFire writes its answer: kept, as making one for each line takes half as long as the cutting."""

    size = 1 << 16
    space: Any = None

    def of(self, size: int) -> Any:
        """At least `size` bytes."""
        if self.space is None or size > self.size:
            self.size = max(size, self.size)
            self.space = ctypes.create_string_buffer(self.size)
        return self.space


_buffer = _Buffer()


def _sentences(line: str) -> list[str]:
    """Cut one line at sentence ends."""
    data = line.encode("utf-8")
    space = _buffer.of(2 * len(data) + 16)
    size = blingfire.blingfire.TextToSentences(
        ctypes.c_char_p(data), ctypes.c_int(len(data)), space, ctypes.c_int(_buffer.size)
    )
    if not 0 < size <= _buffer.size:
        return [line]
    return ctypes.string_at(space, size - 1).decode("utf-8").split("\n")


def _mend(sentences: list[str], spaceless: bool) -> list[str]:
    """Put back what belongs to the sentence before.

    BlingFire cuts Chinese and Japanese speech at `。” `, so that the closing mark opens the next sentence, and leaves
    stray punctuation on its own; quoted speech in the middle of a sentence is joined to it again.
    """
    mended: list[str] = []
    for sentence in sentences:
        sentence = sentence.strip()
        if not sentence:
            continue
        if mended:
            rest = sentence.lstrip(_CLOSERS + _GOES_ON) if spaceless else sentence
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
