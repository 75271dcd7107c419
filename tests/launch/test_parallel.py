"""However a job's processes share backbone and examples, they learn what one process learns: the real launcher."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from corpora.common.errors import MachineError
from corpora.common.settings import load_settings
from pretrain.checkpoint import checkpoint_path
from pretrain.offload import check_offload
from pretrain.settings import ALL_FORMATS, PretrainSettings

STEPS = 12
PPT = [str(Path(sys.executable).parent / "ppt")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def make_backbone(like: Path, folder: Path, d_ff: int) -> None:
    """A random backbone of one layer a side with the vocabulary of another."""
    from transformers import T5Config, T5ForConditionalGeneration

    shutil.copytree(like, folder)
    shape = {"num_layers": 1, "num_decoder_layers": 1, "d_ff": d_ff}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        T5ForConditionalGeneration(T5Config.from_pretrained(like, **shape)).save_pretrained(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, build_dir: Path, backbone_dir: Path) -> Path:
    """A run of seconds; half of the backbone's feed-forward is still large enough for ZeRO 3 to shard it."""
    folder = tmp_path_factory.mktemp("parallel")
    make_backbone(backbone_dir, folder / "wide", d_ff=1024)
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
        command = [*PPT, "pretrain", str(config), f"out={out}", f"processes={processes}", *overrides]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, env=ENVIRONMENT
        )

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
    return {key: value for key, value in row.items() if "loss" in key or key == "gradient_norm"}


def same_run(one: Path, other: Path, start: torch.Tensor) -> None:
    """The same losses and prompts but for rounding; the prompts have moved."""
    apart = 0.0
    for a, b in zip(rows(one), rows(other), strict=True):
        assert figures(a).keys() == figures(b).keys()
        assert a["split"] != "train" or "gradient_norm" in figures(a)
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
    [
        (4, ["tensor_parallel=2", "checkpointing=true"]),
        (2, ["zero_stage=3", "offload=cpu", "checkpointing=true"]),
    ],
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


@pytest.mark.torture  # DeepSpeed compiles its operator first, minutes the first time
def test_a_backbone_on_a_disk_gives_the_bytes_of_one_in_memory_and_leaves_nothing_there(
    launch: Any, config: Path, backbone_dir: Path
) -> None:
    disk = config.parent / "disk"
    disk.mkdir()
    try:
        check_offload("nvme", disk)
    except MachineError as error:
        pytest.skip(str(error))
    make_backbone(backbone_dir, config.parent / "wider", d_ff=16384)  # a weight of 1 MiB goes to the disk
    common = ["dtype=bfloat16", "zero_stage=3", f"backbone={config.parent / 'wider'}"]
    memory, out = config.parent / "memory", config.parent / "on disk"
    done = launch(memory, 1, *common)
    assert done.returncode == 0, done.stdout + done.stderr
    overrides = [f"out={out}", "processes=1", "offload=nvme", f"nvme_path={disk}", *common]
    job = subprocess.Popen(
        [*PPT, "pretrain", str(config), *overrides],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    seen = 0
    while job.poll() is None:
        seen = max(seen, len(list(disk.rglob("*.swp"))))
        time.sleep(0.2)
    assert job.returncode == 0, job.stdout and job.stdout.read()
    assert seen == 6  # wi_0, wi_1 and wo of both sides
    assert list(disk.iterdir()) == []
    assert (memory / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()
    assert torch.equal(prompts(memory), prompts(out))
