"""Pseudo-labels by a Hugging Face sequence classifier, in batches of similar length on an accelerator."""

from __future__ import annotations

import concurrent.futures as futures
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from corpora.calibration import softmax
from corpora.common.errors import UserError
from corpora.common.files import manifest_hash, read_json, read_manifest, write_manifest
from corpora.common.hub import hub_reachable
from corpora.linear_labeller import MAX_TOKENS
from corpora.reviews import DEFAULT_WORDS

if TYPE_CHECKING:
    from corpora.store import SentenceStore

# Released code: what a fine-tuned classifier has to be sure of. The two ends differ, all between share one.
LOWEST, BETWEEN, HIGHEST = 0.95, 0.5, 0.7
BATCH_TOKENS = {
    "cuda": 32_768,
    "cpu": 4_096,
}  # padding included: enough to fill the device, little beside weights
GROUP = 4_096  # texts to give it at a time: many batches, seconds of a GPU, a minute or two of a CPU
MULTIPLE = 8  # lengths are padded to one of these, as tensor cores like it
MAX_CHARS = (
    64 * MAX_TOKENS
)  # no text needs more to fill its tokens; a line of megabytes would be tokenised in vain
POINTER = "classifier.json"  # where a calibrated classifier's weights are

Batch = tuple[NDArray[np.int64], dict[str, Any]]  # which texts, and the model's inputs


