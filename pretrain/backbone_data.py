"""Everything that a backbone's training reads, and a fingerprint of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.common.rng import generator
from corpora.tokenizer import Tokenizer
from pretrain.backbone_settings import BackboneTrainSettings
from pretrain.training_data import OBJECTIVES, TrainBatch, make_batch
from pretrain.training_sources import (
    ClozeSource,
    Text,
    TextSource,
    file_hashes,
    open_store,
    read_cloze,
    read_text,
    split_documents,
    text_sources,
)


class Data:
    """Everything a run reads: training sources, held-out batches, and a fingerprint of all of it."""

    def __init__(self, settings: BackboneTrainSettings, tokenizer: Tokenizer, device: torch.device) -> None:
        self.settings, self.tokenizer, self.device = settings, tokenizer, device
        self.sources: dict[str, TextSource | ClozeSource] = {}
        self.held_out: dict[str, TextSource] = {}
        text: Text | None = None
        shares = settings.mixture.model_dump()
        self.shares = {name: share for name, share in shares.items() if share > 0}
        if settings.mixture.span + settings.mixture.prefix > 0:
            text = (
                open_store(settings.store, tokenizer)
                if settings.store
                else read_text(settings.text, tokenizer)
            )
            train, held = split_documents(len(text.doc_offsets) - 1)
            self.sources.update(self._objectives(text, train))
            self.held_out.update(self._objectives(text, held))
        if "cloze" in self.shares:
            self.sources["cloze"] = read_cloze(
                settings.cloze, tokenizer, settings.max_tokens, settings.shuffle_cloze
            )
        self.eval_cloze = {
            Path(path).stem: read_cloze([path], tokenizer, settings.max_tokens, False)
            for path in settings.eval_cloze
        }
        self.fingerprint = {
            "text": text.fingerprint if text else None,
            "cloze": file_hashes(settings.cloze if "cloze" in self.shares else []),
        }

    def _objectives(self, text: Text, docs: NDArray[np.int64]) -> dict[str, TextSource]:
        options = self.settings
        found = text_sources(
            text, docs, self.tokenizer, options.max_tokens, options.noise_density, options.mean_span
        )
        return {name: source for name, source in found.items() if name in self.shares}

    def batch(self, examples: list[Any]) -> TrainBatch:
        """Lay examples out for the model."""
        return make_batch(examples, self.tokenizer.size - 100, 0, self.device)

    def evaluations(self) -> Iterator[tuple[str, list[TrainBatch]]]:
        """Held-out sets by name, always the same examples with the same masks."""
        count = self.settings.eval_examples
        every: dict[str, TextSource | ClozeSource] = {**self.held_out, **self.eval_cloze}
        for name, source in every.items():
            text = isinstance(source, TextSource)
            kind = OBJECTIVES.index(name if text else "cloze")
            chosen = range(len(source))
            if text:
                rng = generator(self.settings.seed, "held-out", name)
                chosen = rng.permutation(len(source))[:count].tolist()
            drawn = [
                (kind, *source.example(i, generator(self.settings.seed, "held-out", name, i))) for i in chosen
            ]
            yield name, [self.batch(group) for group in _groups(drawn, self.settings.batch_tokens)]


def _groups(drawn: list[Any], tokens: int) -> Iterator[list[Any]]:
    drawn = sorted(drawn, key=lambda example: len(example[1]))
    while drawn:
        held, count = 0, 0
        while count < len(drawn) and (count == 0 or held + len(drawn[count][1]) <= 4 * tokens):
            held += len(drawn[count][1])
            count += 1
        yield drawn[:count]
        drawn = drawn[count:]
