"""What the pre-training benches train on: shapes of T5, random weights of them, and a build of real or generated text."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corpora.common.rng import generator

GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # T5 1.1
# Raffel et al. 2020 (T5 1.0: small and base) and the config.json of T5 1.1 (large, XXL): width, width of a head, heads, feed-forward, layers a stack.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2},
    "t5-small": {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 2048, "num_layers": 6},
    "t5-base": {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12},
    "tiny-gated": {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2, **GATED},
    "t5-1.1-small": {"d_model": 512, "d_kv": 64, "num_heads": 6, "d_ff": 1024, "num_layers": 8, **GATED},
    "t5-large": {"d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2816, "num_layers": 24, **GATED},
    "t5-xxl": {"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24, **GATED},
}
VOCABULARY = 32_128  # rows of T5's embedding table

# Of news paragraphs (the BBC's, 11,742 of them): words, of which the logarithm is near normal.
MEDIAN_WORDS, SPREAD, LONGEST = 62, 0.55, 400
PARAGRAPHS = 6  # of a generated document


def products(shape: dict[str, Any]) -> list[tuple[int, int, int]]:
    """The matrix products of an encoder layer: (width in, width out, how many)."""
    d, inner, ff = shape["d_model"], shape["d_kv"] * shape["num_heads"], shape["d_ff"]
    gates = 2 if "gated" in shape.get("feed_forward_proj", "") else 1
    return [(d, inner, 3), (inner, d, 1), (d, ff, gates), (ff, d, 1)]


def encoder_weights(shape: dict[str, Any]) -> int:
    """Numbers in the encoder's matrices, without embeddings."""
    return int(shape["num_layers"]) * sum(count * one * other for one, other, count in products(shape))


def runs_of_equal_length(lengths: np.ndarray, examples: int, run: int) -> np.ndarray:
    """Places [examples] in `lengths`, in the lengths' own spread, `run` of about equal length for each place in it.

    So a run over a whole corpus finds them when it groups by length: a few examples drawn one by one would make a
    rival that groups pad more than it does there.
    """
    by_length = np.argsort(lengths, kind="stable")
    middles = (np.arange(examples // run) + 0.5) * run / examples * len(by_length)
    starts = (middles - run / 2).astype(np.int64).clip(0, len(by_length) - run)
    rows: np.ndarray = by_length[(starts[:, None] + np.arange(run)).ravel()]
    return rows


def attention_flops(shape: dict[str, Any], lengths: np.ndarray) -> float:
    """Floating-point operations of attention's own products, forward and backward, of examples of these lengths.

    Scores and mixture take 2 x length x length x width each, forward once and backward twice (to both factors).
    """
    inner = shape["d_kv"] * shape["num_heads"]
    return float(shape["num_layers"]) * 2 * 3 * 2 * inner * float((lengths.astype(np.float64) ** 2).sum())


def save_backbone(folder: Path, shape: dict[str, Any], tokenizer: Path, seed: int = 0) -> None:
    """Random weights of a shape, in bfloat16 so that every side starts from the same numbers, and a tokenizer."""
    from corpora.tokenizer import Tokenizer
    from pretrain.backbone_files import new_model, save_model

    folder.mkdir(parents=True)
    save_model(new_model(shape, VOCABULARY, seed), folder, "bfloat16")
    Tokenizer.load(tokenizer).save(folder)


def build_corpora(folder: Path, format: str) -> str:
    """Build the task corpus of a format in `folder`; gives where the text is from."""
    from corpora.build import build
    from corpora.build_settings import BuildSettings

    data = os.environ.get("PPT_DATA")
    if data:
        text, tokenizer = f"{data}/text/en/bbc_news.jsonl.gz", f"{data}/tokenizers/t5_spiece.model"
        origin = "PPT_DATA/text/en/bbc_news.jsonl.gz"
    else:
        print(
            "PPT_DATA is unset: paragraphs as long as a newspaper's are put together from the embedded world"
        )
        text, origin = str(folder.parent / "world.jsonl"), "generated"
        _write_news(Path(text), documents=400)
        tokenizer = str(Path(__file__).parents[1] / "launch" / "pocket" / "backbone")
    build(BuildSettings(text=[text], tokenizer=tokenizer, out=str(folder), language="en", formats=[format]))
    return origin


def _write_news(path: Path, documents: int) -> None:
    rng, whole = generator(0, "bench pretrain"), itertools.cycle(sentences())
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            words = np.exp(rng.normal(np.log(MEDIAN_WORDS), SPREAD, PARAGRAPHS)).clip(4, LONGEST)
            text = "\n".join(paragraph(whole, int(count)) for count in words)
            file.write(json.dumps({"text": text}) + "\n")


def sentences() -> Iterator[str]:
    from launch.pocket.world import documents

    for document in documents(4_000, 5):
        yield from (sentence.text for sentence in document)


def paragraph(sentences: Iterator[str], words: int) -> str:
    """Whole sentences until there are so many words."""
    kept: list[str] = []
    while sum(len(sentence.split()) for sentence in kept) < words:
        kept.append(next(sentences))
    return " ".join(kept)
