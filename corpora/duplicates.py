"""Documents that stand in a corpus twice: the same words, or nearly the same.

First stage, a document at a time, in any process: `document_hash` and `signature`. Second stage, over all documents in
order: `find_duplicates`. The first of each kind stays. Nothing here depends on how the documents were shared out.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.words import Hashes, Ints, Words, find_words, mix, ngrams

SIGNATURE = 128  # numbers H; the estimate of a similarity s is off by sqrt(s (1 - s) / H), 0.035 at 0.8
SHINGLE = (
    5  # words; 5-grams as in Lee et al. 2022 (section 4.2) and in FineWeb (Penedo et al. 2024, section 3.4)
)
SEED = 42  # of the signatures: a constant, because signatures of two seeds cannot be compared
FOUND = 0.9  # probability that a pair exactly as similar as asked for shares a band; rises steeply above
PAIRS = 1 << 16  # pairs of signatures compared at a time: 2 x 32 MiB
LEADERS = 64  # documents of a band's group that the others are compared with, so that the work stays linear
EXAMPLES = 5  # pairs kept of each kind
EXTRA = "quality"  # of pyproject.toml

Signatures = NDArray[np.uint32]


@dataclass(frozen=True)
class Pair:
    """Document `dropped` is left out because document `kept`, before it, is alike.

    Attributes:
        kept, dropped: numbers of documents, in the order of the corpus.
        similarity: 1 of equal ones, else the share of shingles in common as the signatures estimate it.
    """

    kept: int
    dropped: int
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found.

    Attributes:
        keep_D: whether each document stays.
        counts: documents dropped, by reason.
        examples: the first pairs of each reason, in the order of the dropped.
    """

    keep_D: NDArray[np.bool_]
    counts: dict[str, int]
    examples: dict[str, list[Pair]]


def document_hash(text: str, words: Words | None = None) -> Hashes:
    """128 bits of a document's words: case, punctuation and spacing do not count.

    CCNet (Wenzek et al. 2020, section 3.1) compares paragraphs in the same way.

    Args:
        text: the document.
        words: its words, where the caller has them.

    Returns:
        [2] equal for documents of the same words, different for others.
    """
    words = find_words(text) if words is None else words
    data = words.hashes_T.astype("<u8", copy=False).tobytes()
    if not data:  # signs alone: only the same signs are a duplicate
        data = b"\x00" + text.strip().encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), "<u8").astype(np.uint64)


def signature(text: str, words: Words | None = None) -> Signatures:
    """The MinHash of a document's shingles, by the library rensa.

    Args:
        text: the document.
        words: its words, where the caller has them.

    Returns:
        [H] the share of equal numbers in two signatures estimates the share of shingles in common (Jaccard).

    Raises:
        UserError: the library is not installed.
    """
    words = find_words(text) if words is None else words
    shingles = ngrams(words, SHINGLE).hashes_W
    if not len(shingles):  # shorter than one: the whole document is its shingle
        shingles = document_hash(text, words)[:1]
    bounds = np.array([0, len(shingles)], np.uint64)
    matrix = _minhash().digest_matrix_from_flat_token_hashes(shingles, bounds, SIGNATURE, SEED)
    return np.array(matrix.to_rows()[0], np.uint32)


def find_duplicates(
    hashes_D2: NDArray[np.uint64], signatures_DH: Signatures | None, similarity: float = 0.8
) -> Duplicates:
    """Decide over all documents, in order, which stay.

    Documents with equal hashes are one kind. Of what is left, those whose signatures agree in `similarity` of their
    numbers are linked, and whatever is linked, directly or through others, is one kind (as Lee et al. 2022 do).
    Of each kind the first stays. Pairs are looked for in bands of the signature, one band at a time, so that about 80
    bytes a document are needed beside the arrays given, which may be memory-mapped.

    Args:
        hashes_D2: [D, 2] `document_hash` of each.
        signatures_DH: [D, H] `signature` of each; None finds equal documents only.
        similarity: of near-duplicates, over 0, at most 1.
    """
    first_D = _first_equal(hashes_D2)
    numbers_D = np.arange(len(hashes_D2))
    keep_D = first_D == numbers_D
    equal = np.flatnonzero(~keep_D)
    counts = {"exact duplicates": len(equal)}
    examples = {
        "exact duplicates": [Pair(int(first_D[d]), int(d), 1.0) for d in equal[:EXAMPLES]],
    }
    if signatures_DH is not None:
        left_N = np.flatnonzero(keep_D)
        first_N = left_N[_first_similar(signatures_DH, left_N, similarity)]
        near = np.flatnonzero(first_N != left_N)
        keep_D[left_N[near]] = False
        counts["near duplicates"] = len(near)
        some = near[:EXAMPLES]
        alike = _agreement(signatures_DH, first_N[some], left_N[some])
        examples["near duplicates"] = [
            Pair(int(first_N[n]), int(left_N[n]), round(float(share), 3))
            for n, share in zip(some, alike, strict=True)
        ]
    return Duplicates(keep_D, counts, examples)


