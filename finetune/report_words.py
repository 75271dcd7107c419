"""The vocabulary words nearest to each row of a prompt: a look at what it has learnt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from corpora.common.errors import UserError
from pretrain.prompts import word_pieces

if TYPE_CHECKING:
    from corpora.tokenizer import Tokenizer

FloatArray = npt.NDArray[np.float32]
TABLES = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "model.shared.weight",
    "decoder.embed_tokens.weight",
)


def nearest_words(
    prompt_PD: npt.ArrayLike, embeddings_VD: npt.ArrayLike, tokenizer: Tokenizer, n: int = 5
) -> list[list[tuple[str, float]]]:
    """Find the word pieces whose embeddings point in the direction of each prompt row.

    Args:
        prompt_PD: [P, D] soft prompt.
        embeddings_VD: [V, D] the backbone's input embeddings; V may exceed the tokenizer's size (padding rows).
        tokenizer: gives the pieces; punctuation, sentinels and control pieces are left out.
        n: how many for each row.

    Returns:
        For each prompt row, `n` pairs (piece, cosine), nearest first; a leading "▁" says that a word starts.

    Raises:
        UserError: the widths differ, or the table has fewer rows than the tokenizer has ids.
    """
    prompt = np.asarray(prompt_PD, dtype=np.float32)
    table = np.asarray(embeddings_VD, dtype=np.float32)
    if prompt.shape[-1] != table.shape[-1]:
        raise UserError(
            f"the prompt has width {prompt.shape[-1]}, the backbone {table.shape[-1]}; use the prompt's own backbone"
        )
    if table.shape[0] < tokenizer.size:
        raise UserError(
            f"the backbone has {table.shape[0]} embeddings, the tokenizer {tokenizer.size} ids; use its own tokenizer"
        )
    ids, pieces = word_pieces(tokenizer)
    cosine_PW = _unit(prompt) @ _unit(table[ids]).T
    order_PN = np.argsort(-cosine_PW, axis=1, kind="stable")[:, :n]
    return [[(pieces[j], float(cosine_PW[i, j])) for j in row] for i, row in enumerate(order_PN)]


def _unit(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)


def top_words(nearest: list[list[tuple[str, float]]], n: int = 12) -> list[tuple[str, float]]:
    """The words that any row of a prompt comes nearest to, each once with its highest cosine, highest first."""
    best: dict[str, float] = {}
    for row in nearest:
        for word, cosine in row:
            best[word] = max(cosine, best.get(word, -1.0))
    return sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:n]


def spelt(piece: str) -> str:
    """A piece for people: without the mark of a word's beginning, and with a hyphen where letters go on with a word.

    Scripts that put no spaces between words have no such beginnings and stay as they are.
    """
    if piece.startswith("▁"):
        return piece[1:]
    goes_on = piece[:1].isalpha() and ord(piece[0]) < 0x0E00  # Latin, Greek, Cyrillic, Arabic, Indic
    return f"-{piece}" if goes_on else piece


@dataclass(frozen=True)
class Vocabulary:
    """What the words of a prompt are looked up in: a backbone's embeddings and its tokenizer."""

    embeddings_VD: FloatArray
    tokenizer: Tokenizer


def load_vocabulary(folder: Path | str) -> Vocabulary | None:
    """Read the embedding table and the tokenizer of a backbone's folder, nothing else of it (seconds at 11B).

    Returns:
        None where the folder is not on this machine or keeps no table in safetensors: the report does without.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    from safetensors import safe_open

    from corpora.tokenizer import Tokenizer

    files = {}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for name in TABLES:
        path = folder / files.get(name, "model.safetensors")
        if not path.exists():
            continue
        with safe_open(path, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (not a mapping)
                return Vocabulary(tensors.get_tensor(name).float().numpy(), Tokenizer.load(str(folder)))
    return None


def prompt_tensor(folder: Path) -> FloatArray | None:
    """The [P, D] tensor of a prompt folder; None where there is none."""
    path = folder / "prompt.safetensors"
    if not path.exists():
        return None
    from safetensors.numpy import load_file

    return np.asarray(load_file(path)["prompt"], dtype=np.float32)


def prompt_words(
    prompts: Mapping[str, Path], vocabulary: Vocabulary, n: int = 12
) -> dict[str, list[tuple[str, float]]]:
    """Title -> nearest words, for the prompt folders that exist and have the vocabulary's width."""
    found: dict[str, Any] = {}
    for title, folder in prompts.items():
        prompt = prompt_tensor(folder)
        if prompt is not None and prompt.shape[-1] == vocabulary.embeddings_VD.shape[-1]:
            found[title] = top_words(nearest_words(prompt, vocabulary.embeddings_VD, vocabulary.tokenizer), n)
    return found
