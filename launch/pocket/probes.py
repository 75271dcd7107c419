"""Probes: does a backbone hold the abilities that prompts are to call up, and is there room for a prompt?

Each kind of question is asked twice, with its instruction and without. The first figure is what the backbone knows, the gap between the
two is what a prompt can win. Seconds on a CPU; sentences are from a side of the world that no backbone is trained on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corpora.tokenizer import LETTERS
from launch.pocket.pages import FIRST, SECOND, THIRD, Page, Pages
from launch.pocket.world import World, words

if TYPE_CHECKING:
    from corpora.tokenizer import Tokenizer


def probe_pages(n: int, seed: int = 77) -> dict[str, list[Page]]:
    """`n` pages of each kind, every one with its instruction, by names like `pair together` and `choice4 person`."""
    drawn = Pages(World(seed, "trial", "probes"), bare=0.0)
    found = {f"pair {kind}": [drawn.pair(kind) for _ in range(n)] for kind in FIRST.pairs}
    for options in (2, 4, 6):
        for kind in {**FIRST.sentences, **SECOND.sentences, **THIRD.sentences, "repeat": 0.0}:
            found[f"choice{options} {kind}"] = [drawn.sentence_choice(kind, options) for _ in range(n)]
    for kind in {**FIRST.words, **THIRD.words}:
        found[f"words {kind}"] = [drawn.word_choice(kind, 10) for _ in range(n)]
    for kind in {**FIRST.singles, **THIRD.singles}:
        found[f"single {kind}"] = [drawn.single(kind) for _ in range(n)]
    for kind in ("together", "apart"):
        found[f"lettered {kind}"] = [drawn.pair_letters(kind) for _ in range(n)]
    return found


def candidates(page: Page) -> list[str]:
    """The answers that a page's look admits."""
    if page["options"]:
        return list(LETTERS[: len(page["options"])])
    if "{one}" in page["pattern"]:
        return ["no", "maybe", "yes"]
    lists = words()
    by_kind = {
        "thing": lists.levels,
        "human": lists.levels,
        "who": lists.names,
        "mover": lists.names,
        "mate": lists.names,
    }
    return by_kind.get(page["kind"], lists.places)


def without_instruction(page: Page) -> Page:
    """The same page, bare."""
    return {**page, "pattern": page["pattern"].split(" ? ", 1)[1]}


def accuracy(model: Any, tokenizer: Tokenizer, pages: list[Page]) -> float:
    """Share of pages whose answer scores highest among its candidates.

    Args:
        model: a T5ForConditionalGeneration.
        tokenizer: its vocabulary.
        pages: what to ask.
    """
    from corpora.formats import Pattern
    from pretrain.batching import pad_inputs

    def encoded(text: str) -> Any:
        return tokenizer.encode([text])[0]

    inputs, answers = [], []
    for page in pages:
        fields = {name: encoded(text) for name, text in page["fields"].items()}
        options = [encoded(text) for text in page["options"]]
        inputs.append(Pattern.parse(page["pattern"]).render(tokenizer, fields, options, max_tokens=768))
        ids = [
            tokenizer.letters[LETTERS.index(word)] if page["options"] else tokenizer.word_ids(word)[0]
            for word in candidates(page)
        ]
        answers.append((ids, candidates(page).index(page["target"])))
    right = 0
    order = np.argsort([len(ids) for ids in inputs], kind="stable")
    start = [0, tokenizer.sentinel(0)]
    for group in np.array_split(order, max(1, len(order) // 50)):
        ids_BL, mask_BL = pad_inputs([inputs[i] for i in group], tokenizer.pad_id)
        with torch.no_grad():
            logits = model(
                input_ids=ids_BL, attention_mask=mask_BL, decoder_input_ids=torch.tensor([start] * len(group))
            ).logits[:, 1]
        for row, i in enumerate(group):
            ids, label = answers[i]
            right += int(logits[row, list(ids)].argmax()) == label
    return right / len(pages)


def probe(folder: str | Path, n: int = 100, names: tuple[str, ...] = ()) -> dict[str, tuple[float, float]]:
    """Accuracy of each kind, or of the named ones (with its instruction, without) of a saved backbone."""
    from transformers import T5ForConditionalGeneration

    from corpora.tokenizer import Tokenizer

    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(str(folder))
    found = {}
    for name, pages in probe_pages(n).items():
        if names and name not in names:
            continue
        bare = [without_instruction(page) for page in pages]
        found[name] = (accuracy(model, tokenizer, pages), accuracy(model, tokenizer, bare))
    return found


def as_lines(found: dict[str, tuple[float, float]]) -> str:
    """A line a look: kind, accuracy in percent with the instruction | without."""
    looks: dict[str, list[str]] = defaultdict(list)
    for name, (told, bare) in found.items():
        look, kind = name.split()
        looks[look].append(f"{kind} {told * 100:.0f}|{bare * 100:.0f}")
    return "\n".join(f"{look}: {'  '.join(kinds)}" for look, kinds in looks.items())


if __name__ == "__main__":
    import sys

    result = probe(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100)
    print(as_lines(result))
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