def bands(similarity: float) -> tuple[int, int]:
    """How many bands of how many numbers: the longest bands that find a pair just as similar as asked for.

    A pair of similarity s shares one of b bands of r numbers with the probability 1 - (1 - s^r)^b.
    """
    for rows in range(SIGNATURE, 1, -1):
        count = SIGNATURE // rows
        if 1 - (1 - similarity**rows) ** count >= FOUND:
            return count, rows
    return SIGNATURE, 1


@functools.cache
def _minhash() -> Any:
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise UserError(
            "near-duplicates need the package rensa, which is not installed; "
            f"pip install 'prompt-pretraining[{EXTRA}]', or ask for exact duplicates"
        ) from error
    return RMinHash


def _first_equal(hashes_D2: NDArray[np.uint64]) -> Ints:
    """[D] the first document with the same hash."""
    order = np.lexsort((hashes_D2[:, 1], hashes_D2[:, 0]))  # stable: in document order within a kind
    sorted_D2 = hashes_D2[order]
    opens = np.ones(len(order), bool)
    opens[1:] = (sorted_D2[1:] != sorted_D2[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[opens][np.cumsum(opens) - 1]
    return first


def _first_similar(signatures_DH: Signatures, left_N: Ints, similarity: float) -> Ints:
    """[N] for each document that is left, the place in `left_N` of the first of its kind."""
    root_N = np.arange(len(left_N))
    count, rows = bands(similarity)
    for band in range(count):
        order, opens = _groups(_band_keys(signatures_DH, left_N, slice(band * rows, (band + 1) * rows)))
        for _ in range(LEADERS):
            if not len(order):
                break
            leaders = order[opens][np.cumsum(opens) - 1]
            apart = root_N[order] != root_N[leaders]
            later, earlier = order[apart], leaders[apart]
            alike = _agreement(signatures_DH, left_N[earlier], left_N[later]) >= similarity
            root_N = _joined(root_N, earlier[alike], later[alike])
            order, opens = _without_leaders(order, opens, root_N)
    return root_N


def _band_keys(signatures_DH: Signatures, left_N: Ints, band: slice) -> Hashes:
    """[N] a number for what a band of each signature holds."""
    keys = np.empty(len(left_N), np.uint64)
    for low in range(0, len(left_N), PAIRS):
        block = np.ascontiguousarray(signatures_DH[left_N[low : low + PAIRS], band])
        key = np.zeros(len(block), np.uint64)
        for column in block.T:
            key = mix(key ^ column)
        keys[low : low + PAIRS] = key
    return keys


def _groups(keys: Hashes) -> tuple[Ints, NDArray[np.bool_]]:
    """Places with equal keys side by side, in order, and where each group opens; groups of one are left out."""
    order = np.argsort(keys, kind="stable")
    return _without_single(order, keys[order])


def _without_single(order: Ints, group: NDArray[Any]) -> tuple[Ints, NDArray[np.bool_]]:
    edge = np.ones(len(order) + 1, bool)
    edge[1:-1] = group[1:] != group[:-1]
    opens, closes = edge[:-1], edge[1:]
    several = ~(opens & closes)
    return order[several], opens[several]


def _without_leaders(order: Ints, opens: NDArray[np.bool_], root_N: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Groups without their first, where what is left of them is not all of one kind already."""
    group = np.cumsum(opens)[~opens]
    order, opens = _without_single(order[~opens], group)
    if not len(order):
        return order, opens
    places, roots = np.flatnonzero(opens), root_N[order]
    mixed = np.minimum.reduceat(roots, places) != np.maximum.reduceat(roots, places)
    still = mixed[np.cumsum(opens) - 1]
    return order[still], opens[still]


def _agreement(signatures_DH: Signatures, a_P: Ints, b_P: Ints) -> NDArray[np.float64]:
    """[P] share of equal numbers in the signatures of pairs of documents."""
    shares = np.empty(len(a_P))
    for low in range(0, len(a_P), PAIRS):
        pairs = slice(low, low + PAIRS)
        shares[pairs] = (signatures_DH[a_P[pairs]] == signatures_DH[b_P[pairs]]).mean(axis=1)
    return shares


def _joined(root_N: Ints, earlier: Ints, later: Ints) -> Ints:
    """Roots after pairs were linked; a root is the first document of its kind."""
    if not len(earlier):
        return root_N
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, place = np.unique(np.concatenate([root_N[earlier], root_N[later]]), return_inverse=True)
    links = coo_array(
        (np.ones(len(earlier), bool), (place[: len(earlier)], place[len(earlier) :])), shape=(len(nodes),) * 2
    )
    _, kinds = connected_components(links, directed=False)
    _, first = np.unique(
        kinds, return_index=True
    )  # nodes are sorted: the first place is the earliest document
    joined_N = np.arange(len(root_N))
    joined_N[nodes] = nodes[first][kinds]
    return joined_N[root_N]
