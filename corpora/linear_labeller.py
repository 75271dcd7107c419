"""Linear pseudo-labellers: of token ids that a store holds already, or of text where no vocabulary was given.

Both are logistic regressions trained by `corpora.label_training`, saved as safetensors and JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from corpora.calibration import softmax
from corpora.common.errors import UserError
from corpora.common.files import hash_file, manifest_hash, read_json, read_manifest

if TYPE_CHECKING:
    from corpora.store import SentenceStore

MAX_TOKENS = 256  # of a text are classified (released code)
STEP = 2_000  # texts unpacked and read at a time

_WORD = re.compile(r"\w\w+")


class LinearLabeller:
    """What both have in common; see `corpora.labeller.Labeller` for the attributes.

    Args:
        folder: as `train` wrote it.

    Raises:
        UserError: the folder holds no labeller, or weights that its manifest does not name.
    """

    linear = True
    thresholds = None  # a linear model on other text is hardly ever as sure as those of the released code ask
    files: tuple[str, ...] = ("model.safetensors", "manifest.json")

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self.folder = folder
        self.manifest = read_manifest(folder, "labeller")
        self.words: tuple[str, ...] = tuple(self.manifest["words"])
        self.fingerprint = manifest_hash(folder)
        self.language: str | None = self.manifest["language"]
        self.tokenizer: dict[str, Any] | None = self.manifest.get("tokenizer")
        self.temperature = float(self.manifest["temperature"])
        model = folder / "model.safetensors"
        if not model.exists() or self.manifest["model"] != hash_file(model):
            raise UserError(f"{model} is not the file its manifest names; train it again")
        self._tensors: dict[str, NDArray[Any]] = load_file(model)

    def save(self, folder: Path) -> None:
        """See `Labeller.save`: whole."""
        for name in self.files:
            (folder / name).write_bytes((self.folder / name).read_bytes())

    def describe(self) -> dict[str, Any]:
        """See `Labeller.describe`."""
        return {
            "words": list(self.words),
            "fingerprint": self.fingerprint,
            "linear": True,
            "reads": "tokens" if self.tokenizer is not None else "text",
            "temperature": self.temperature,
            "agreement": self.manifest.get("agreement"),
        }


class TokenLabeller(LinearLabeller):
    """Logistic regression over token ids and pairs of neighbouring ids.

    A unit's logits are the sum of the weights of its ids and of its pairs, divided by the square root of its length;
    idf is folded into the weights. Nothing needs distinct ids, so that labels are gathers and sums over flat arrays.
    """

    reads: Literal["tokens"] = "tokens"

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        super().__init__(folder)
        self._id_weights_VC, self._bias_C = self._tensors["id_weights"], self._tensors["bias"]
        weights_FC = self._tensors["pair_weights"]
        # One row more, of zeros, for pairs that training did not see and for the last id of a unit.
        self._pair_weights_FC = np.concatenate([weights_FC, np.zeros((1, len(self.words)), np.float32)])
        self._pairs = pa.array(self._tensors["pairs"])

    def predict_ids(self, tokens: NDArray[np.integer], offsets: NDArray[np.integer]) -> NDArray[np.float32]:
        """Probabilities of the classes, float32 [N, C].

        Args:
            tokens: ids [T], end to end.
            offsets: [N + 1] where each unit starts in `tokens`, and where the last ends.
        """
        from scipy.sparse import csr_matrix

        ids_T, starts = first_tokens(tokens, offsets)
        ones = np.ones(len(ids_T), np.float32)
        logits_NC = np.zeros((len(starts) - 1, len(self.words)), np.float32)
        for columns, weights in (
            (ids_T.astype(np.int32), self._id_weights_VC),
            (self._pair_rows(ids_T, starts), self._pair_weights_FC),
        ):
            shape = (len(starts) - 1, len(weights))
            logits_NC += csr_matrix((ones, columns, starts.astype(np.int32)), shape) @ weights
        logits_NC /= np.sqrt(np.maximum(np.diff(starts), 1), dtype=np.float32)[:, None]
        return softmax(logits_NC + self._bias_C, self.temperature)

    def predict_units(self, store: SentenceStore, start: int, stop: int) -> NDArray[np.float32]:
        """See `Labeller.predict_units`."""
        return self.predict_ids(store.tokens, store.unit_offsets[start : stop + 1])

    def _pair_rows(self, ids_T: NDArray[np.integer], starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """[T] for each id the row of the weights of the pair that it begins."""
        import pyarrow as pa
        import pyarrow.compute as pc

        none = len(self._pair_weights_FC) - 1
        rows_T = np.full(len(ids_T), none, np.int32)
        if len(ids_T) > 1:
            found = pc.index_in(pa.array(pair_keys(ids_T)), value_set=self._pairs)
            rows_T[:-1] = found.fill_null(none).to_numpy(zero_copy_only=False)
        rows_T[starts[1:][np.diff(starts) > 0] - 1] = none
        return rows_T


class TextLabeller(LinearLabeller):
    """Logistic regression over TF-IDF of words and pairs of words, or of up to three characters where the language
    puts no spaces between words."""

    reads: Literal["text"] = "text"
    files = ("model.safetensors", "vocabulary.json", "manifest.json")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._weights_FC, self._bias_C = self._tensors["weights"], self._tensors["bias"]
        self._analyzer: str = self.manifest["analyzer"]
        self._vectorizer = text_vectorizer(self._analyzer)
        vocabulary = read_json(folder / "vocabulary.json")
        self._vectorizer.vocabulary = {feature: index for index, feature in enumerate(vocabulary)}
        self._vectorizer.idf_ = self._tensors["idf"]

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities of the classes, float32 [N, C]."""
        if not texts:
            return np.empty((0, len(self.words)), np.float32)
        features_NF = self._vectorizer.transform([head(text, self._analyzer) for text in texts])
        return softmax(features_NF @ self._weights_FC + self._bias_C, self.temperature)

    def predict_units(self, store: SentenceStore, start: int, stop: int) -> NDArray[np.float32]:
        """See `Labeller.predict_units`."""
        found = [np.empty((0, len(self.words)), np.float32)]
        for first in range(start, stop, STEP):
            found.append(self.predict(list(store.texts(first, min(first + STEP, stop)))))
        return np.concatenate(found)


