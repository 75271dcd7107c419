"""Settings of `ppt fewshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from corpora.common.errors import UserError, nearest
from corpora.common.settings import Settings
from finetune.draws import EVERY, Asked
from finetune.methods import METHODS
from finetune.task import FIRST
from pretrain.devices import has_gpu
from pretrain.settings import Weights

CONFIG, EARLIER = (
    "config.yaml",
    "earlier",
)  # of a run's folder: the last command's settings, those of other ones before
ALL = "all"  # of `shots`: every training row that dev leaves
# The names of pretrain.prompts.INITIALISERS, which takes seconds to import: settings are read before processes start.
INITS = ("normal", "vocabulary", "label_words")


def fast_dtype(device: str | None) -> Literal["float32", "bfloat16"]:
    """In what a frozen backbone is computed fastest: bfloat16 on GPUs, and on processors that multiply pairs of it.

    On a CPU with AVX-512 BF16 a step of the pocket backbone takes less than half of its time in float32; on others
    bfloat16 is emulated, and slower. Asked without torch, which takes seconds to import.
    """
    on_gpu = device not in (None, "cpu") or (device is None and has_gpu())
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "bfloat16" if on_gpu or "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


class TaskSettings(Settings):
    """What one task has otherwise than the run; None: as the run."""

    epochs: int | None = Field(default=None, ge=1)
    ft_epochs: int | None = Field(default=None, ge=1)  # full tuning's; None: as `epochs`
    eval_every: int | None = Field(default=None, ge=1)
    dev_shots: int | None = Field(default=None, ge=1)


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
    skip_missing: bool = False  # leave out tasks whose data are neither in local files nor on the hub
    # Training examples of tasks with up to five labels; several: a curve; all: the whole training set.
    shots: int | tuple[int, ...] | Literal["all"] = 32
    dev_shots: int = Field(default=32, ge=1)  # examples to choose by
    shots_per_label: int = Field(default=8, ge=1)  # for tasks with more labels; in dev as well
    stratified: bool = False  # draw the same number of each label
    allow_fewer: bool = False  # go on where a set has fewer examples than asked for
    max_test: int | None = Field(default=None, ge=1)  # score a fixed sample of the test set; None: all of it
    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=16, ge=1)
    eval_every: int = Field(default=6, ge=1)  # optimiser steps between dev scores
    of_task: dict[str, TaskSettings] = Field(default_factory=dict)  # task name -> what it has otherwise
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
    # Of prompts that are not pre-trained; several: a line of the table each.
    init: str | tuple[str, ...] = "normal"
    wording: str | tuple[str, ...] = FIRST  # of task files; dev: each seed's choice; several: a line each
    count: Literal["label", "all"] = "label"  # target positions in the loss; "all" as the released code
    length_normalised: bool = False  # divide a label's score by its number of tokens
    calibration: Literal["contextual"] | None = (
        None  # divide label probabilities by those of content-free texts (Zhao et al. 2021)
    )
    dtype: Literal["float32", "bfloat16"] | None = (
        None  # of a frozen backbone; None: `fast_dtype` of this machine
    )
    weights: Weights = "full"  # how the frozen backbone's linear layers are held: full, int8, nf4, fp8
    device: str | None = Field(
        default=None, pattern=r"^(cpu|cuda(:\d+)?)$"
    )  # cpu, cuda or cuda:N; None: a GPU where there is one
    batch_tokens: int | None = Field(
        default=None, ge=64
    )  # encoder tokens under way at a time; None: by the device and its memory
    prompts_together: int = Field(default=32, ge=1)  # cells tuned in one bank, each process
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
    def _some_shots(cls, value: int | tuple[int, ...] | str) -> int | tuple[int, ...] | str:
        if isinstance(value, str):
            return value
        numbers = (value,) if isinstance(value, int) else value
        if not numbers or min(numbers) < 1:
            raise ValueError("expected one example or more")
        return value

    @field_validator("tasks", "methods", "seeds", "learning_rates", "ft_learning_rates", "init", "wording")
    @classmethod
    def _some_and_each_once(cls, value: tuple[object, ...] | str) -> object:
        if isinstance(value, str):
            return value
        if not value:
            raise ValueError("expected one or more")
        if len(set(value)) != len(value):
            raise ValueError("holds something twice")
        return value

    @field_validator("learning_rates_of")
    @classmethod
    def _some_rates_and_each_once(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for method, rates in value.items():
            if not rates:
                raise ValueError(
                    f"expected one learning rate or more of {method}; leave {method} out for the run's own"
                )
            if len(set(rates)) != len(rates):
                raise ValueError(f"the learning rates of {method} hold something twice")
        return value

    @field_validator("init")
    @classmethod
    def _known_init(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in _each(value):
            if name not in INITS:
                raise ValueError(f'no initialisation "{name}"{nearest(name, INITS)}')
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
    def _has_a_dtype(self) -> FewshotSettings:
        if self.dtype is None:  # settled here: it is part of the protocol, and a run's config.yaml says it
            object.__setattr__(self, "dtype", fast_dtype(self.device))
        return self

    @model_validator(mode="after")
    def _masters_have_a_place(self) -> FewshotSettings:
        if self.ft_dtype == "bfloat16" and not self.ft_zero_stage:
            raise ValueError(
                "ft_dtype bfloat16 keeps float32 masters in DeepSpeed's optimiser; expected ft_zero_stage 1, 2 or 3"
            )
        return self

    @model_validator(mode="after")
    def _a_named_device_has_one_process(self) -> FewshotSettings:
        if ":" in (self.device or "") and (self.processes or 1) > 1:
            raise ValueError(
                f"device {self.device} is one GPU and processes is {self.processes}; leave processes out, or write "
                f"device: {str(self.device).partition(':')[0]}, which gives each process a GPU of its own"
            )
        return self

    @property
    def resolved_device(self) -> str:
        """Where models run.

        Raises:
            UserError: torch sees no such device.
        """
        import torch

        if (self.device or "cpu") != "cpu":
            number, there = torch.device(str(self.device)).index or 0, torch.cuda.device_count()
            if number >= there:
                raise UserError(
                    f"device is {self.device} and torch sees {there or 'no'} GPU{'s' if there > 1 else ''}; leave device out, or say device: cpu"
                )
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def all_shots(self) -> tuple[int, ...]:
        """Every number of training examples asked for, smallest first."""
        if isinstance(self.shots, str):
            return (EVERY,)
        return (self.shots,) if isinstance(self.shots, int) else tuple(sorted(set(self.shots)))

    @property
    def inits(self) -> tuple[str, ...]:
        """Every start of prompts that are not pre-trained."""
        return _each(self.init)

    @property
    def wordings(self) -> tuple[str, ...]:
        """Every wording of the tasks that is asked for, `dev` among them."""
        return _each(self.wording)

    def epochs_of(self, task: str, trains: Literal["prompt", "backbone"]) -> int:
        """How often a task's cells see each training example."""
        own = self.of_task.get(task, TaskSettings())
        ft = own.ft_epochs if trains == "backbone" else None
        return ft or own.epochs or self.epochs

    def eval_every_of(self, task: str) -> int:
        """Optimiser steps between a task's dev scores."""
        return self.of_task.get(task, TaskSettings()).eval_every or self.eval_every

    @property
    def asked(self) -> Asked:
        """What every task's rows have to be enough for."""
        own = {task: one.dev_shots for task, one in self.of_task.items() if one.dev_shots}
        return Asked(
            shots=self.all_shots,
            dev_shots=self.dev_shots,
            shots_per_label=self.shots_per_label,
            seeds=self.seeds,
            stratified=self.stratified,
            allow_fewer=self.allow_fewer or self.shots == ALL,
            prompt_len=self.prompt_len,
            dev_shots_of=own,
        )

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


def _each(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
