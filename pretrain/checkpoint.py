"""What a killed run needs to go on bit for bit: prompts, optimiser state, position; nothing of the backbone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from corpora.common.errors import UserError
from corpora.common.files import (
    PARTIAL,
    atomic_folder,
    machine_errors,
    read_json,
    read_manifest,
    write_bytes_atomic,
    write_json,
    write_manifest,
)

KEEP = 2  # checkpoints kept; each holds the best prompts so far as well
STEP_DIGITS = 8


@dataclass
class Checkpoint:
    """A point to go on from.

    Attributes:
        step: updates made.
        tensors: prompts, the best prompts so far and AdamW's moments, float32, by name.
        state: everything else, as JSON keeps it: best losses, patience, sums not yet logged, fingerprints,
            and `metrics_bytes`, how long metrics.jsonl was.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def checkpoints_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return out / "checkpoints"


def checkpoint_path(out: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` updates."""
    return checkpoints_folder(out) / f"step_{step:0{STEP_DIGITS}d}"


def saved_steps(out: Path) -> list[int]:
    """Steps of the whole checkpoints in a run's folder, ascending; half-written ones do not count."""
    folder = checkpoints_folder(out)
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if not path.name.endswith(PARTIAL)]
    return sorted(int(name.removeprefix("step_")) for name in names if name.startswith("step_"))


def save_checkpoint(out: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole or not at all, then drop all but the last two.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """
    path = checkpoint_path(out, checkpoint.step)
    with atomic_folder(path, replace=True) as folder:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        write_bytes_atomic(folder / "state.safetensors", save(contiguous))
        write_json(folder / "state.json", checkpoint.state)
        write_manifest(folder, "pretraining_checkpoint", {"step": checkpoint.step})
    for step in saved_steps(out)[:-KEEP]:
        shutil.rmtree(checkpoint_path(out, step))
    return path


def load_checkpoint(out: Path) -> Checkpoint | None:
    """The last whole checkpoint of a run, or None when there is none yet."""
    steps = saved_steps(out)
    if not steps:
        return None
    folder = checkpoint_path(out, steps[-1])
    read_manifest(folder, "pretraining_checkpoint")
    return Checkpoint(steps[-1], load_file(folder / "state.safetensors"), read_json(folder / "state.json"))


@contextlib.contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Hold the run's folder: a second job in it would overwrite the first one's checkpoints.

    Raises:
        UserError: another living process holds it (the system frees the lock when that process dies).
    """
    with machine_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / ".lock", os.O_CREAT | os.O_WRONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another job is running in {out}; wait for it, stop it or choose another out"
        ) from error
    finally:
        os.close(descriptor)