def first_tokens(
    tokens: NDArray[np.integer], offsets: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """The first `MAX_TOKENS` ids of each unit.

    Args:
        tokens: ids, end to end.
        offsets: [N + 1] where units start and the last ends.

    Returns:
        Ids [T], end to end, and [N + 1] where each unit starts among them.
    """
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, MAX_TOKENS)
    starts = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    if (kept == lengths).all():
        return tokens[offsets[0] : offsets[-1]], starts
    index = np.repeat(offsets[:-1] - starts[:-1], kept) + np.arange(starts[-1])
    return tokens[index], starts


def pair_keys(ids_T: NDArray[np.integer]) -> NDArray[np.uint64]:
    """One number for each pair of neighbouring ids, uint64 [T - 1]; ids are below 2^32."""
    wide = ids_T.astype(np.uint64)
    keys = wide[:-1] << np.uint64(32)
    keys |= wide[1:]
    return keys


def head(text: str, analyzer: str) -> str:
    """The first `MAX_TOKENS` words (characters, for the analyzer `char`) of a text."""
    if analyzer == "char":
        return text[:MAX_TOKENS]
    if len(text) <= 2 * MAX_TOKENS:  # too short to hold more words than that
        return text
    for count, match in enumerate(_WORD.finditer(text), 1):
        if count == MAX_TOKENS:
            return text[: match.end()]
    return text


def text_vectorizer(analyzer: str, min_df: int = 1) -> Any:
    """scikit-learn's TF-IDF over words and their pairs, or up to three characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=(1, 2) if analyzer == "word" else (1, 3),
        token_pattern=_WORD.pattern if analyzer == "word" else None,
        min_df=min_df,
        sublinear_tf=True,
        dtype=np.float32,
    )
