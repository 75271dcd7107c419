"""Which beginnings of label words the decoder reads, and where the tokens that follow them are."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corpora.formats import Verbalizer
from corpora.tokenizer import Tokenizer
from finetune.label_words import LabelWords


@given(
    words=st.lists(
        st.lists(st.integers(3, 8), min_size=1, max_size=4).map(tuple), min_size=1, max_size=9, unique=True
    )
)
def test_each_token_of_each_word_is_read_behind_its_own_beginning_and_no_beginning_twice(
    words: list[tuple[int, ...]], tokenizer: Tokenizer
) -> None:
    verbalizer: Any = Verbalizer.letters(tokenizer, 16)
    verbalizer.ids, sentinel = tuple(words), tokenizer.sentinel(0)
    found = LabelWords.of(verbalizer, 0)
    spelt: dict[int, list[int]] = {}
    length = found.rows_RT.shape[1]
    for context, token, label in zip(found.contexts_J, found.tokens_J, found.labels_J, strict=True):
        row, last = divmod(int(found.places_S[context]), length)
        before = found.rows_RT[row, : last + 1].tolist()
        assert before == [0, sentinel, *spelt.setdefault(int(label), [])]
        spelt[int(label)].append(int(token))
    assert [tuple(spelt[label]) for label in range(len(words))] == words
    assert len(np.unique(found.places_S)) == len({word[:end] for word in words for end in range(len(word))})
    beginnings = {word[:-1] for word in words}
    longest = [one for one in beginnings if not any(o != one and o[: len(one)] == one for o in beginnings)]
    assert len(found.rows_RT) == len(longest)
