"""Patterns: text with fields and one mask, filled in as ids.

Segments are tokenised on their own and joined as ids; stand-alone `?`, `.` and `;` and the option letters are bare
pieces. What is too long loses text, never template, letter or mask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError, nearest
from corpora.tokenizer import GLUE, LETTERS, Tokenizer

IntArray = NDArray[np.int32]
Ids = NDArray[np.int32] | NDArray[np.unsignedinteger]  # as the tokenizer or the store gives them

MASK = "<X>"
_PART = re.compile(r"\{([A-Za-z_]\w*)\}")
_Kind = Literal["field", "options", "mask", "glue", "text"]


@dataclass(frozen=True)
class Pattern:
    """Text with fields and one mask; `parse` makes it."""

    text: str
    parts: tuple[tuple[_Kind, str], ...] = field(compare=False, repr=False)

    @staticmethod
    def parse(text: str) -> Pattern:
        """Read a pattern.

        Args:
            text: parts separated by white space: `{name}` a field, `{options}` lettered options, `<X>` the mask,
                stand-alone `?`, `.` and `;` bare pieces; anything else is text.

        Raises:
            UserError: not exactly one mask, a field or the options twice, or braces inside a word.
        """
        return _parse(text)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return tuple(value for kind, value in self.parts if kind == "field")

    @property
    def has_options(self) -> bool:
        """Whether options stand in it, so that labels are letters."""
        return any(kind == "options" for kind, _ in self.parts)

    def fixed_tokens(self, tokenizer: Tokenizer, n_options: int = 0) -> int:
        """Tokens of the pattern itself, letters and dots of `n_options` options included."""
        return sum(map(len, self.runs(tokenizer, n_options)))

    def runs(self, tokenizer: Tokenizer, n_options: int = 0) -> list[IntArray]:
        """The pattern's own ids: before each of its S segments (fields and options) and after the last, S + 1 arrays."""
        template = _template(self, tokenizer)
        runs: list[list[IntArray]] = [[]]
        for part in template.parts:
            if isinstance(part, str):
                runs.append([])
            elif part is None:
                for letter in template.letters[:n_options]:
                    runs[-1].append(letter)
                    runs.append([template.dot])
            else:
                runs[-1].append(part)
        return [np.concatenate([np.empty(0, np.int32), *run]) for run in runs]

    def no_room(self, n_options: int, fixed: int, n_segments: int, max_tokens: int) -> UserError:
        """The error of a limit that does not leave each text a token."""
        return UserError(
            f'pattern "{self.text}" with {n_options} options takes {fixed} tokens without its {n_segments} texts; '
            f"a limit of {max_tokens} leaves no room for them"
        )

    def render(
        self,
        tokenizer: Tokenizer,
        fields: Mapping[str, Ids],
        options: Sequence[Ids] = (),
        *,
        max_tokens: int,
        shorten: Sequence[str] = (),
    ) -> IntArray:
        """Fill the pattern in.

        Args:
            tokenizer: the backbone's.
            fields: ids of every field [any length]; more than the pattern has is no fault.
            options: ids of every option, in the order of their letters.
            max_tokens: longest result; heads are kept, letters, template and mask never cut.
            shorten: fields that are cut first, in this order, down to one token; then the longest segment.

        Returns:
            int32 [L] with L at most `max_tokens`.

        Raises:
            UserError: a field is missing, too many or no options, or not even the template with one token of
                each segment fits.
        """
        template = _template(self, tokenizer)
        pieces: list[Ids] = []
        gaps: list[int] = []  # index in `pieces` of each segment
        for part in template.parts:
            if isinstance(part, str):
                if part not in fields:
                    raise UserError(f'pattern "{self.text}" needs the field "{part}"{nearest(part, fields)}')
                gaps.append(len(pieces))
                pieces.append(fields[part])
            elif part is None:
                if not 1 <= len(options) <= len(LETTERS):
                    raise UserError(
                        f'pattern "{self.text}" got {len(options)} options, expected 1 to {len(LETTERS)}'
                    )
                for letter, option in zip(template.letters, options, strict=False):
                    gaps.append(len(pieces) + 1)
                    pieces += (letter, option, template.dot)
            else:
                pieces.append(part)
        total = sum(map(len, pieces))
        if total > max_tokens:
            lengths = [len(pieces[gap]) for gap in gaps]
            room = max_tokens - (total - sum(lengths))
            if room < sum(1 for length in lengths if length):
                raise self.no_room(len(options), total - sum(lengths), len(lengths), max_tokens)
            place = template.places(len(options))
            first = [place[name] for name in shorten if name in place]
            for gap, length in zip(gaps, shortened(lengths, room, first), strict=True):
                pieces[gap] = pieces[gap][:length]
        return np.concatenate(pieces).astype(np.int32, copy=False)


