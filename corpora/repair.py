"""Broken encodings mended: text that was UTF-8, read as something else, and written again ("Â£", "donâ€™t")."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError


def repair(text: str) -> str:
    """Mend what was decoded wrongly, line by line, by the library ftfy; the rest of the text stays as it is.

    Quotation marks, character widths, entities and canonical form are left alone: they are not broken.

    Raises:
        UserError: the library is not installed.
    """
    if text.isascii():
        return text
    fix, start, pieces = _fixer(), 0, list[str]()
    for place in _suspect(text):
        if place < start:  # on a line that was seen to
            continue
        low = text.rfind("\n", start, place) + 1 or start
        high = text.find("\n", place)
        high = high if high >= 0 else len(text)
        pieces += [text[start:low], fix(text[low:high])]
        start = high
    return "".join([*pieces, text[start:]])


@functools.cache
def _fixer() -> Callable[[str], str]:
    try:
        from ftfy import fix_encoding
    except ImportError as error:
        raise UserError(
            "repair needs the package ftfy, which is not installed; pip install 'prompt-pretraining[quality]'"
        ) from error
    return fix_encoding


def _suspect(text: str) -> list[int]:
    """Where a text has anything that ftfy may change: 20 times faster to find out than by ftfy itself.

    A character of UTF-8 that is not ASCII has two bytes or more. Read wrongly, each became a character of a single-byte
    encoding, the second perhaps a space or a question mark. Latin-1's control characters are wrong on their own.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    places = np.flatnonzero(codes >= 0x80)
    first, first_of_lost, later, lost = _mistaken()
    before = codes[places]
    after = codes[np.minimum(places + 1, len(codes) - 1)]
    wrong = (first[before] & later[after]) | (first_of_lost[before] & lost[after]) | (before < 0xA0)
    found: list[int] = places[wrong].tolist()
    return found


@functools.cache
def _mistaken() -> tuple[NDArray[np.bool_], ...]:
    """For every code point, whether it may stand for a byte of UTF-8.

    Returns:
        For a first byte; for one whose next byte may be lost; for a later byte; in place of one that was lost.
    """
    from ftfy.chardata import CHARMAP_ENCODINGS

    first, first_of_lost, later, lost = (np.zeros(0x110000, bool) for _ in range(4))
    for name in CHARMAP_ENCODINGS:
        for char in bytes(range(0xC0, 0xF8)).decode(name, "ignore"):
            first[ord(char)] = ord(char) >= 0x80
            # ftfy does not look for lost bytes in MacRoman, where a dash before a space would be one.
            first_of_lost[ord(char)] |= ord(char) >= 0x80 and name != "macroman"
        for char in bytes(range(0x80, 0xC0)).decode(name, "ignore"):
            later[ord(char)] = ord(char) >= 0x80
    for char in "\N{REPLACEMENT CHARACTER} ?\x1a":
        lost[ord(char)] = True
    return first, first_of_lost, later, lost
