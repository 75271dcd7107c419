"""Pseudo-labels for single texts: a classifier trained on star reviews, or any sequence classifier by name.

The default is a linear model over TF-IDF of words and pairs of words (of characters, where the language puts no
spaces between words), saved as safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corpora.common.errors import UserError
from corpora.common.files import (
    atomic_folder,
    hash_file,
    library_versions,
    manifest_hash,
    read_json,
    read_manifest,
    write_bytes_atomic,
    write_json,
    write_manifest,
)
from corpora.common.hub import hub_reachable
from corpora.common.progress import say
from corpora.common.rng import generator
from corpora.documents import find_sources
from corpora.reviews import Review, read_reviews
from corpora.segment import Language, detect_language

FIVE_WORDS = ("terrible", "bad", "maybe", "good", "great")  # one to five stars
DEFAULT_WORDS = {2: ("bad", "good"), 3: ("bad", "maybe", "good"), 5: FIVE_WORDS}
MAX_TOKENS = 256  # of a text are classified (released code)
HELD_OUT = 0.1  # of the reviews, where no test file is given
# Released code: what a fine-tuned classifier has to be sure of. The two ends differ, all between share one.
LOWEST, BETWEEN, HIGHEST = 0.95, 0.5, 0.7
BATCH = 32  # texts a forward pass of a sequence classifier

_WORD = re.compile(r"\w\w+")


@dataclass(frozen=True)
class Report:
    """How good a labeller is on reviews that it did not see."""

    accuracy: float
    majority: float  # accuracy of always saying the most frequent class of the held-out reviews
    n_train: int
    n_test: int
    per_class: tuple[float, ...]  # recall of each class

    def line(self) -> str:
        """One readable line."""
        recalls = ", ".join(f"{recall:.2f}" for recall in self.per_class)
        return (
            f"held-out accuracy {self.accuracy:.4f} beside {self.majority:.4f} for the most frequent class "
            f"({self.n_test} reviews held out, {self.n_train} trained on; recall by class {recalls})"
        )


class Labeller(ABC):
    """What gives each text a probability for each class.

    Attributes:
        words: label words, one a class, from the lowest to the highest.
        fingerprint: SHA-256 that changes when predictions may.
        thresholds: probability that a class needs to be kept, or None where the surest of each are kept.
        linear: whether it is the linear model, which may run in many processes at once.
        language: "en" or "zh" where it is known to read only texts like these.
    """

    words: tuple[str, ...]
    fingerprint: str
    thresholds: tuple[float, ...] | None
    linear: bool
    language: str | None = None

    @staticmethod
    def load(name: str | Path, words: Sequence[str] | None = None) -> Labeller:
        """Load a labeller.

        Args:
            name: a folder made by `train`, or the folder or hub name of a Hugging Face sequence classifier.
            words: label words of a sequence classifier's classes, in its order; the default is five stars
                (terrible, bad, maybe, good, great), or bad, (maybe,) good for fewer classes.

        Raises:
            UserError: nothing of that kind is there, or the number of words is wrong.
        """
        if (Path(name) / "manifest.json").exists():
            labeller: Labeller = LinearLabeller(Path(name))
            if words is not None and tuple(words) != labeller.words:
                raise UserError(f"{name} was trained with the words {labeller.words}, not {tuple(words)}")
            return labeller
        return SequenceClassifier(str(name), words)

    @abstractmethod
    def predict(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Probabilities of the classes, float32 [N, C]."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Record it in an existing folder: whole if it is small, else by name and fingerprint."""

    def describe(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"words": list(self.words), "fingerprint": self.fingerprint, "linear": self.linear}


