"""Fixtures that every package's tests share: a small text, its vocabulary, a small random backbone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: tests run several at a time on small machines and never reach for a hub.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from corpora.common.rng import generator

if TYPE_CHECKING:
    from corpora.tokenizer import Tokenizer
    from pretrain.backbone import Backbone

TOPICS = {
    "river": ["boat", "water", "fish", "bridge", "bank", "stone", "mill", "flood"],
    "garden": ["rose", "seed", "bee", "spade", "apple", "wall", "rain", "path"],
    "kitchen": ["bread", "soup", "knife", "oven", "salt", "table", "spoon", "fire"],
    "railway": ["train", "track", "signal", "ticket", "platform", "engine", "guard", "whistle"],
}
VERBS = ["found", "moved", "cleaned", "carried", "watched", "left", "painted", "counted"]
ACTORS = ["Anna", "Tom", "the old man", "my sister", "a visitor", "the captain"]
WORDS_OF_LABELS = "no maybe yes terrible bad good great ? . ; The correct one is It was question:"

WORDS_OF_STARS = {
    "terrible": ["awful", "worst", "broken"],
    "bad": ["poor", "weak", "dull"],
    "maybe": ["plain", "usual", "fair"],
    "good": ["nice", "pleasant", "useful"],
    "great": ["superb", "perfect", "wonderful"],
}


def made_documents(n: int, seed: int = 0) -> list[list[str]]:
    """`n` documents of 7 to 12 short sentences, each about one topic."""
    documents = []
    for number in range(n):
        rng = generator(seed, "made_documents", number)
        topic = str(rng.choice(list(TOPICS)))
        sentences = []
        for _ in range(int(rng.integers(7, 13))):
            actor, verb = rng.choice(ACTORS), rng.choice(VERBS)
            one, two = rng.choice(TOPICS[topic], size=2, replace=False)
            text = f"{actor} {verb} the {one} near the {two} of the {topic}."
            sentences.append(text[0].upper() + text[1:])
        documents.append(sentences)
    return documents


@pytest.fixture(scope="session")
def pocket_docs() -> list[list[str]]:
    """200 made documents, each a list of sentences."""
    return made_documents(200)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, pocket_docs: list[list[str]]) -> Path:
    """The made documents as plain text: a sentence a line, an empty line between documents."""
    path = tmp_path_factory.mktemp("text") / "documents.txt"
    path.write_text("\n\n".join("\n".join(document) for document in pocket_docs) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with a small sentencepiece vocabulary in T5's layout, as `Tokenizer.save` writes it."""
    import sentencepiece

    from corpora.tokenizer import REQUIRED_PIECES, Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    training = folder / "training.txt"
    training.write_text(
        text_file.read_text(encoding="utf-8") + (WORDS_OF_LABELS + "\n") * 50, encoding="utf-8"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(training),
        model_prefix=str(folder / "made"),
        vocab_size=200,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        required_chars="".join(REQUIRED_PIECES),
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    out = folder / "saved"
    Tokenizer.load(folder / "made.model").save(out)
    return out


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    """The small vocabulary, loaded."""
    from corpora.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer_dir)


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, tokenizer: Tokenizer) -> Path:
    """A random T5 1.1 (gated, untied head) of width 32 with the small vocabulary beside it."""
    import shutil

    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=tokenizer.size,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        dropout_rate=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = T5ForConditionalGeneration(config)
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    shutil.copytree(tokenizer_dir, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(backbone_dir: Path) -> Backbone:
    """The small random T5, loaded for the tests of one file."""
    from pretrain.backbone import load_backbone

    return load_backbone(backbone_dir)


@pytest.fixture(scope="session")
def build_dir(
    tmp_path_factory: pytest.TempPathFactory,
    text_file: Path,
    tokenizer_dir: Path,
    pocket_docs: list[list[str]],
) -> Path:
    """Task corpora of all four formats, as `ppt corpora build` makes them; the labeller learnt from made reviews."""
    from corpora.build import build
    from corpora.build_settings import BuildSettings
    from corpora.label_training import train

    folder = tmp_path_factory.mktemp("build")
    rng = generator(0, "made reviews")
    reviews = []
    for number in range(300):
        word = list(WORDS_OF_STARS)[number % 5]
        sentence = pocket_docs[number % len(pocket_docs)][0]
        reviews.append({"text": f"{sentence} It was {rng.choice(WORDS_OF_STARS[word])}.", "label": word})
    (folder / "reviews.jsonl").write_text(
        "\n".join(json.dumps(row) for row in reviews) + "\n", encoding="utf-8"
    )
    train(folder / "reviews.jsonl", folder / "labeller", language="en")
    build(
        BuildSettings(
            text=[str(text_file)],
            tokenizer=str(tokenizer_dir),
            out=str(folder / "corpora"),
            labeller=str(folder / "labeller"),
            language="en",
        )
    )
    return folder / "corpora"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that `PPT_DATA` names; the test is skipped where it is unset."""
    folder = os.environ.get("PPT_DATA")
    if not folder:
        pytest.skip("PPT_DATA is unset: no real data on this machine")
    return Path(folder)
