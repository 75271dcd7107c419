"""Examples rendered many at a time: the ids that `formats.render_pretraining` gives one by one, by array work alone.

An example is a row of segments (query, options) between runs of fixed ids (template, letters, `<X>`). All segments of a
batch lie end to end, F of them; nothing here loops over examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.formats import CHOICE_FORMATS, ENCODER_TOKENS, MAX_OPTIONS, MIN_OPTIONS, caps, pattern
from corpora.tokenizer import Tokenizer

Int64 = NDArray[np.int64]

# How many options (a partner in `sentence_pair`) an example of a format may have.
_OPTIONS = {"sentence_pair": (1, 1), "single_text": (0, 0), "multiple_choice": (1, MAX_OPTIONS)}
_OPTIONS |= {"unified": (MIN_OPTIONS, MAX_OPTIONS)}


@dataclass(frozen=True)
class Rendered:
    """B examples end to end.

    Attributes:
        input_ids: int32 [tokens], all inputs without prompts; example b has `input_ids[offsets[b] : offsets[b + 1]]`.
        offsets: int64 [B + 1].
        labels: int64 [B].
    """

    input_ids: NDArray[np.int32]
    offsets: Int64
    labels: Int64

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def in_order(parts: Sequence[Rendered], places: Sequence[Int64]) -> Rendered:
        """Examples of several batches as one.

        Args:
            parts: the batches.
            places: for each, which of the B examples of the result its examples are; together 0..B-1.
        """
        if len(parts) == 1 and np.array_equal(places[0], np.arange(len(parts[0]))):
            return parts[0]
        order = np.argsort(np.concatenate(places))
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        starts = ends(lengths)[:-1]
        ids = np.concatenate([part.input_ids for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        return Rendered(ids[spread(starts[order], lengths[order])], ends(lengths[order]), labels[order])


@dataclass(frozen=True)
class Segments:
    """The texts of B examples, each cut to its own cap.

    Attributes:
        starts: [F] where each segment starts in the store's tokens.
        lengths: [F] tokens of each.
        first: [B + 1] which segments each example has; the first of them is the query.
        n_options: [B] how many of them are options (or the partner).
    """

    starts: Int64
    lengths: Int64
    first: Int64
    n_options: Int64


class Renderer:
    """Renders examples of one format.

    Args:
        format: one of `FORMATS`.
        language: of the pattern.
        tokenizer: what the ids were made with.
    """

    def __init__(self, format: str, language: str, tokenizer: Tokenizer) -> None:
        self.format, self.form = format, pattern(format, language)
        self.fewest, self.most = _OPTIONS[format]
        sizes = range(self.fewest, self.most + 1)
        runs = [self.form.runs(tokenizer, n if format in CHOICE_FORMATS else 0) for n in sizes]
        lengths = [[len(run) for run in one] for one in runs]
        # One entry for each number of options from the fewest: ids of the pattern, those behind the last text, caps.
        self._fixed = np.array([sum(one) for one in lengths], np.int64)
        self._behind = np.array([one[-1] for one in lengths], np.int64)
        unbounded = np.iinfo(np.int64).max
        self._caps = np.array([[cap or unbounded for cap in caps(format, n)] for n in sizes], np.int64)
        # Ids of the pattern end to end, from which place on they serve a number of options, before which text each is.
        self._ids = np.concatenate([run for one in runs for run in one])
        self._place = ends(self._fixed)[:-1]
        self._segment = np.concatenate([np.repeat(np.arange(len(one)), one) for one in lengths])
        # How many stand right before each text, end to end, and from which place on for a number of options.
        self._ahead = np.concatenate([one[:-1] for one in lengths])
        self._first_gap = ends(np.array([len(one) - 1 for one in lengths]))[:-1]

    def segments(self, starts: Int64, lengths: Int64, n_options: Int64) -> Segments:
        """Cut each text to its cap.

        Args:
            starts: [F] where each text starts in the store's tokens: an example's query, its options, the next query.
            lengths: [F] tokens of each.
            n_options: [B] options of each example.

        Raises:
            UserError: an example has more or fewer options than its format allows.
        """
        outside = (n_options < self.fewest) | (n_options > self.most)
        if outside.any():
            raise UserError(
                f"{self.format} example with {n_options[outside][0]} options; expected {self.fewest} to {self.most}"
            )
        first = ends(n_options + 1)
        caps = self._caps[n_options - self.fewest]
        longest = np.repeat(caps[:, 1], n_options + 1)
        longest[first[:-1]] = caps[:, 0]
        return Segments(starts, np.minimum(lengths, longest), first, n_options)

    def lengths(self, segments: Segments, prompt_len: int) -> Int64:
        """Tokens of each example, [B], as `render` will make them."""
        whole = _sums(segments.lengths, segments.first) + self._fixed[segments.n_options - self.fewest]
        return np.minimum(whole, ENCODER_TOKENS[self.format] - prompt_len)

    def render(
        self, tokens: NDArray[np.unsignedinteger], segments: Segments, prompt_len: int
    ) -> tuple[NDArray[np.int32], Int64]:
        """Fill the pattern in for all examples.

        Args:
            tokens: of the store.
            segments: what stands in the examples.
            prompt_len: tokens that the prompt takes of the format's `ENCODER_TOKENS`.

        Returns:
            The ids of all examples end to end, int32, and [B + 1] where each starts.

        Raises:
            UserError: the prompt leaves no room.
        """
        first, kind = segments.first, segments.n_options - self.fewest
        lengths = self._fitted(segments, ENCODER_TOKENS[self.format] - prompt_len)
        # Each text is copied with what stands around it in the store, in as many tokens as the pattern has there; the
        # pattern's ids then go over these. One copy of all tokens is half the time of a copy by mask.
        ahead = self._ahead[spread(self._first_gap[kind], segments.n_options + 1)]
        widths = lengths + ahead
        widths[first[1:] - 1] += self._behind[kind]
        edges = ends(widths)
        offsets = edges[first]
        copied = np.repeat(segments.starts - ahead - edges[:-1], widths) + np.arange(offsets[-1])
        ids = tokens.take(copied, mode="clip").astype(np.int32)  # clip: the store's first and last text
        # An id of the pattern stands behind the ids before it and the texts before it.
        fixed, text = self._fixed[kind], ends(lengths)
        entry = spread(self._place[kind], fixed)
        base = offsets[:-1] - text[first[:-1]] - self._place[kind]
        places = entry + np.repeat(base, fixed) + text[np.repeat(first[:-1], fixed) + self._segment[entry]]
        ids[places] = self._ids[entry]
        return ids, offsets

    def _fitted(self, segments: Segments, max_tokens: int) -> Int64:
        """[F] tokens that each segment keeps so that its example has `max_tokens` at most."""
        lengths, first = segments.lengths, segments.first
        room = max_tokens - self._fixed[segments.n_options - self.fewest]
        long = np.flatnonzero(_sums(lengths, first) > room)
        if not len(long):
            return lengths
        n = np.diff(first)[long]
        there = np.arange(n.max()) < n[:, None]
        table = np.zeros(there.shape, np.int64)
        table[there] = lengths[spread(first[long], n)]
        tight = room[long] < (table > 0).sum(1)
        if tight.any():
            row = int(long[tight][0])
            fixed = max_tokens - int(room[row])
            shown = int(segments.n_options[row]) if self.form.has_options else 0
            raise self.form.no_room(shown, fixed, int(first[row + 1] - first[row]), max_tokens)
        lengths = lengths.copy()
        lengths[spread(first[long], n)] = shortened_rows(table, room[long])[there]
        return lengths


def shortened_rows(lengths: Int64, room: Int64) -> Int64:
    """`pattern.shortened` for many examples at once.

    Args:
        lengths: [B, S] tokens of each segment, 0 where an example has fewer.
        room: [B] tokens that an example's segments have together, less than they need.

    Returns:
        [B, S] tokens that each keeps.
    """
    # Fill from below: segments shorter than an even share keep all, the others share what is left.
    ascending = np.sort(lengths, axis=1)
    left = room[:, None] - (np.cumsum(ascending, axis=1) - ascending)
    sharers = np.arange(lengths.shape[1], 0, -1)
    share = left // sharers
    cut_from = np.argmax(ascending > share, axis=1)  # the shortest that is cut
    rows = np.arange(len(lengths))
    share, left = share[rows, cut_from][:, None], left[rows, cut_from][:, None]
    cut = lengths > share
    spare = left - share * sharers[cut_from][:, None]
    return np.where(cut, share + (np.cumsum(cut, axis=1) <= spare), lengths)


def ends(lengths: NDArray[np.integer] | Sequence[int]) -> Int64:
    """Where runs of the given lengths [N] start and end when they lie end to end: int64 [N + 1], from 0."""
    found = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=found[1:])
    return found


def spread(starts: NDArray[np.integer], lengths: Int64) -> Int64:
    """The numbers `starts[i], starts[i] + 1, ...`, `lengths[i]` of them, for all i end to end."""
    edges = ends(lengths)
    return np.repeat(starts - edges[:-1], lengths) + np.arange(edges[-1])


def _sums(values: Int64, first: Int64) -> Int64:
    return np.diff(ends(values)[first])
