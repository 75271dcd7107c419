"""Patterns and verbalizers: how an example becomes input ids with one mask, and a label target ids.

Pre-training and the downstream tasks both render with this module, so that they cannot drift apart. Segments are
tokenised on their own and joined as ids; stand-alone `?`, `.` and `;` and the option letters are bare pieces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError, nearest
from corpora.tokenizer import GLUE, LETTERS, Tokenizer

IntArray = NDArray[np.int32]
Ids = NDArray[np.int32] | NDArray[np.unsignedinteger]  # as the tokenizer or the store gives them

FORMATS = ("sentence_pair", "multiple_choice", "single_text", "unified")
CHOICE_FORMATS = ("multiple_choice", "unified")

# Encoder tokens with the prompt of 100 (released code).
ENCODER_TOKENS = {"sentence_pair": 512, "multiple_choice": 1024, "single_text": 368, "unified": 768}

PATTERNS = {
    "sentence_pair": "{first} <X> {second}",
    "multiple_choice": "{query} ? {options} ? The correct one is <X>",
    "single_text": "{text} <X>",
    "unified": "{query} ? {options} ? The correct one is <X>",
}
LABEL_WORDS = {
    "sentence_pair": ("no", "maybe", "yes"),
    "multiple_choice": LETTERS[:6],
    "single_text": ("terrible", "bad", "maybe", "good", "great"),
    "unified": LETTERS,
}
# The paper's Chinese patterns are not published; these are ours.
PATTERNS_ZH = {
    **PATTERNS,
    "multiple_choice": "{query} ? {options} ? 正确的一项是 <X>",
    "unified": "{query} ? {options} ? 正确的一项是 <X>",
}
LABEL_WORDS_ZH = {
    **LABEL_WORDS,
    "sentence_pair": ("否", "也许", "是"),
    "single_text": ("很差", "差", "一般", "好", "很好"),
}
_PATTERNS_OF = {"en": PATTERNS, "zh": PATTERNS_ZH}
_LABEL_WORDS_OF = {"en": LABEL_WORDS, "zh": LABEL_WORDS_ZH}

CHOICES = 6  # options of multiple_choice
OPTION_TOKENS = 86  # of multiple_choice (released code)
QUERY_TOKENS = 383  # the code's 389 with six full options and the prompt makes 1030 of 1024 and loses <X>
TEXT_TOKENS = 267  # of a single text that the prompt sees (released code)

# unified: number of options -> query tokens, tokens of an option (released code)
_CAPS = {2: (400, 50), 3: (400, 50), 4: (400, 50), 5: (400, 40), 6: (300, 40)}
_CAPS |= {7: (250, 30), 8: (200, 30), 9: (200, 30), 10: (150, 20), 11: (150, 20)}
_CAPS |= dict.fromkeys(range(12, 17), (150, 20))
MIN_OPTIONS, MAX_OPTIONS = min(_CAPS), max(_CAPS)

MASK = "<X>"
_PART = re.compile(r"\{([A-Za-z_]\w*)\}")
_Kind = Literal["field", "options", "mask", "glue", "text"]
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A rendered example."""

    input_ids: IntArray  # [L], without the prompt
    label: int


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
        segments: list[Ids] = []  # what stands in the template's gaps, in order
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
            segments = [pieces[gap] for gap in gaps]
            names = [part for part in template.parts if isinstance(part, str)]
            first = _field_gaps(template, len(options))
            lengths = [len(segment) for segment in segments]
            room = max_tokens - (total - sum(lengths))
            if room < sum(1 for length in lengths if length):
                raise UserError(
                    f'pattern "{self.text}" with {len(options)} options takes {total - sum(lengths)} tokens without '
                    f"its {len(lengths)} texts; {max_tokens} leave no room for them"
                )
            order = [first[names.index(name)] for name in shorten if name in names]
            for gap, length in zip(gaps, shortened(lengths, room, order), strict=True):
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


def _field_gaps(template: _Template, n_options: int) -> list[int]:
    """Which segment each field is, counting the options where they stand."""
    found, count = [], 0
    for part in template.parts:
        if isinstance(part, str):
            found.append(count)
            count += 1
        elif part is None:
            count += n_options
    return found


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


