"""Fixtures of the tests of corpora."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from corpora.build_settings import BuildSettings
from corpora.common.errors import PPTError
from corpora.common.files import hash_file, write_manifest
from corpora.common.rng import generator
from corpora.label_training import train
from corpora.store import SentenceStore
from corpora.store_writer import Units, counts_of, join_arrays, store_manifest
from corpora.tokenizer import Tokenizer

NOBODY = 65534
SAID = ("terrible awful", "bad poor", "so so", "good nice", "great superb")
NOUNS = ("boat", "rose", "bread", "train", "water", "fish", "seed", "bee")


def _drop_and_run(
    action: Callable[[], object], results: multiprocessing.SimpleQueue[tuple[int, str]]
) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        action()
    except PPTError as error:
        results.put((error.exit_code, str(error)))
    except BaseException as error:
        results.put((-1, repr(error)))
    else:
        results.put((0, ""))


@pytest.fixture
def without_rights(tmp_path: Path) -> Callable[[Callable[[], object]], tuple[int, str]]:
    """Run an action as a user without rights and give its exit code and message (root may do everything)."""

    def run(action: Callable[[], object]) -> tuple[int, str]:
        if os.getuid() != 0:
            try:
                action()
            except PPTError as error:
                return error.exit_code, str(error)
            return 0, ""
        for folder in (tmp_path, *tmp_path.parents):  # pytest closes its own folders to others
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o1:
                folder.chmod(folder.stat().st_mode | 0o11)
        context = multiprocessing.get_context("fork")  # what is imported stays imported
        results = context.SimpleQueue()
        child = context.Process(target=_drop_and_run, args=(action, results))
        child.start()
        answer: tuple[int, str] = results.get()
        child.join()
        return answer

    return run


@pytest.fixture(scope="session")
def made_store() -> Callable[..., SimpleNamespace]:
    """Make the arrays of a store, without files: random token ids, or the ids that a test gives.

    `made_store(docs)` takes a list of documents, each a list of units: a number of tokens (random ids), a list of
    ids, or None for a unit that was dropped before it reached the store (it leaves a gap in the positions).
    """

    def make(docs: Sequence[Sequence[int | Sequence[int] | None]], chars: int = 40) -> SimpleNamespace:
        rng = generator(5, "made_store")
        ids, position, sizes = [], [], []
        for doc in docs:
            there = [(place, unit) for place, unit in enumerate(doc) if unit is not None]
            sizes.append(len(there))
            for place, unit in there:
                position.append(place)
                ids.append(rng.integers(10, 30_000, unit) if isinstance(unit, int) else np.array(unit))
        lengths = np.array([len(one) for one in ids], np.int32)
        tokens = np.concatenate([np.empty(0, np.int64), *ids]).astype(np.uint16)
        unit_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return SimpleNamespace(
            n_units=len(ids),
            n_docs=len(docs),
            tokens=tokens,
            unit_offsets=unit_offsets,
            lengths=lengths,
            position=np.array(position, np.int32),
            n_chars=np.full(len(ids), chars, np.int32),
            doc_of_unit=np.repeat(np.arange(len(docs)), sizes),
            doc_offsets=np.concatenate([[0], np.cumsum(sizes)]),
            unit_ids=lambda unit: tokens[unit_offsets[unit] : unit_offsets[unit + 1]],
        )

    return make


@pytest.fixture(scope="session")
def write_store(tokenizer: Tokenizer) -> Callable[..., SentenceStore]:
    """Write a small store from the units of some documents, without a build: `write_store(folder, documents)`."""

    def write(folder: Path, documents: Sequence[Sequence[str]], keep_text: bool = True) -> SentenceStore:
        units = Units.of(documents, tokenizer)
        folder.mkdir(parents=True)
        arrays = (units if keep_text else units.without_text()).arrays(tokenizer.dtype)
        join_arrays([arrays], folder, [0])
        write_manifest(folder, "store", store_manifest(tokenizer, counts_of(arrays), keep_text))
        return SentenceStore.open(folder)

    return write


STARS = (
    "awful horrible broken",
    "poor weak slow",
    "average okay usual",
    "nice fine tasty",
    "superb perfect wonderful",
)  # words that give a made review away, by its class


@pytest.fixture(scope="session")
def star_reviews() -> Callable[..., list[dict[str, Any]]]:
    """`star_reviews(n, classes)`: made reviews, their classes in turn, each given away by two words."""

    def make(n: int, classes: int = 5) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for i in range(n):
            rng, label = generator(0, "reviews", i), i % classes
            said = " ".join(rng.choice(STARS[label].split(), 2))
            rows.append(
                {"text": f"the {rng.choice(['soup', 'room', 'train'])} was {said} today", "label": label}
            )
        return rows

    return make


@pytest.fixture(scope="session")
def jsonl() -> Callable[[Path, Sequence[dict[str, Any]]], Path]:
    """`jsonl(path, rows)` writes rows as JSON lines and gives the path."""

    def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def classifier_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT that tells five classes apart, of words of the made reviews."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("classifier") / "tiny"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(STARS).split(), *NOUNS, "the", "was"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=5,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def labeller_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labeller whose classes the made documents' words meet now and then."""
    folder = tmp_path_factory.mktemp("labeller")
    rows = [
        {
            "text": f"The {NOUNS[(i * 7 + label) % 8]} near the {NOUNS[i % 8]} was {SAID[label]}.",
            "label": label,
        }
        for i in range(20)
        for label in range(5)
    ]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(folder / "reviews.jsonl", folder / "labeller")
    return folder / "labeller"


@pytest.fixture
def settings_of(
    tmp_path: Path, text_file: Path, tokenizer_dir: Path, labeller_dir: Path
) -> Callable[..., BuildSettings]:
    """Makes settings of a small build in the folder `out`, with any changes."""

    def make(out: str, **changes: object) -> BuildSettings:
        values: dict[str, object] = {
            "text": [str(text_file)],
            "tokenizer": str(tokenizer_dir),
            "out": str(tmp_path / out),
            "labeller": str(labeller_dir),
            "validation": 0.2,
            "part_bytes": 20_000,
        }
        return BuildSettings.model_validate(values | changes)

    return make


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """Gives every file of a folder with the hash of its bytes."""

    def hashes(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hash_file(path) for path in files}

    return hashes


@pytest.fixture(scope="session")
def train_model(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Callable[..., Path]:
    """Train a small sentencepiece model with the options given."""
    import sentencepiece

    def train(text: str = "", **options: object) -> Path:
        folder = tmp_path_factory.mktemp("model")
        (folder / "text").write_text(text or text_file.read_text(encoding="utf-8"), encoding="utf-8")
        settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 150} | options
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"),
            model_prefix=str(folder / "made"),
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            **settings,
        )
        return folder / "made.model"

    return train


@pytest.fixture
def died() -> Callable[[Callable[[], object], int], int]:
    """Does something in a child process that is killed at one of its renames, and says how the child ended."""

    def die(action: Callable[[], object], replace: int) -> int:
        """Do something in a child process that is killed before (even) or after (odd) one of its renames; 0: it was done."""
        child = os.fork()
        if child == 0:
            real, count = os.replace, 0

            def killing(*args: object) -> None:
                nonlocal count
                if count == replace // 2 and replace % 2 == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(*args)  # type: ignore[arg-type]
                if count == replace // 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

            os.replace = killing  # type: ignore[assignment]
            try:
                action()
            finally:
                os._exit(0)
        return os.waitpid(child, 0)[1]

    return die
