"""However a job's processes share backbone and examples, they learn what one process learns: the real launcher."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from corpora.common.settings import load_settings
from pretrain.checkpoint import checkpoint_path
from pretrain.settings import ALL_FORMATS, PretrainSettings

STEPS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, build_dir: Path, backbone_dir: Path) -> Path:
    """A run of seconds; half of the backbone's feed-forward is still large enough for ZeRO 3 to shard it."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("parallel")
    shutil.copytree(backbone_dir, folder / "wide")
    shape = {"num_layers": 1, "num_decoder_layers": 1, "d_ff": 1024}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        T5ForConditionalGeneration(T5Config.from_pretrained(backbone_dir, **shape)).save_pretrained(
            folder / "wide"
        )
    values: dict[str, Any] = {
        "out": str(folder / "run"), "corpora": str(build_dir), "backbone": str(folder / "wide"), "prompt_len": 4,
        "steps": STEPS, "batch_size": 2, "batch_tokens": 300, "eval_every": 6, "save_every": STEPS, "log_every": 1,
        "eval_examples": 4, "device": "cpu", "learning_rate": 0.5,
    }  # fmt: skip
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(values))
    return folder / "pretrain.yaml"


@pytest.fixture(scope="module")
def launch(config: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `ppt pretrain` to its end."""

    def run(out: Path, processes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "ppt"), "pretrain", str(config), f"out={out}"]
        return subprocess.run(
            [*command, f"processes={processes}", *overrides],
            capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    """The run in one process."""
    from pretrain.engine import pretrain

    settings = load_settings(PretrainSettings, config, [f"out={config.parent / 'alone'}"])
    pretrain(settings)
    return settings.out


@pytest.fixture(scope="module")
def start(config: Path) -> torch.Tensor:
    """[K, P, D] prompts before the first step."""
    from pretrain.engine import pretrain

    overrides = [f"out={config.parent / 'start'}", "steps=1", "export_step=0"]
    settings = load_settings(PretrainSettings, config, overrides)
    pretrain(settings)
    return torch.stack(
        [load_file(settings.out / "prompts" / name / "prompt.safetensors")["prompt"] for name in ALL_FORMATS]
    )


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def prompts(out: Path) -> torch.Tensor:
    return load_file(checkpoint_path(out, STEPS) / "state.safetensors")["bank.prompts"]


def figures(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if "loss" in key or key == "grad_norm"}


def same_run(one: Path, other: Path, start: torch.Tensor) -> None:
    """The same losses and prompts but for rounding; the prompts have moved."""
    apart = 0.0
    for a, b in zip(rows(one), rows(other), strict=True):
        assert figures(a).keys() == figures(b).keys()
        apart = max(apart, *(abs(figures(b)[key] / value - 1) for key, value in figures(a).items()))
    moved = (prompts(one) - start).flatten(1).norm(dim=1)
    assert bool((moved > 0.2 * start.flatten(1).norm(dim=1)).all())
    learnt = float(((prompts(one) - prompts(other)).flatten(1).norm(dim=1) / moved).max())
    print(f"{other.name}: losses {apart:.1e} apart, prompts {learnt:.1e} of what they learnt")
    assert apart < 1e-4 and learnt < 1e-3


def check(
    launch: Any, config: Path, alone: Path, start: torch.Tensor, processes: int, overrides: list[str]
) -> None:
    out = config.parent / " ".join([str(processes), *overrides]).replace("/", "_")
    done = launch(out, processes, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    same_run(alone, out, start)


@pytest.mark.parametrize(
    "processes, overrides",
    [(4, ["tensor_parallel=2"]), (2, ["zero_stage=3", "offload=cpu"])],
)
def test_processes_that_share_the_backbone_learn_what_one_learns(
    launch: Any, config: Path, alone: Path, start: torch.Tensor, processes: int, overrides: list[str]
) -> None:
    check(launch, config, alone, start, processes, overrides)


@pytest.mark.torture
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    "overrides",
    [
        *([f"zero_stage={stage}"] for stage in range(4)),
        ["zero_stage=3", "offload=cpu"],
        ["tensor_parallel=2"],
        ["tensor_parallel=2", "zero_stage=3"],
        ["tensor_parallel=2", "zero_stage=3", "offload=cpu"],
    ],
)
def test_every_way_to_share_learns_what_one_process_learns(
    launch: Any, config: Path, alone: Path, start: torch.Tensor, processes: int, overrides: list[str]
) -> None:
    check(launch, config, alone, start, processes, overrides)
