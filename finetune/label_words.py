"""Where the tokens of a verbalizer's words stand in the decoder: the beginnings that words share, each once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corpora.formats import Verbalizer

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class LabelWords:
    """The words of C labels, J tokens together, as what the decoder is to read and where it is to be listened to.

    A *context* is what stands before a token: a beginning of a word, the empty one before its first token. Words of one token have
    that one alone.

    Attributes:
        rows_RT: [R, T] decoder inputs: start, `<extra_id_0>`, a context; those that begin no other have a row each.
        places_S: [S] place of each context's last token among the R * T.
        contexts_J: [J] context of each token.
        tokens_J: [J] its id.
        labels_J: [J] the label whose word it is of.
    """

    rows_RT: Int64
    places_S: Int64
    contexts_J: Int64
    tokens_J: Int64
    labels_J: Int64

    @staticmethod
    def of(verbalizer: Verbalizer, start_id: int) -> LabelWords:
        """The words of a verbalizer; `start_id` is the decoder's first input."""
        number: dict[tuple[int, ...], int] = {}  # of each context
        found: list[tuple[int, int, int]] = []
        for label, word in enumerate(verbalizer.ids):
            for end, token in enumerate(word):
                found.append((number.setdefault(word[:end], len(number)), token, label))
        begins_another = {context[:-1] for context in number if context}
        rows = [context for context in number if context not in begins_another]
        start = [start_id, int(verbalizer.target_ids(0, closing=False)[0])]
        length = len(start) + max(map(len, rows))
        # What fills a shorter row stands behind all that is read of it, so any id will do.
        table = [[*start, *row, *[start_id] * (length - len(start) - len(row))] for row in rows]
        places = []
        for context in number:
            row = next(i for i, row in enumerate(rows) if row[: len(context)] == context)
            places.append(row * length + len(start) - 1 + len(context))
        contexts, tokens, labels = np.array(found, np.int64).T
        return LabelWords(np.array(table, np.int64), np.array(places, np.int64), contexts, tokens, labels)
