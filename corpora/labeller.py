"""Pseudo-labels for single texts: the face of every labeller, and how one is loaded.

Linear ones (`corpora.linear_labeller`) are trained on star reviews by `corpora.label_training`; a Hugging Face
sequence classifier (`corpora.sequence_labeller`) is taken by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.files import read_manifest
from corpora.linear_labeller import TextLabeller, TokenLabeller
from corpora.sequence_labeller import SequenceClassifier, load_calibrated
from corpora.store import SentenceStore


class Labeller(Protocol):
    """What gives each unit of a store a probability for each class."""

    @property
    def words(self) -> tuple[str, ...]:
        """Label words, one a class, from the lowest to the highest."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 that changes when predictions may."""
        ...

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Probability that a class needs to be kept, or None where the surest of each are kept, unless asked."""
        ...

    @property
    def linear(self) -> bool:
        """Whether it is array work for every core; if not, it runs on the machine's accelerators."""
        ...

    @property
    def reads(self) -> Literal["tokens", "text"]:
        """What of a store it reads; "text" needs a store that keeps it."""
        ...

    @property
    def language(self) -> str | None:
        """ "en" or "zh" where it is known to read only texts like these."""
        ...

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        """Name and fingerprint of the tokenizer whose ids it reads."""
        ...

    def predict_units(self, store: SentenceStore, start: int, stop: int) -> NDArray[np.float32]:
        """Probabilities of the classes for units `start` to `stop` (not included), float32 [N, C]."""
        ...

    def save(self, folder: Path) -> None:
        """Record it in an existing folder: whole if it is small, else by name and fingerprint."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a manifest says of it."""
        ...


def load_labeller(name: str | Path, words: Sequence[str] | None = None) -> Labeller:
    """Load a labeller.

    Args:
        name: a folder made by `train` or `calibrate`, or the folder or hub name of a Hugging Face sequence classifier.
        words: label words of a sequence classifier's classes, in its order; the default is five stars
            (terrible, bad, maybe, good, great), or bad, (maybe,) good for fewer classes.

    Raises:
        UserError: nothing of that kind is there, or the number of words is wrong.
    """
    folder = Path(name)
    if not (folder / "manifest.json").exists():
        return SequenceClassifier(str(name), words)
    analyzer = read_manifest(folder, "labeller")["analyzer"]
    labeller: Labeller
    if analyzer == "classifier":
        labeller = load_calibrated(folder)
    else:
        labeller = TokenLabeller(folder) if analyzer == "token" else TextLabeller(folder)
    if words is not None and tuple(words) != labeller.words:
        raise UserError(f"{name} was trained with the words {labeller.words}, not {tuple(words)}")
    return labeller


def check_tokenizer(labeller: Labeller, name: str, fingerprint: str) -> None:
    """Refuse a labeller of token ids on the ids of another vocabulary.

    Args:
        labeller: any.
        name: of the tokenizer whose ids are to be labelled.
        fingerprint: of that tokenizer.

    Raises:
        UserError: it reads ids of another one, naming both.
    """
    own = labeller.tokenizer
    if own is not None and own["fingerprint"] != fingerprint:
        raise UserError(
            f"the labeller reads token ids of {own['name']} (fingerprint {own['fingerprint'][:12]}), the text has those "
            f"of {name} (fingerprint {fingerprint[:12]}); train it with that tokenizer, or without one to read text"
        )
