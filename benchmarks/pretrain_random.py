"""A random backbone made on the device, drawn examples, and the product's training step on them.

Weights, prompts and examples depend on names and seeds alone, so that whoever uses them computes the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.rendering import Rendered, ends
from pretrain_data import VOCABULARY
from pretrain_sides import PROMPT_LEN, pace_alone

SENTINEL, LABELS = VOCABULARY - 29, (150, 2087, 4273)  # <extra_id_0> of T5's 32,100 ids; any three words
# Tokens of a pair of news paragraphs: 271 on average with the prompt.
MEDIAN_TOKENS, SPREAD, LONGEST = 155, 0.45, 412
POOL = 8192  # examples drawn
RATE = 0.3  # x embedding RMS


def random_model(shape: dict[str, Any], device: str, dtype: torch.dtype, weights: str = "full") -> Any:
    """A random T5 made on the device tensor by tensor; its layers quantised on the way where `weights` says so."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, decoder_start_token_id=0, pad_token_id=0, dropout_rate=0.0, use_cache=False, **shape
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        if shape.get("tie_word_embeddings") is False:  # T5Config ties it whatever it is told
            model.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
    tied: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if parameter not in tied:
            drawn = _drawn(name, parameter.shape, _std(name, shape), device, dtype)
            if weights != "full" and _is_quantised(name):
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, _quantised(drawn, weights))
                continue
            tied[parameter] = nn.Parameter(drawn, requires_grad=False)
        setattr(module, leaf, tied[parameter])
    return model.eval()


def _is_quantised(name: str) -> bool:
    from pretrain.quantise import is_quantised

    return bool(is_quantised(name))


def _quantised(weight: torch.Tensor, weights: str) -> nn.Module:
    from pretrain.quantise import quantised_linear

    return quantised_linear(weight, weights)  # type: ignore[arg-type]


def _std(name: str, shape: dict[str, Any]) -> float | None:
    """transformers' own initialisation of T5; None: ones."""
    d, inner = shape["d_model"], shape["d_kv"] * shape["num_heads"]
    stds = {"shared": 1.0, "q": (d * shape["d_kv"]) ** -0.5, "o": inner**-0.5, "wo": shape["d_ff"] ** -0.5}
    kind = name.split(".")[-2]
    return None if "norm" in kind else stds.get(kind, d**-0.5)


def _drawn(name: str, size: torch.Size, std: float | None, device: str, dtype: torch.dtype) -> torch.Tensor:
    if std is None:
        return torch.ones(size, device=device, dtype=dtype)
    # Drawn in bfloat16 whatever the type, so that a model in float32 has the same weights.
    own = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(size, device=device, dtype=torch.bfloat16).normal_(0, std, generator=own).to(dtype)


class DrawnCorpus:
    """Examples with the lengths of real pairs and ids drawn, in place of a `TaskCorpus`."""

    def __init__(self) -> None:
        rng = generator(0, "bench gpu")
        lengths = np.exp(rng.normal(np.log(MEDIAN_TOKENS), SPREAD, POOL)).clip(8, LONGEST)
        self._lengths = lengths.astype(np.int32)
        self._ids = rng.integers(1000, 30_000, int(LONGEST + POOL), np.int32)
        self._labels = rng.integers(0, len(LABELS), POOL)

    def lengths(self, rows: np.ndarray, prompt_len: int) -> np.ndarray:
        """Tokens of rows, int32 [B]."""
        return self._lengths[rows]

    def render_batch(self, rows: np.ndarray, tokenizer: object, prompt_len: int) -> Rendered:
        """The rows end to end."""
        ids = [self._ids[row : row + self._lengths[row]] for row in rows.tolist()]
        return Rendered(np.concatenate(ids), ends(self._lengths[rows]), self._labels[rows])

    def examples(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Inputs and targets one by one."""
        rendered = self.render_batch(rows, None, PROMPT_LEN)
        inputs = np.split(rendered.input_ids, rendered.offsets[1:-1])
        for ids, label in zip(inputs, rendered.labels.tolist(), strict=True):
            yield {"input_ids": ids, "target_ids": np.array([SENTINEL, LABELS[label]])}


class _Words:
    """A verbalizer of one-token words."""

    ids = tuple((word,) for word in LABELS)

    def __len__(self) -> int:
        return len(LABELS)

    def target_ids(self, label: int, closing: bool) -> np.ndarray:
        return np.array([SENTINEL, LABELS[label]], np.int32)


class Step:
    """The product's training step on a random backbone.

    Args:
        shape: fields of the configuration.
        device: where.
        dtype: `float32` or `bfloat16`.
        weights: how the backbone's layers are held.
        options: settings of the forward pass, other than the product's own choice for the device.

    Raises:
        UserError: this device cannot compute so.
    """

    def __init__(
        self, shape: dict[str, Any], device: str, dtype: str, weights: str = "full", **options: Any
    ) -> None:
        from pretrain.backbone import DTYPES, Backbone
        from pretrain.distributed import Processes
        from pretrain.forward import ForwardOptions, PromptedBackbone
        from pretrain.groups import Batcher, Group
        from pretrain.settings import PretrainSettings

        if device == "cpu" and options.get("attention") == "flex":
            raise UserError("flex attention has no backward on a CPU")
        self.processes = Processes(0, 1, torch.device(device))
        self.settings = PretrainSettings(
            out=Path(), corpora=Path(), backbone="none", formats=["sentence_pair"], prompt_len=PROMPT_LEN,
            learning_rate=RATE, schedule="constant", **options,
        )  # fmt: skip
        self.options = ForwardOptions.of(self.settings, self.processes.device)
        backbone = Backbone(random_model(shape, device, DTYPES[dtype], weights), "random", weights=weights)
        self.net = PromptedBackbone(backbone, self.options).requires_grad_(False).eval()
        self.corpus: Any = DrawnCorpus()
        words: Any = _Words()
        self.group = Group(0, "sentence_pair", self.corpus, words, range(POOL), np.arange(8))
        tokenizer: Any = type("Padding", (), {"pad_id": 0})
        self._batcher = Batcher([self.group], self.settings, tokenizer, 0, self.processes.device)
        self._pace = pace_alone(self.settings, self.processes)
        self.restart()

    def restart(self) -> None:
        """Start again with the prompt that all variants start with."""
        from pretrain.prompts import PromptBank

        drawn = generator(0, "bench gpu prompt").standard_normal((PROMPT_LEN, self.net.model.config.d_model))
        start = torch.from_numpy(drawn.astype(np.float32))[None].to(self.processes.device)
        self.bank = PromptBank(start, [RATE], clip=1.0)

    def __call__(self, number: int, batch_size: int, batch_tokens: int) -> float:
        """One update; the mean loss of its examples."""
        from pretrain.step import train_step

        settings = self.settings.model_copy(update={"batch_size": batch_size, "batch_tokens": batch_tokens})
        update = train_step(
            self.net, self.bank, self._batcher, [self.group], number, settings, self.processes, self._pace
        )
        assert not update.spoilt, f"losses are no numbers: {update.spoilt}"
        return float(update.sums_KS[0, 2] / update.sums_KS[0, 3])

    def rows(self, number: int, batch_size: int) -> np.ndarray:
        """The examples of an update."""
        return self.group.rows_of_step(number, batch_size, self.settings.seed)
