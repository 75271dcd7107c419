"""The processes of a job, through DeepSpeed: who am I, on which device, what I share with whom, sums over all."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from corpora.common.errors import UserError
from pretrain.watchdog import AGAIN, LostProcess


@dataclass(frozen=True)
class Processes:
    """This process among those of the job.

    Neighbouring ranks form a tensor-parallel group: they share each layer and compute the same examples. A data-parallel
    group takes one process of each of these, all with the same part of the layers.

    Attributes:
        rank: number of this process, from 0; rank 0 speaks and writes.
        world: how many there are.
        device: where this process computes.
        tensor_parallel: processes of a tensor-parallel group.
        tensor_group: torch's group of those that share layers with this one; None where it shares them with nobody.
        data_group: torch's group of those with the same part of the layers; None for all processes.
    """

    rank: int
    world: int
    device: torch.device
    tensor_parallel: int = 1
    tensor_group: Any = None
    data_group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    @property
    def tensor_rank(self) -> int:
        """Which part of each layer this process holds."""
        return self.rank % self.tensor_parallel

    @property
    def data_rank(self) -> int:
        """Which share of the examples this process computes."""
        return self.rank // self.tensor_parallel

    @property
    def data_world(self) -> int:
        """Into how many shares the examples are cut."""
        return self.world // self.tensor_parallel

    def sum(self, tensor: torch.Tensor, wishes: int = 0) -> torch.Tensor:
        """Add `tensor` up, in place, so that every example counts once; every process gets the same bits.

        Args:
            tensor: [N], or any shape without wishes. The processes of a tensor-parallel group have computed the same,
                so the first of each speaks for it (what the others computed may differ in rounding).
            wishes: how many numbers at the end are each process's own, and counted of all.

        Raises:
            LostProcess: another process is gone.
        """
        if self.world > 1:
            if self.tensor_rank > 0:
                tensor[: len(tensor) - wishes].zero_()
            with lost_process():
                torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with lost_process():
            torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            import deepspeed.comm

            with lost_process():
                deepspeed.comm.barrier()


@contextlib.contextmanager
def lost_process() -> Iterator[None]:
    """Say in one line that a collective failed because another process is gone; other errors pass through.

    Raises:
        LostProcess: another process of the job is gone.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        signs = (
            "gloo",
            "nccl",
            "closed by peer",
            "reset by peer",
            "broken pipe",
            "timed out waiting",
            "socket timeout",
        )
        if not isinstance(error, torch.distributed.DistError) and not any(
            sign in reason.lower() for sign in signs
        ):
            raise
        raise LostProcess(f"lost another process of the job ({reason[:120]}); {AGAIN}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep DeepSpeed's prints and its advice for its own developers away from people's screens."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for `device`, its log below errors switched off.

    Args:
        device: `cpu`, or `auto` for what the machine has. DeepSpeed settles this once in a process.
    """
    if device == "cpu" or not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with quiet():
        import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU DeepSpeed asks which of its compiled operators would work here, which links test programs (and
    # complains of libaio), and then compiles a shared-memory all-reduce for inference, half a minute of g++ the
    # first time. Nothing here calls any of them: with an empty answer ready it neither asks nor compiles.
    deepspeed.ops.__compatible_ops__ = {}
    # Deprecated in torch, called by DeepSpeed's ZeRO 3 at every gather.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    return deepspeed


def start_processes(device: str, tensor_parallel: int = 1, timeout: float = 1800.0) -> Processes:
    """Join the processes that the launcher started, or be the only one.

    Args:
        device: `cpu`, or `auto` for what the machine has.
        tensor_parallel: processes that share each layer.
        timeout: seconds that a process waits for the others in one call; they may load at very different speed.

    Raises:
        UserError: the processes cannot be divided into such groups.
    """
    deepspeed = import_deepspeed(device)
    accelerator = deepspeed.get_accelerator()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_cpu = accelerator.device_name() == "cpu"
    if not on_cpu:
        accelerator.set_device(local_rank)
    where = torch.device("cpu") if on_cpu else torch.device(accelerator.device_name(local_rank))
    if not deepspeed.comm.is_initialized():
        with quiet():
            if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
                deepspeed.init_distributed(
                    auto_mpi_discovery=False, verbose=False, timeout=datetime.timedelta(seconds=timeout)
                )
            else:
                _start_alone(deepspeed)
    return form_groups(deepspeed.comm.get_rank(), deepspeed.comm.get_world_size(), where, tensor_parallel)


def form_groups(rank: int, world: int, device: torch.device, tensor_parallel: int) -> Processes:
    """This process in its tensor-parallel and its data-parallel group; all processes call it together.

    Raises:
        UserError: the processes cannot be divided into such groups.
    """
    if world % tensor_parallel:
        raise UserError(
            f"tensor_parallel is {tensor_parallel} and the job has {world} process{'es' if world > 1 else ''}; expected "
            f"a multiple of {tensor_parallel} processes (the setting processes, or the launcher's --num_gpus)"
        )
    if tensor_parallel == 1:
        return Processes(rank, world, device)

    def mine(groups: list[list[int]]) -> Any:
        found, _ = torch.distributed.new_subgroups_by_enumeration(groups)
        return found

    ranks = list(range(world))
    neighbours = [ranks[start : start + tensor_parallel] for start in range(0, world, tensor_parallel)]
    same_parts = [ranks[start::tensor_parallel] for start in range(tensor_parallel)]
    return Processes(rank, world, device, tensor_parallel, mine(neighbours), mine(same_parts))


class ParallelUnit:
    """The groups as DeepSpeed asks for them (its `mpu`, an interface of Megatron-LM)."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def get_data_parallel_group(self) -> Any:
        """Processes with the same weights: DeepSpeed broadcasts and shards over them."""
        return self._processes.data_group

    def get_data_parallel_world_size(self) -> int:
        """How many they are."""
        return self._processes.data_world

    def get_data_parallel_rank(self) -> int:
        """This process among them."""
        return self._processes.data_rank

    def get_model_parallel_group(self) -> Any:
        """Processes that share each layer."""
        return self._processes.tensor_group

    def get_model_parallel_world_size(self) -> int:
        """How many they are."""
        return self._processes.tensor_parallel

    def get_model_parallel_rank(self) -> int:
        """This process among them."""
        return self._processes.tensor_rank


def share_machine(device: str) -> None:
    """Give this process its own GPU, and its part of the cores unless OMP_NUM_THREADS says how many.

    For processes that the launcher started and that do not talk to each other: nobody is waited for.

    Args:
        device: `cpu`, `cuda`, or `auto` for what the machine has.
    """
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "OMP_NUM_THREADS" not in os.environ:
        beside = int(
            os.environ.get("LOCAL_SIZE", "1")
        )  # processes on this machine: set by DeepSpeed's launcher
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // beside))


def keep_freed_memory() -> None:
    """Let a CPU process keep what large tensors free for the next ones.

    The C library gives blocks of 32 MB and more back to the system at once and gets them again page by page; in a loop of such
    tensors that takes a few percent of the time. Elsewhere than under glibc nothing happens.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**31 - 1)


def _start_alone(deepspeed: Any) -> None:
    """A group of one process needs no port: it meets itself in memory. DeepSpeed takes over a group that exists."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed looks for it
    backend = deepspeed.get_accelerator().communication_backend_name()
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def end_processes() -> None:
    """Leave the group: without it a process may abort while it exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        import deepspeed.comm

        with contextlib.suppress(Exception):
            deepspeed.comm.destroy_process_group()