@lru_cache(maxsize=4096)
def _parse(text: str) -> Pattern:
    parts: list[tuple[_Kind, str]] = []
    for word in text.split():
        match = _PART.fullmatch(word)
        if word == MASK:
            parts.append(("mask", word))
        elif word == "{options}":
            parts.append(("options", word))
        elif match:
            parts.append(("field", match[1]))
        elif word in GLUE:
            parts.append(("glue", word))
        elif MASK in word or "{" in word or "}" in word:
            raise UserError(
                f'pattern "{text}": "{word}" must stand alone, with spaces around {{fields}} and <X>'
            )
        elif parts and parts[-1][0] == "text":
            parts[-1] = ("text", f"{parts[-1][1]} {word}")
        else:
            parts.append(("text", word))
    kinds = [kind for kind, _ in parts]
    if kinds.count("mask") != 1:
        raise UserError(f'pattern "{text}" has {kinds.count("mask")} masks; expected exactly one <X>')
    names = [value for kind, value in parts if kind in ("field", "options")]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'pattern "{text}" has {{{name.strip("{}")}}} more than once')
    return Pattern(text, tuple(parts))


@dataclass(frozen=True)
class _Template:
    """A pattern's fixed ids for one tokenizer: an array, a field's name, or None where the options stand."""

    parts: tuple[IntArray | str | None, ...]
    letters: tuple[IntArray, ...]  # each option's letter and the dot behind it
    dot: IntArray

    def places(self, n_options: int) -> dict[str, int]:
        """Which segment each field is, options counted where they stand."""
        found: dict[str, int] = {}
        count = 0
        for part in self.parts:
            if isinstance(part, str):
                found[part] = count
            count += 1 if isinstance(part, str) else n_options if part is None else 0
        return found


@lru_cache(maxsize=1024)
def _template(pattern: Pattern, tokenizer: Tokenizer) -> _Template:
    parts: list[IntArray | str | None] = []
    for kind, value in pattern.parts:
        if kind == "field":
            parts.append(value)
        elif kind == "options":
            parts.append(None)
        else:
            if kind == "mask":
                ids = np.array([tokenizer.sentinel(0)], np.int32)
            elif kind == "glue":
                ids = np.array([tokenizer.glue(value)], np.int32)
            else:
                ids = tokenizer.encode([value])[0]
            if parts and isinstance(parts[-1], np.ndarray):
                ids = np.concatenate([parts.pop(), ids])
            parts.append(ids)
    dot = tokenizer.glue(".")
    letters = tuple(np.array([letter, dot], np.int32) for letter in tokenizer.letters)
    return _Template(tuple(parts), letters, np.array([dot], np.int32))


def shortened(lengths: Sequence[int], room: int, first: Sequence[int] = ()) -> list[int]:
    """How long each segment may be so that all fit.

    Args:
        lengths: tokens of each segment.
        room: tokens that all of them have together, one at least for each that is not empty.
        first: segments that give way first, in this order, down to one token.

    Returns:
        New lengths, none above the old; the longest segments were cut down to a common length (the earlier ones
        keep one token more where it does not divide).
    """
    kept = list(lengths)
    excess = sum(kept) - room
    for index in first:
        if excess <= 0:
            return kept
        cut = min(excess, max(0, kept[index] - 1))
        kept[index] -= cut
        excess -= cut
    if excess <= 0:
        return kept
    # Fill from below: segments shorter than an even share keep all, the others share what is left.
    left, share = room, 0
    order = sorted(range(len(kept)), key=kept.__getitem__)
    for rank, index in enumerate(order):
        share = left // (len(order) - rank)
        if kept[index] > share:
            break
        left -= kept[index]
    spare = left - share * sum(1 for length in kept if length > share)
    for index, length in enumerate(kept):
        if length > share:
            kept[index] = share + (spare > 0)
            spare -= 1
    return kept
