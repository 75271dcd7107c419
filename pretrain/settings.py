"""Settings of a pre-training run, checked before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from corpora.common.errors import UserError
from corpora.common.files import PARTIAL, read_json
from corpora.common.progress import say
from corpora.common.settings import Settings, read_yaml
from pretrain.offload import Offload, check_offload

FormatName = Literal["sentence_pair", "multiple_choice", "single_text", "unified"]
Weights = Literal["full", "int8", "nf4", "fp8"]
ALL_FORMATS: tuple[FormatName, ...] = ("sentence_pair", "multiple_choice", "single_text", "unified")

# Keys that a plan fills in where they are not set (pretrain/plan_run.py): they change rounding only.
PLANNED_KEYS = ("zero_stage", "tensor_parallel", "offload", "checkpointing", "batch_tokens")
# Keys that may differ when a run goes on in the folder of an earlier start: where it lies, on how many processes it
# runs, what each of them holds and how it computes (rounding only), how long it runs and what ends it (a run that a
# spoilt step ended may go on without that step, and is then the same as one that left it out at once). Every other key
# decides what the run computes.
FREE_KEYS = frozenset(
    {
        *("out", "processes", "launcher_log", "attention", "compiled"),
        *("deepspeed_config", "nvme_path", "planned_for", *PLANNED_KEYS),
        *("on_nonfinite", "time_limit", "process_timeout"),
    }
)


class PretrainSettings(Settings):
    """A pre-training run: which prompt groups, on what, for how long.

    Rates are in units of the embedding table's RMS, so that one setting serves every backbone:
    AdamW, its clip, its decay and its epsilon all see prompt / RMS.
    """

    out: Path  # the run's folder
    corpora: Path  # folder of a build (`ppt corpora build`)
    backbone: str  # folder or hub name of a T5-shaped model
    formats: list[FormatName] = Field(default_factory=lambda: list(ALL_FORMATS))  # prompt groups of this job

    prompt_len: int = Field(100, ge=1, le=1000)  # prompt tokens
    init: str = "normal"  # normal, vocabulary or label_words
    seed: int = Field(0, ge=0)

    steps: int = Field(2000, ge=1)  # optimiser steps
    batch_size: int = Field(64, ge=1)  # examples of each prompt group a step, all processes together
    # Encoder tokens, prompt included, of a micro-batch on one device; null: the plan's choice.
    batch_tokens: int | None = Field(None, ge=1)
    count: Literal["label", "all"] = "label"  # target positions in the loss; all: the released code's way

    learning_rate: float = Field(0.3, gt=0)  # x embedding RMS
    schedule: Literal["rsqrt", "constant", "linear"] = "rsqrt"  # rsqrt: learning_rate / sqrt(step)
    weight_decay: float = Field(1e-3, ge=0)  # decoupled: a step shrinks the prompt by learning rate x this
    clip: float = Field(1.0, gt=0)  # largest norm of one prompt's gradient, taken by prompt / embedding RMS
    eps: float = Field(1e-8, gt=0)  # of AdamW, beside that gradient

    eval_every: int = Field(100, ge=1)  # optimiser steps
    eval_examples: int | None = Field(500, ge=1)  # held-out examples a group; null: all of them
    patience: int = Field(0, ge=0)  # evaluations without a lower held-out loss before a group stops; 0: never
    export_step: int | None = Field(None, ge=0)  # save the prompt of this step; null: lowest held-out loss
    save_every: int = Field(100, ge=1)  # optimiser steps
    log_every: int = Field(10, ge=1)  # optimiser steps a row of metrics.jsonl

    on_nonfinite: Literal["stop", "skip"] = (
        "stop"  # a loss or gradient is no number; skip: leave that update out
    )
    time_limit: float | None = Field(None, gt=0)  # hours of one start; then a checkpoint and exit code 75
    process_timeout: int = Field(600, ge=2)  # seconds that a silent or stuck process is waited for

    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen backbone; prompts are always float32
    weights: Weights = "full"  # of the backbone's layers: full (as dtype says), int8, nf4 or fp8
    attention: Literal["grouped", "flex"] | None = None  # of the encoder; null: flex on a GPU
    compiled: bool | None = (
        None  # torch.compile of encoder blocks; null: on a GPU, unless ZeRO 3 gathers them
    )
    # Compute each block twice and keep no activations of its inside; null: the plan's choice.
    checkpointing: bool | None = None
    device: Literal["auto", "cpu"] = "auto"
    # How processes hold the backbone; null: the plan's choice.
    zero_stage: Literal[0, 1, 2, 3] | None = None  # 3 shards it; see docs/pretraining.md for 1 and 2
    deepspeed_config: Path | None = None  # a DeepSpeed JSON instead of the preset of zero_stage
    offload: Offload | None = None  # at ZeRO 3, where the backbone lies while it is not computed with
    nvme_path: Path | None = None  # folder on an NVMe disk, for offload nvme
    tensor_parallel: int | None = Field(
        None, ge=1
    )  # processes that share each layer; the others share the examples
    planned_for: int | None = None  # processes that a plan was made for; filled in with its choices
    processes: int | None = Field(None, ge=1)  # on this machine; null: one a GPU, or one on a CPU
    launcher_log: Literal["critical", "error", "warning", "info", "debug"] = "critical"  # DeepSpeed's own log

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate_trains(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
            raise ValueError(
                "a learning rate of zero trains nothing; expected a positive number, such as 0.3"
            )
        return value

    @field_validator("formats")
    @classmethod
    def _formats_once(cls, value: list[FormatName]) -> list[FormatName]:
        if not value:
            raise ValueError(f"expected at least one of {', '.join(ALL_FORMATS)}")
        if len(set(value)) != len(value):
            raise ValueError("expected each format once")
        return value

    @model_validator(mode="after")
    def _no_contradiction(self) -> PretrainSettings:
        if self.export_step is not None and self.export_step > self.steps:
            raise ValueError(
                f"export_step is {self.export_step} and steps is {self.steps}; it would never come"
            )
        if self.export_step is not None and self.patience:
            raise ValueError(
                "export_step asks for a fixed step and patience stops before it; expected one of them"
            )
        if self.weights != "full" and (self.zero_stage == 3 or (self.tensor_parallel or 1) > 1):
            raise ValueError(
                f"weights is {self.weights}, zero_stage {self.zero_stage} and tensor_parallel {self.tensor_parallel or 1}; "
                "quantised layers are not cut: expected weights full, or zero_stage 0 and tensor_parallel 1, where "
                "each process holds all of them"
            )
        if self.weights == "fp8" and self.dtype != "bfloat16":
            raise ValueError(f"weights is fp8 and dtype is {self.dtype}; fp8 goes with bfloat16")
        if self.batch_tokens is not None and self.batch_tokens <= self.prompt_len:
            raise ValueError(
                f"batch_tokens is {self.batch_tokens} and prompt_len is {self.prompt_len}; "
                "not one example would fit"
            )
        return self

    @property
    def micro_batch_tokens(self) -> int:
        """`batch_tokens`, which `filled_in` of pretrain/plan_run.py sets where a file does not.

        Raises:
            ValueError: it has not been.
        """
        if self.batch_tokens is None:
            raise ValueError("batch_tokens is open; fill the settings in first")
        return self.batch_tokens

    @model_validator(mode="after")
    def _devices_fit(self) -> PretrainSettings:
        if self.processes and self.tensor_parallel and self.processes % self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel is {self.tensor_parallel} and processes is {self.processes}; "
                f"expected a multiple of {self.tensor_parallel}"
            )
        if self.offload not in (None, "none") and (
            self.zero_stage not in (None, 3) or self.deepspeed_config is not None
        ):
            raise ValueError(
                f"offload is {self.offload}, which fills in the preset of ZeRO 3; expected zero_stage 3 and no "
                "deepspeed_config (a file of your own has its own offload_param)"
            )
        if self.offload is not None and (self.offload == "nvme") != (self.nvme_path is not None):
            raise ValueError(
                f"offload is {self.offload} and nvme_path is {self.nvme_path or 'not set'}; "
                "expected nvme_path with offload nvme, and only then"
            )
        return self


def learning_rate_scale(settings: PretrainSettings, step: int) -> float:
    """What the learning rate is multiplied by at an update.

    Args:
        settings: the run's settings.
        step: updates made before this one, from 0.

    Returns:
        rsqrt: 1 / sqrt(step + 1), the released code's schedule without its lost first update (its rate is 0
        there); constant: 1; linear: from 1 down to 1 / steps.
    """
    if settings.schedule == "rsqrt":
        return float((step + 1) ** -0.5)
    if settings.schedule == "linear":
        return 1.0 - step / settings.steps
    return 1.0


def check_inputs(settings: PretrainSettings) -> None:
    """Refuse what can be seen to be wrong without loading anything heavy.

    Raises:
        UserError: the build, one of its formats or the local backbone is missing.
        MachineError: the chosen offload cannot work on this machine.
    """
    if not settings.corpora.is_dir():
        raise UserError(f"corpora: {settings.corpora} does not exist; make it with `ppt corpora build`")
    present = [name for name in ALL_FORMATS if (settings.corpora / name / "manifest.json").exists()]
    for name in settings.formats:
        if name not in present:
            raise UserError(
                f"{settings.corpora} holds no {name} corpus; it holds {', '.join(present) or 'none'}: "
                "build it or leave it out of formats"
            )
    local = Path(settings.backbone)
    looks_local = local.is_absolute() or settings.backbone.startswith(".") or settings.backbone.count("/") > 1
    if looks_local and not local.exists():
        raise UserError(f"backbone: {settings.backbone} does not exist")
    if settings.deepspeed_config is not None:
        read_deepspeed_config(settings.deepspeed_config)
    planned: Offload = "nvme" if settings.nvme_path is not None else "none"  # what a plan may come to
    check_offload(settings.offload or planned, settings.nvme_path)


def begun_with(out: Path) -> dict[str, Any]:
    """Settings of the run in a folder; none where it has nothing to go on from, so that any may begin there."""
    path = out / "config.yaml"
    saved = (one for one in (out / "checkpoints").glob("step-*") if one.suffix != PARTIAL)
    if not path.exists() or not (any(saved) or (out / "finished.json").exists()):
        return {}
    return read_yaml(path)


def check_same_run(settings: PretrainSettings) -> None:
    """Refuse to go on in a run's folder with other settings than it was begun with.

    Raises:
        UserError: a key differs, naming it and both values.
    """
    before = begun_with(settings.out)
    if not before:
        return
    now = settings.model_dump(mode="json")
    for key in sorted(set(before) | set(now)):
        if key not in FREE_KEYS and before.get(key) != now.get(key):
            raise UserError(
                f'{settings.out} was begun with "{key}" {json.dumps(before.get(key))}, now it is '
                f"{json.dumps(now.get(key))}; go on with the first or choose another out"
            )


def finished(settings: PretrainSettings) -> dict[str, Any] | None:
    """What a finished run found, saying that it is finished; None while there is something left to do."""
    path = settings.out / "finished.json"
    if not path.exists():
        return None
    prompts = settings.out / "prompts"
    say(f"{settings.out} is finished: its prompts are in {prompts}; choose another out to train again")
    return dict(read_json(path))


def read_deepspeed_config(path: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON and check that it leaves the prompts' update to us.

    Raises:
        UserError: it is missing, is no JSON object, or asks DeepSpeed to clip, cast or update.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(config).__name__}")
    if config.get("gradient_clipping", 1.0) != 0.0:
        raise UserError(
            f'{path}: "gradient_clipping" must be 0.0 (DeepSpeed would clip all prompts together, and does at 1.0 '
            "when the key is missing); clipping is the setting clip, for each prompt"
        )
    for key in ("optimizer", "scheduler", "fp16", "bf16"):
        if key in config:
            raise UserError(
                f'{path}: "{key}" is not DeepSpeed\'s to set here; '
                "use dtype, learning_rate, schedule and weight_decay of the run"
            )
    return config