class LinearLabeller(Labeller):
    """Logistic regression over TF-IDF features; see `train`."""

    linear = True
    thresholds = None  # a linear model on other text is hardly ever as sure as those of the released code ask

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self.folder = folder
        self.manifest = read_manifest(folder, "labeller")
        self.words = tuple(self.manifest["words"])
        self.fingerprint = manifest_hash(folder)
        self.language = "zh" if self.manifest["analyzer"] == "char" else "en"
        tensors = load_file(folder / "model.safetensors")
        if self.manifest["model"] != hash_file(folder / "model.safetensors"):
            raise UserError(f"{folder}/model.safetensors is not the file its manifest names; train it again")
        self._weights_FC, self._bias_C = tensors["weights"], tensors["bias"]
        self._vectorizer = _vectorizer(self.manifest["analyzer"])
        vocabulary = read_json(folder / "vocabulary.json")
        self._vectorizer.vocabulary = {feature: index for index, feature in enumerate(vocabulary)}
        self._vectorizer.idf_ = tensors["idf"]

    def predict(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `Labeller.predict`."""
        if not texts:
            return np.empty((0, len(self.words)), np.float32)
        features_NF = self._vectorizer.transform([head(text, self.manifest["analyzer"]) for text in texts])
        return _softmax(features_NF @ self._weights_FC + self._bias_C)

    def save(self, folder: Path) -> None:
        """See `Labeller.save`."""
        for name in ("model.safetensors", "vocabulary.json", "manifest.json"):
            (folder / name).write_bytes((self.folder / name).read_bytes())


class SequenceClassifier(Labeller):
    """A Hugging Face sequence classifier; its weights stay where they are."""

    linear = False

    def __init__(self, name: str, words: Sequence[str] | None = None) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        local = not Path(name).is_dir() and not hub_reachable()
        try:
            # Weights of others are never unpickled, and their code never runs.
            self._model = AutoModelForSequenceClassification.from_pretrained(
                name, use_safetensors=True, local_files_only=local
            ).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
        except (OSError, ValueError) as error:
            reason = "the hub cannot be reached" if local else str(error).strip().splitlines()[0]
            raise UserError(
                f"{name} is neither a labeller's folder nor a sequence classifier in safetensors ({reason})"
            ) from error
        self.name = name
        count = int(self._model.config.num_labels)
        chosen = tuple(words) if words is not None else DEFAULT_WORDS.get(count)
        if chosen is None or len(chosen) != count:
            raise UserError(
                f"{name} has {count} classes and {len(chosen or ())} label words; give one word a class, in its order"
            )
        self.words = chosen
        self.thresholds = (LOWEST, *[BETWEEN] * (count - 2), HIGHEST)
        self.fingerprint = _fingerprint(self._model.state_dict())

    def predict(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `Labeller.predict`; on the GPU where there is one."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = self._model.to(device)
        found = [np.empty((0, len(self.words)), np.float32)]
        for start in range(0, len(texts), BATCH):
            inputs = self._tokenizer(
                list(texts[start : start + BATCH]),
                truncation=True,
                max_length=MAX_TOKENS,
                padding=True,
                return_tensors="pt",
            ).to(device)
            with torch.inference_mode():
                found.append(model(**inputs).logits.float().softmax(-1).cpu().numpy())
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """See `Labeller.save`."""
        fields = {**self.describe(), "name": Path(self.name).name, "classes": len(self.words)}
        write_manifest(folder, "labeller_name", fields)


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


def train(
    reviews: str | Path,
    out: str | Path,
    test: str | Path | None = None,
    words: Sequence[str] | None = None,
    language: Language = "auto",
    seed: int = 0,
) -> Report:
    """Train the linear labeller and print how good it is.

    Args:
        reviews: JSONL or CSV (plain or compressed) with the fields `text` and `label`: 0, 1, ... from the lowest
            class up, or the class's word.
        out: folder to write; must not exist.
        test: reviews to measure on; a tenth of `reviews`, drawn by `seed`, where not given.
        words: a label word a class; terrible, bad, maybe, good, great where not given.
        language: "zh" reads characters and their pairs and triples, "en" words and their pairs.
        seed: of the split.

    Raises:
        UserError: a bad line or an unknown label, with file and line; a class without reviews; `out` exists.
    """
    words = tuple(words or FIVE_WORDS)
    if len(words) < 2 or len(set(words)) < len(words):
        raise UserError(f"label words are {', '.join(words)}; expected at least two, all different")
    if Path(out).exists():
        raise UserError(f"{out} already exists; remove it or choose another folder")
    rows = read_reviews(reviews, words)
    held_out = read_reviews(test, words) if test is not None else []
    if test is None:
        order = generator(seed, "labeller", "held-out").permutation(len(rows))
        n_test = round(HELD_OUT * len(rows))
        rows, held_out = [rows[i] for i in sorted(order[n_test:])], [rows[i] for i in sorted(order[:n_test])]
    counts = np.bincount([row.label for row in rows], minlength=len(words))
    if (counts == 0).any() or not held_out:
        empty = [words[c] for c in np.flatnonzero(counts == 0)]
        raise UserError(
            f"{reviews}: no reviews of class {', '.join(empty)}; every class needs some (give the words of fewer classes?)"
            if empty
            else f"{reviews}: {len(rows)} reviews are too few to hold any out"
        )
    sample = "".join(row.text for row in rows[:1000])
    spaced = (detect_language(sample) if language == "auto" else language) == "en"
    analyzer = "word" if spaced else "char"

    vectorizer, weights_FC, bias_C = _fit(rows, analyzer)
    origin = {
        "words": list(words),
        "classes": len(words),
        "analyzer": analyzer,
        "seed": seed,
        "reviews": [find_sources([path])[0].identity() for path in (reviews, test) if path is not None],
        "trained_on": {word: int(count) for word, count in zip(words, counts, strict=True)},
        "versions": library_versions("scikit-learn", "numpy"),
    }
    with atomic_folder(out) as folder:
        _write_linear(folder, vectorizer, weights_FC, bias_C, origin)
        report = _measure(LinearLabeller(folder), rows, held_out)
        fields = read_manifest(folder, "labeller")
        fields |= {"accuracy": report.accuracy, "majority": report.majority, "held_out": report.n_test}
        write_json(folder / "manifest.json", fields)
    say(report.line())
    return report


def _fit(
    rows: Sequence[Review], analyzer: str
) -> tuple[Any, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Fit vectorizer and weights [F, C], bias [C].

    Classes weigh the same. Reviews are skewed (45 % five stars in ours), raw text is not: unweighted, news gets
    `bad` four times in 11,581 units, weighted 625 times, for 0.02 of accuracy on reviews.
    """
    from sklearn.linear_model import LogisticRegression

    vectorizer = _vectorizer(analyzer, min_df=2 if len(rows) >= 200 else 1)
    features_NF = vectorizer.fit_transform([head(row.text, analyzer) for row in rows])
    model = LogisticRegression(C=4.0, class_weight="balanced", max_iter=500)
    model.fit(features_NF, [row.label for row in rows])
    weights_CF, bias_C = model.coef_, model.intercept_
    if len(weights_CF) == 1:  # two classes: scikit-learn keeps the second one's odds
        weights_CF, bias_C = np.concatenate([-weights_CF, weights_CF]) / 2, np.array([-1, 1]) * bias_C / 2
    return vectorizer, np.ascontiguousarray(weights_CF.T, np.float32), bias_C.astype(np.float32)


def _write_linear(
    folder: Path,
    vectorizer: Any,
    weights_FC: npt.NDArray[np.float32],
    bias_C: npt.NDArray[np.float32],
    origin: dict[str, Any],
) -> None:
    from safetensors.numpy import save

    idf = np.asarray(vectorizer.idf_, np.float32)
    tensors = {"weights": weights_FC, "bias": bias_C, "idf": idf}
    write_bytes_atomic(folder / "model.safetensors", save(tensors))
    features = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
    write_json(folder / "vocabulary.json", features)
    write_manifest(folder, "labeller", {**origin, "model": hash_file(folder / "model.safetensors")})


def _measure(labeller: Labeller, rows: Sequence[Review], held_out: Sequence[Review]) -> Report:
    labels = np.array([row.label for row in held_out])
    predicted = labeller.predict([row.text for row in held_out]).argmax(1)
    classes = range(len(labeller.words))
    return Report(
        accuracy=float((predicted == labels).mean()),
        majority=float(np.bincount(labels).max() / len(labels)),
        n_train=len(rows),
        n_test=len(held_out),
        per_class=tuple(float((predicted[labels == c] == c).mean()) if c in labels else 0.0 for c in classes),
    )


def _vectorizer(analyzer: str, min_df: int = 1) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=(1, 2) if analyzer == "word" else (1, 3),
        token_pattern=_WORD.pattern if analyzer == "word" else None,
        min_df=min_df,
        sublinear_tf=True,
        dtype=np.float32,
    )


def _softmax(logits_NC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def _fingerprint(state: dict[str, Any]) -> str:
    """SHA-256 over names, shapes, dtypes and the first values of each tensor: seconds at any size."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten()[:1024].float().cpu().numpy().tobytes())
    return digest.hexdigest()
