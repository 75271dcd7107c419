"""Settings of `ppt backbone train`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from corpora.common.settings import Settings


class Mixture(Settings):
    """Shares of the objectives among the tokens of text; they are scaled to a sum of one."""

    span: float = Field(default=0.0, ge=0)  # T5's span corruption, over text or store
    prefix: float = Field(default=0.0, ge=0)  # prefix language modelling, over text or store
    cloze: float = Field(default=0.0, ge=0)  # records of the cloze files


class LossWeights(Settings):
    """Weight of a target token of each objective in the loss."""

    span: float = Field(default=1.0, ge=0)
    prefix: float = Field(default=1.0, ge=0)
    cloze: float = Field(default=1.0, ge=0)


class BackboneTrainSettings(Settings):
    """What is trained, on what and how.

    Weights come from `shape` (random, seeded) or from `init` (a folder with a T5 or mT5; LM Adaption is `init` with the mixture
    `{prefix: 1}`). Training runs without dropout, whatever rate `shape` writes into the saved configuration.
    """

    out: str  # folder of the run and of the trained backbone
    tokenizer: str | None = None  # folder or model file; None: the one beside `init`
    init: str | None = None  # folder of weights to start from; `shape` is then not looked at
    shape: dict[str, Any] = Field(default_factory=dict)  # fields of T5Config

    text: list[str] = Field(
        default_factory=list
    )  # raw sources, as `ppt corpora build --text` takes them; tokenised into memory
    store: str | None = None  # a sentence store instead of `text`
    cloze: list[str] = Field(
        default_factory=list
    )  # JSONL files of {"pattern", "fields", "options", "target"}
    shuffle_cloze: bool = False  # False: file order, so that a file can be a curriculum; restarts at its end
    eval_cloze: list[str] = Field(
        default_factory=list
    )  # JSONL files whose answers are scored at each evaluation, one figure a file

    mixture: Mixture = Mixture(span=1.0)
    loss_weights: LossWeights = LossWeights()
    steps: int = Field(default=1000, ge=0)  # optimiser steps; 0: the starting weights as they are
    batch_tokens: int = Field(default=1024, ge=2)  # tokens of text a step, all processes together
    max_tokens: int = Field(default=512, ge=2)  # encoder tokens an example (prefix LM: both sides together)
    noise_density: float = Field(default=0.15, gt=0, lt=1)  # share of tokens masked by span corruption
    mean_span: float = Field(default=3.0, ge=1)  # tokens a span

    optimizer: Literal["muon", "adamw", "adafactor"] = "muon"
    learning_rate: float = Field(default=0.003, gt=0)  # of matrices (adafactor: of all, relative)
    embedding_learning_rate: float = Field(
        default=0.01, gt=0
    )  # of embeddings and norms, in units of their RMS
    position_bias_learning_rate: float = Field(default=0.03, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = Field(default=100, ge=0)  # steps of linear warm-up
    final_share: float = Field(default=0.05, ge=0, le=1)  # of each rate at the end of cosine and linear decay
    weight_decay: float = Field(default=0.1, ge=0)  # decoupled, times the rate; of matrices only
    clip: float = Field(default=1.0, ge=0)  # norm of all gradients together; 0: off
    encoder_loss: float = Field(
        default=0.3, ge=0
    )  # weight of the encoder's own guess of the token after each sentinel

    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic; weights stay float32
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"  # auto, cpu, cuda
    processes: int = Field(default=1, ge=1)  # more than one: data parallel through the DeepSpeed launcher
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=50, ge=1)  # steps
    save_every: int = Field(default=500, ge=1)  # steps
    eval_every: int = Field(default=500, ge=1)  # steps
    eval_examples: int = Field(default=64, ge=0)  # held-out examples of each text objective; 0: none

    @model_validator(mode="after")
    def _consistent(self) -> BackboneTrainSettings:
        if self.tokenizer is None and self.init is None:
            raise ValueError("tokenizer or init is needed")
        if self.text and self.store:
            raise ValueError("text and store exclude each other")
        if self.steps == 0:
            return self
        mixture = self.mixture
        if mixture.span + mixture.prefix + mixture.cloze == 0:
            raise ValueError("mixture needs a share above zero")
        if mixture.span + mixture.prefix > 0 and not (self.text or self.store):
            raise ValueError("mixture has span or prefix, so text or store is needed")
        if mixture.cloze > 0 and not self.cloze:
            raise ValueError("mixture has cloze, so cloze files are needed")
        return self