class SequenceClassifier:
    """A Hugging Face sequence classifier; its weights stay where they are. See `corpora.labeller.Labeller`.

    Args:
        name: folder or hub name.
        words: label words, one a class.
        temperature: that its logits are divided by.
        device: "cuda:0", "cpu", ...; the first GPU where there is one, if not given.

    Raises:
        UserError: no classifier in safetensors is there, or the number of words is wrong.
    """

    linear = False
    language: str | None = None
    tokenizer: dict[str, Any] | None = None  # of a store's ids; it has its own
    reads: Literal["text"] = "text"

    def __init__(
        self,
        name: str,
        words: Sequence[str] | None = None,
        temperature: float = 1.0,
        device: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        local = not Path(name).is_dir() and not hub_reachable()
        try:
            # Weights of others are never unpickled, and their code never runs.
            model = AutoModelForSequenceClassification.from_pretrained(
                name, use_safetensors=True, local_files_only=local
            ).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
        except (OSError, ValueError) as error:
            reason = "the hub cannot be reached" if local else str(error).strip().splitlines()[0]
            raise UserError(
                f"{name} is neither a labeller's folder nor a sequence classifier in safetensors ({reason})"
            ) from error
        if self._tokenizer.pad_token_id is None:
            raise UserError(f"the tokenizer of {name} has no padding token; expected one, to read in batches")
        self.name, self.temperature = name, temperature
        self.words = self._checked(words, int(model.config.num_labels))
        self.thresholds = (LOWEST, *[BETWEEN] * (len(self.words) - 2), HIGHEST)
        self.weights_fingerprint = _fingerprint(model.state_dict())
        self.fingerprint = self.weights_fingerprint
        self.device = device or devices()[0]
        on_gpu = self.device.startswith("cuda")
        self.batch_tokens = BATCH_TOKENS["cuda" if on_gpu else "cpu"]
        self._model = model.to(self.device, torch.bfloat16 if on_gpu else torch.float32)

    def _checked(self, words: Sequence[str] | None, count: int) -> tuple[str, ...]:
        chosen = tuple(words) if words is not None else DEFAULT_WORDS.get(count)
        if chosen is None or len(chosen) != count:
            raise UserError(
                f"{self.name} has {count} classes and {len(chosen or ())} label words; "
                "give one word a class, in its order"
            )
        return chosen

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities of the classes, float32 [N, C]."""
        return next(self.predict_groups([texts]))

    def predict_units(self, store: SentenceStore, start: int, stop: int) -> NDArray[np.float32]:
        """See `Labeller.predict_units`."""
        return self.predict(list(store.texts(start, stop)))

    def predict_groups(self, groups: Iterable[Sequence[str]]) -> Iterator[NDArray[np.float32]]:
        """Classify groups of texts, one after the other.

        The device works on one group while a thread reads and tokenises the next. Batches never cross a group's
        end, so that a text's probabilities depend on nothing but its group.

        Yields:
            Probabilities of each group, float32 [N, C].
        """
        waiting = iter(groups)

        def prepare() -> tuple[int, list[Batch]] | None:
            texts = next(waiting, None)
            return None if texts is None else (len(texts), self._batches(texts))

        with futures.ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(prepare)
            while (ready := ahead.result()) is not None:
                ahead = thread.submit(prepare)
                yield self._classify(*ready)

    def _batches(self, texts: Sequence[str]) -> list[Batch]:
        """Tokenise, and put texts of similar length together: the longest first."""
        if not texts:
            return []
        ids = self._tokenizer(
            [text[:MAX_CHARS] for text in texts],
            truncation=True,
            max_length=MAX_TOKENS,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return [
            (rows, self._padded([ids[row] for row in rows.tolist()]))
            for rows in _packed(lengths, self.batch_tokens)
        ]

    def _padded(self, ids: list[list[int]]) -> dict[str, Any]:
        """Inputs [B, L] of a batch; by hand, as transformers' own padding goes value by value."""
        import torch

        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        there = np.arange(_padded_length(int(lengths.max()))) < lengths[:, None]
        input_ids = np.full(there.shape, self._tokenizer.pad_token_id, np.int64)
        input_ids[there] = np.fromiter(itertools.chain.from_iterable(ids), np.int64, int(lengths.sum()))
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(there.astype(np.int64)),
        }

    def _classify(self, n: int, batches: list[Batch]) -> NDArray[np.float32]:
        import torch

        logits_NC = np.empty((n, len(self.words)), np.float32)
        on_gpu = self.device.startswith("cuda")
        found = []
        with torch.inference_mode():
            for _, inputs in batches:
                there = {
                    # Pinned memory lets the copy overlap with the batch before.
                    key: (value.pin_memory() if on_gpu else value).to(self.device, non_blocking=on_gpu)
                    for key, value in inputs.items()
                }
                found.append(self._model(**there).logits.float())
            for (rows, _), logits in zip(batches, found, strict=True):  # the device is waited for only here
                logits_NC[rows] = logits.cpu().numpy()
        return softmax(logits_NC, self.temperature)

    def save(self, folder: Path) -> None:
        """See `Labeller.save`: by name and fingerprint."""
        fields = {**self.describe(), "name": Path(self.name).name, "classes": len(self.words)}
        write_manifest(folder, "labeller_name", fields)

    def describe(self) -> dict[str, Any]:
        """See `Labeller.describe`."""
        return {
            "words": list(self.words),
            "fingerprint": self.fingerprint,
            "linear": False,
            "reads": "text",
            "temperature": self.temperature,
        }


def load_calibrated(folder: Path, device: str | None = None) -> SequenceClassifier:
    """A classifier with the temperature that `calibrate` fitted.

    Raises:
        UserError: the classifier is gone, or is no longer the one that was calibrated.
    """
    manifest = read_manifest(folder, "labeller")
    name = read_json(folder / POINTER)["name"]
    labeller = SequenceClassifier(name, manifest["words"], manifest["temperature"], device)
    if labeller.weights_fingerprint != manifest["classifier"]:
        raise UserError(f"{name} is not the classifier that {folder} was calibrated for; calibrate it again")
    labeller.fingerprint = manifest_hash(folder)
    return labeller


def devices() -> list[str]:
    """The accelerators of this machine, or its CPU."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def _packed(lengths_N: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Rows of one batch after the other, longest first: rows times padded length stays within the budget."""
    order = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, budget // _padded_length(int(lengths_N[order[start]])))
        yield order[start:stop]
        start = stop


def _padded_length(longest: int) -> int:
    return -(-max(longest, 1) // MULTIPLE) * MULTIPLE


def _fingerprint(state: dict[str, Any]) -> str:
    """SHA-256 over names, shapes, dtypes and the first values of each tensor: seconds at any size."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten()[:1024].float().cpu().numpy().tobytes())
    return digest.hexdigest()
