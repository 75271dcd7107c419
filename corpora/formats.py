"""Patterns and verbalizers: how an example becomes input ids with one mask, and a label target ids.

Pre-training and the downstream tasks both render with this module (and `pattern.py` below it), so that they cannot
drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from corpora.common.errors import UserError, nearest
from corpora.pattern import MASK, Ids, IntArray, Pattern
from corpora.tokenizer import LETTERS, Tokenizer

__all__ = [
    "CHOICES", "CHOICE_FORMATS", "ENCODER_TOKENS", "FORMATS", "LABEL_WORDS", "LABEL_WORDS_ZH", "MASK", "MAX_OPTIONS",
    "MIN_OPTIONS", "OPTION_TOKENS", "PATTERNS", "PATTERNS_ZH", "QUERY_TOKENS", "TEXT_TOKENS", "Example", "Pattern",
    "Verbalizer", "caps", "label_words", "option_caps", "pattern", "render_pretraining",
]  # fmt: skip

T = TypeVar("T")

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


@dataclass(frozen=True)
class Example:
    """A rendered example."""

    input_ids: IntArray  # [L], without the prompt
    label: int


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
                    f'label words "{seen[word_ids]}" and "{word}" have the same ids in tokenizer {tokenizer.name}; '
                    "choose another word for one of them"
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
