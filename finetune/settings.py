"""Settings of `ppt fewshot`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from corpora.common.errors import UserError, nearest
from corpora.common.settings import Settings
from finetune.methods import METHODS

# The names of pretrain.prompts.INITIALISERS, which takes seconds to import: settings are read before processes start.
INITS = ("normal", "vocabulary", "label_words")


class FewshotSettings(Settings):
    """Tasks x methods x seeds x learning rates on one frozen backbone.

    The defaults are the few-shot protocol of method.md. Prompts' learning rates, weight decay and clipping are
    in units of the backbone's embedding RMS; those of full tuning are absolute.
    """

    out: str  # the run's folder
    backbone: str  # folder or hub name
    lm_backbone: str | None = None  # the backbone after LM adaption, for `lm_adaption`
    prompts: str | None = None  # folder that holds <format>/ prompts, or the pre-training run that made them
    tasks: tuple[str, ...]  # names of shipped tasks or paths of task files
    methods: tuple[str, ...] = tuple(METHODS)
    data: str | dict[str, str] | None = None  # data folder, or a folder for each task; None: the hub
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    shots: int | tuple[int, ...] = 32  # training examples of tasks with up to five labels; several: a curve
    dev_shots: int = Field(default=32, ge=1)  # examples to choose by
    shots_per_label: int = Field(default=8, ge=1)  # for tasks with more labels; in dev as well
    stratified: bool = False  # draw the same number of each label
    allow_fewer: bool = False  # go on where a set has fewer examples than asked for
    max_test: int | None = Field(default=None, ge=1)  # score a fixed sample of the test set; None: all of it
    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=16, ge=1)
    eval_every: int = Field(default=6, ge=1)  # optimiser steps between dev scores
    patience: int | None = Field(
        default=None, ge=1
    )  # stop a cell after so many dev scores without a better one
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # x the embedding RMS
    learning_rates_of: dict[str, tuple[float, ...]] = Field(
        default_factory=dict
    )  # other rates for some methods
    ft_learning_rates: tuple[float, ...] = (3e-6, 5e-6, 1e-5, 1e-4)
    weight_decay: float = Field(default=1e-3, ge=0)  # of prompts, decoupled
    ft_weight_decay: float = Field(default=1e-2, ge=0)  # released code
    clip: float = Field(
        default=1.0, ge=0
    )  # gradient norm of a prompt (of all weights in full tuning); 0: off
    prompt_len: int = Field(default=100, ge=1)
    init: str = "normal"  # where a method's prompt is not a pre-trained one
    count: Literal["label", "all"] = "label"  # target positions in the loss; "all" as the released code
    length_normalised: bool = False  # divide a label's score by its number of tokens
    calibration: Literal["contextual"] | None = (
        None  # divide label probabilities by those of content-free texts (Zhao et al. 2021)
    )
    dtype: Literal["float32", "bfloat16"] = "float32"  # of a frozen backbone
    device: str | None = None  # None: a GPU where there is one
    batch_tokens: int | None = Field(
        default=None, ge=64
    )  # encoder tokens of a micro-batch; None: by the device
    prompts_together: int = Field(default=16, ge=1)  # cells tuned in one bank, each process
    processes: int | None = Field(
        default=None, ge=1
    )  # on this machine, which share the cells out; None: one a GPU, else one
    save_seconds: float = Field(default=60.0, ge=0)  # between checkpoints of what is under way; 0: every step
    ft_zero_stage: Literal[0, 1, 2, 3] | None = (
        None  # all processes together tune each FT cell; None: one of them
    )
    ft_dtype: Literal["float32", "bfloat16"] = "float32"  # of FT at ZeRO 1 to 3; its masters stay float32
    keep_prompts: bool = True  # save the prompts of chosen cells

    @field_validator("methods", "learning_rates_of")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...] | dict[str, tuple[float, ...]]) -> object:
        for name in value:
            if name not in METHODS:
                raise ValueError(f'no method "{name}"{nearest(name, METHODS)}')
        return value

    @field_validator("shots")
    @classmethod
    def _some_shots(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        numbers = (value,) if isinstance(value, int) else value
        if not numbers or min(numbers) < 1:
            raise ValueError("expected one example or more")
        return value

    @field_validator("tasks", "methods", "seeds", "learning_rates", "ft_learning_rates")
    @classmethod
    def _some_and_each_once(cls, value: tuple[object, ...]) -> object:
        if not value:
            raise ValueError("expected one or more")
        if len(set(value)) != len(value):
            raise ValueError("holds something twice")
        return value

    @field_validator("init")
    @classmethod
    def _known_init(cls, value: str) -> str:
        if value not in INITS:
            raise ValueError(f'no initialisation "{value}"{nearest(value, INITS)}')
        return value

    @model_validator(mode="after")
    def _rates_above_zero(self) -> FewshotSettings:
        for method in self.methods:
            for rate in self.rates(method):
                if not rate > 0:
                    raise ValueError(
                        f"a learning rate of {method} is {rate:g}; nothing would train: expected above 0"
                    )
        return self

    @model_validator(mode="after")
    def _masters_have_a_place(self) -> FewshotSettings:
        if self.ft_dtype == "bfloat16" and not self.ft_zero_stage:
            raise ValueError(
                "ft_dtype bfloat16 keeps float32 masters in DeepSpeed's optimiser; expected ft_zero_stage 1, 2 or 3"
            )
        return self

    @property
    def resolved_device(self) -> str:
        """Where models run."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def micro_batch_tokens(self) -> int:
        """Encoder tokens of a micro-batch, padding included.

        On a CPU a small one that stays in the cache is faster. Measured at 3M weights: 1,024 takes 5 % less than 2,048 in
        float32, 2,048 takes 6 % less than 1,024 in bfloat16.
        """
        if self.batch_tokens is not None:
            return self.batch_tokens
        if self.resolved_device != "cpu":
            return 16384
        return 2048 if self.dtype == "bfloat16" else 1024

    @property
    def all_shots(self) -> tuple[int, ...]:
        """Every number of training examples asked for, smallest first."""
        return (self.shots,) if isinstance(self.shots, int) else tuple(sorted(set(self.shots)))

    def rates(self, method: str) -> tuple[float, ...]:
        """The learning rates that a method tries."""
        if method in self.learning_rates_of:
            return self.learning_rates_of[method]
        return self.ft_learning_rates if METHODS[method].trains == "backbone" else self.learning_rates

    def needs(self, backbone: str) -> str:
        """The folder or hub name of one of the two backbones.

        Raises:
            UserError: the LM-adapted one is not given.
        """
        if backbone == "lm":
            if self.lm_backbone is None:
                raise UserError(
                    "method lm_adaption needs lm_backbone (made by `ppt backbone train` with the prefix-LM "
                    "objective); give it or leave the method out"
                )
            return self.lm_backbone
        return self.backbone
