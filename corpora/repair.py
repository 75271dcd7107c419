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
    fix = _fixer()
    if not _suspect(text):
        return text
    return "\n".join(fix(line) if _suspect(line) else line for line in text.split("\n"))


@functools.cache
def _fixer() -> Callable[[str], str]:
    try:
        from ftfy import fix_encoding
    except ImportError as error:
        raise UserError(
            "repair needs the package ftfy, which is not installed; pip install 'prompt-pretraining[quality]'"
        ) from error
    return fix_encoding


def _suspect(text: str) -> bool:
    """Whether a text has anything that ftfy may change: 20 times faster to find out than ftfy itself.

    A character of UTF-8 that is not ASCII has two bytes or more. Read wrongly, each became a character of a single-byte
    encoding, the second perhaps a space or a question mark. Latin-1's control characters are wrong on their own.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    places = np.flatnonzero(codes >= 0x80)
    if not len(places):
        return False
    first, second = _mistaken()
    before = codes[places]
    after = codes[np.minimum(places + 1, len(codes) - 1)]
    return bool(((first[before] & second[after]) | (before < 0xA0)).any())


@functools.cache
def _mistaken() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For every code point: whether a first, or a later byte of a character may have become it."""
    from ftfy.chardata import CHARMAP_ENCODINGS

    first = np.zeros(0x110000, bool)
    for name in CHARMAP_ENCODINGS:
        for char in bytes(range(0x80, 0x100)).decode(name, "ignore"):
            first[ord(char)] = ord(char) >= 0x80
    second = first.copy()
    for char in "\N{REPLACEMENT CHARACTER} ?\x1a":
        second[ord(char)] = True
    return first, second
