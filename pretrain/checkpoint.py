"""What a killed run needs to go on bit for bit: prompts, optimiser state, position; nothing of the backbone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save

from corpora.common.errors import MachineError, PPTError, UserError
from corpora.common.files import (
    atomic_folder,
    hash_file,
    machine_errors,
    read_json,
    read_manifest,
    write_bytes_atomic,
    write_json,
    write_manifest,
)
from corpora.common.progress import say

if TYPE_CHECKING:
    from pretrain.distributed import Processes

KEEP = 2  # checkpoints kept; each holds all that is needed, of prompts the best so far as well
KIND = "pretraining_checkpoint"
FILES = ("state.safetensors", "state.json")


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


def checkpoint_path(out: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` updates, of prompts or of a backbone."""
    return out / "checkpoints" / f"step-{step:08d}"


def saved_steps(out: Path) -> list[int]:
    """Steps of the whole checkpoints in a run's folder, ascending; half-written ones do not count."""
    steps = [path.name.removeprefix("step-") for path in (out / "checkpoints").glob("step-*")]
    return sorted(int(step) for step in steps if step.isdigit())  # a half-written one ends in `.partial`


def last_checkpoint(out: Path) -> Path | None:
    """Folder of a run's last whole checkpoint, or None when there is none yet."""
    steps = saved_steps(out)
    return checkpoint_path(out, steps[-1]) if steps else None


def last_good(out: Path) -> str:
    """The part of an error message that says where a run which went wrong can go on from."""
    last = last_checkpoint(out)
    return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"


def drop_old_checkpoints(out: Path) -> None:
    """Remove all of a run's checkpoints but the last two."""
    for step in saved_steps(out)[:-KEEP]:
        shutil.rmtree(checkpoint_path(out, step))


def save_checkpoint(out: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole or not at all, with the hash of each file; then drop all but the last two.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """
    path = checkpoint_path(out, checkpoint.step)
    with atomic_folder(path, replace=True) as folder:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        write_bytes_atomic(folder / "state.safetensors", save(contiguous))
        write_json(folder / "state.json", checkpoint.state)
        sha256 = {name: hash_file(folder / name) for name in FILES}
        write_manifest(folder, KIND, {"step": checkpoint.step, "sha256": sha256})
    drop_old_checkpoints(out)
    return path


def spoilt(out: Path, step: int) -> str | None:
    """Why a checkpoint cannot be gone on from: a file is missing, cut short or changed; None when it is sound.

    Raises:
        MachineError: it cannot be read.
    """
    folder = checkpoint_path(out, step)
    try:
        sha256 = read_manifest(folder, KIND).get("sha256", {})
        for name in FILES:
            if not (folder / name).exists():
                return f"{folder / name} is missing"
            if hash_file(folder / name) != sha256.get(name):
                return f"{folder / name} was cut short or changed"
    except (UserError, AttributeError, FileNotFoundError) as error:
        return str(error)
    except OSError as error:  # the disk's fault says nothing of what is written there
        reason = (error.strerror or str(error)).lower()
        raise MachineError(f"cannot read {folder}: {reason}; nothing was changed, try again") from error
    return None


def sound_step(out: Path) -> int | None:
    """Step of the last checkpoint that is whole, saying which later ones are not; None when there is none yet.

    Raises:
        UserError: there are checkpoints and all are spoilt.
        MachineError: one cannot be read.
    """
    steps = saved_steps(out)
    for step in reversed(steps):
        why = spoilt(out, step)
        if why is None:
            return step
        say(f"warning: {why}; the checkpoint of step {step} is left out")
    if steps:
        raise UserError(
            f"no checkpoint in {out / 'checkpoints'} is whole; put one back from a copy, or remove that folder to "
            "begin at step 0 again"
        )
    return None


def load_checkpoint(out: Path, step: int) -> Checkpoint:
    """The checkpoint that `sound_step` named."""
    folder = checkpoint_path(out, step)
    return Checkpoint(step, load_file(folder / "state.safetensors"), read_json(folder / "state.json"))


def drop_spoilt(out: Path, after: int) -> None:
    """Remove checkpoints later than the one gone on from: they are spoilt, and written again when their step comes."""
    for step in saved_steps(out):
        if step > after:
            shutil.rmtree(checkpoint_path(out, step))


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


@contextlib.contextmanager
def job_lock(out: Path, processes: Processes) -> Iterator[None]:
    """`run_lock` for all processes of a job: the first takes it, and none goes on before it has it.

    Raises:
        UserError: on every process, another job holds it.
    """
    with contextlib.ExitStack() as stack:
        refused: Exception | None = None
        if processes.first:
            try:
                stack.enter_context(run_lock(out))
            except (PPTError, OSError) as error:
                refused = error
        refused = processes.gather(refused)[0]
        if refused is not None:
            raise refused
        yield