class Verbalizer:
    """Label words and their ids.

    Args:
        tokenizer: the backbone's.
        words: one a label, in label order; each may take several pieces.

    Raises:
        UserError: a word is unknown, or two labels have the same ids.

    Attributes:
        words: as given.
        ids: ids of each label's word.
    """

    def __init__(self, tokenizer: Tokenizer, words: Sequence[str]) -> None:
        self._set(tokenizer, tuple(words), tuple(tokenizer.word_ids(word) for word in words))

    @classmethod
    def letters(cls, tokenizer: Tokenizer, n: int) -> Verbalizer:
        """The labels A, B, ... of a choice among `n` options: bare letters, as the options themselves have.

        Raises:
            UserError: more options than letters.
        """
        if not 1 <= n <= len(LETTERS):
            raise UserError(f"{n} labels; a choice has at most {len(LETTERS)} (letters A to P)")
        made = cls.__new__(cls)
        made._set(tokenizer, LETTERS[:n], tuple((index,) for index in tokenizer.letters[:n]))
        return made

    def _set(self, tokenizer: Tokenizer, words: tuple[str, ...], ids: tuple[tuple[int, ...], ...]) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for word, word_ids in zip(words, ids, strict=True):
            if word_ids in seen:
                raise UserError(
                    f'label words "{seen[word_ids]}" and "{word}" have the same ids in tokenizer {tokenizer.name}'
                )
            seen[word_ids] = word
        self.words, self.ids = words, ids
        self._sentinels = tokenizer.sentinel(0), tokenizer.sentinel(1)

    def __len__(self) -> int:
        return len(self.words)

    def target_ids(self, label: int, closing: bool) -> IntArray:
        """What the decoder is to say: `<extra_id_0>` and the word, and `<extra_id_1>` where `closing`.

        Returns:
            int32 [T].
        """
        first, last = self._sentinels
        return np.array([first, *self.ids[label], *((last,) if closing else ())], np.int32)


def option_caps(n: int) -> tuple[int, int]:
    """Tokens of the query and of each option in a `unified` example of `n` options.

    Raises:
        UserError: `n` is outside 2 to 16.
    """
    if n not in _CAPS:
        raise UserError(f"{n} options; expected {MIN_OPTIONS} to {MAX_OPTIONS} (letters A to P)")
    return _CAPS[n]


def caps(format: str, n_options: int) -> tuple[int, int]:
    """Most tokens of an example's query and of each option before it is rendered (0: as many as fit)."""
    if format == "unified":
        return option_caps(n_options)
    return {"multiple_choice": (QUERY_TOKENS, OPTION_TOKENS), "single_text": (TEXT_TOKENS, 0)}.get(
        format, (0, 0)
    )


def pattern(format: str, language: str = "en") -> Pattern:
    """The pre-training pattern of a format.

    Raises:
        UserError: no such format or language, naming the nearest.
    """
    return Pattern.parse(_look_up(_PATTERNS_OF, format, language))


def label_words(format: str, language: str = "en") -> tuple[str, ...]:
    """The label words of a format's pre-training task."""
    return tuple(_look_up(_LABEL_WORDS_OF, format, language))


def _look_up(table: Mapping[str, Mapping[str, T]], format: str, language: str) -> T:
    if language not in table:
        raise UserError(f'no patterns for language "{language}"{nearest(language, table)}')
    if format not in table[language]:
        raise UserError(f'no format "{format}"{nearest(format, table[language])}')
    return table[language][format]


def render_pretraining(
    tokenizer: Tokenizer,
    format: str,
    query_ids: Ids,
    option_ids: Sequence[Ids],
    label: int,
    prompt_len: int,
    language: str = "en",
) -> Example:
    """Render one pre-training example.

    Args:
        tokenizer: what the ids were made with.
        format: one of `FORMATS`.
        query_ids: the query's ids.
        option_ids: ids of the options; of the partner in `sentence_pair`, none in `single_text`.
        label: index of the right label.
        prompt_len: tokens that the prompt takes of the format's `ENCODER_TOKENS`.
        language: of the pattern.

    Raises:
        UserError: the prompt leaves no room.
    """
    max_tokens = ENCODER_TOKENS[format] - prompt_len
    form = pattern(format, language)
    query_cap, option_cap = caps(format, len(option_ids))
    if query_cap:
        query_ids = query_ids[:query_cap]
    if form.has_options:
        fields, options = {"query": query_ids}, [option[:option_cap] for option in option_ids]
    elif format == "sentence_pair":
        fields, options = {"first": query_ids, "second": option_ids[0]}, []
    else:
        fields, options = {"text": query_ids}, []
    return Example(form.render(tokenizer, fields, options, max_tokens=max_tokens), label)
