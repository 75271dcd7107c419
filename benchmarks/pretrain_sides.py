"""Our training step and the matrix products, each in a process of its own that computes when it is asked to."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from common_bench import seconds

PROMPT_LEN = 100
ALONE = {
    "dtype": "bfloat16",
    "zero_stage": 0,
    "tensor_parallel": 1,
    "offload": "none",
}  # no plan has to choose
FIRST_BUDGET = 4096  # encoder tokens of our micro-batches in the check
MOMENT = 0.06  # seconds over which a product is timed


@dataclass(frozen=True)
class Task:
    """What every side computes.

    Attributes:
        backbone: folder of the weights.
        corpora: folder of the build.
        format: which task corpus.
        rows: its examples of a round, in steps of `batch_size`.
        batch_size: examples of an optimiser step.
    """

    backbone: Path
    corpora: Path
    format: str
    rows: tuple[int, ...]
    batch_size: int


class Side:
    """A process that holds one side of the comparison.

    Args:
        kind: class to make there; its public methods are what can be asked for.
        arguments: of the class.
    """

    def __init__(self, kind: type, *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share threads
        self._pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(kind, arguments, there), daemon=True)
        self.process.start()
        there.close()
        self._receive()

    def ask(self, method: str, **arguments: object) -> Any:
        """Call a method there and wait for what it gives.

        Raises:
            RuntimeError: it failed, with the trace.
        """
        self._pipe.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"a side died (exit code {self.process.exitcode})") from None
        if kind == "error":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()


def _serve(kind: type, arguments: tuple[object, ...], pipe: Connection) -> None:
    try:
        side = kind(*arguments)
        pipe.send(("value", None))
        while True:
            method, given = pipe.recv()
            pipe.send(("value", getattr(side, method)(**given)))
    except EOFError:
        return
    except Exception:
        pipe.send(("error", traceback.format_exc()))


class Ours:
    """The product's own training step on a task, bfloat16; `changes`: settings of the run."""

    def __init__(self, task: Task, out: Path, changes: dict[str, Any]) -> None:
        from pretrain.distributed import start_processes
        from pretrain.engine import _prepare
        from pretrain.settings import PretrainSettings

        self._task = task
        self._settings = PretrainSettings(
            out=out, corpora=task.corpora, backbone=str(task.backbone), formats=[task.format],
            prompt_len=PROMPT_LEN, batch_size=task.batch_size, batch_tokens=FIRST_BUDGET,
            **{**ALONE, **changes},
        )  # fmt: skip
        self._processes = start_processes(self._settings.device)
        self._job = _prepare(self._settings, None, self._processes)
        self._pace = pace_alone(self._settings, self._processes)
        (group,) = self._job.groups
        fields = {one.name: getattr(group, one.name) for one in dataclasses.fields(group)}
        self._groups = [_chosen_rows()(**fields, chosen=np.array(task.rows))]
        self._job.groups[:] = self._groups
        self._job.batcher.groups[0] = self._groups[0]

    def start(self) -> np.ndarray:
        """[P, D] the prompt as it is now."""
        prompt: np.ndarray = self._job.bank.prompts_KPD[0].detach().float().cpu().numpy()
        return prompt.copy()

    def first_step(self, examples: int) -> tuple[float, np.ndarray]:
        """Loss and gradient of the prompt in a step that takes the first so many rows."""
        settings = self._settings.model_copy(update={"batch_size": examples})
        sums_KS = self._step(settings, 0)
        grad = self._job.bank.prompts_KPD.grad
        assert grad is not None
        return float(sums_KS[0, 2] / sums_KS[0, 3]), grad[0].float().cpu().numpy()

    def round(self, batch_tokens: int, examples: int | None = None) -> dict[str, float]:
        """Train on all rows once, or on the first so many; tells seconds, tokens and the padding's."""
        rows = len(self._task.rows) if examples is None else examples
        size = min(rows, self._task.batch_size)
        settings = self._settings.model_copy(update={"batch_tokens": batch_tokens, "batch_size": size})

        def work() -> None:
            for step in range(rows // size):
                self._step(settings, step)
            synchronize()

        took = seconds(work)
        lengths = self._groups[0].corpus.lengths(np.array(self._task.rows[:rows]), PROMPT_LEN)
        real = int((lengths + PROMPT_LEN).sum())
        return {"seconds": took, "tokens": real, "padded_tokens": real, "examples": rows}

    def profile(self, batch_tokens: int) -> str:
        """The operators that take longest in a step."""
        import torch

        settings = self._settings.model_copy(update={"batch_tokens": batch_tokens})
        with torch.profiler.profile() as profiler:
            self._step(settings, 0)
        on_gpu = self._processes.device.type == "cuda"
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        return str(profiler.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60))

    def _step(self, settings: Any, step: int) -> Any:
        from pretrain.step import train_step

        job = self._job
        update = train_step(
            job.net, job.bank, job.batcher, self._groups, step, settings, self._processes, self._pace
        )
        assert not update.spoilt, f"losses are no numbers: {update.spoilt}"
        return update.sums_KS


def pace_alone(settings: Any, processes: Any) -> Any:
    """The pace of a job of one process that nobody stops and nothing watches."""
    from pretrain.pace import Pace
    from pretrain.watchdog import Watchdog

    watchdog = Watchdog(settings.out, settings.process_timeout)
    return Pace(settings, processes, lambda: False, watchdog, time.monotonic())


def _chosen_rows() -> type:
    """A group that takes given rows over and over, in their order."""
    from pretrain.groups import Group

    @dataclass
    class ChosenRows(Group):
        chosen: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

        def rows_of_step(self, step: int, batch_size: int, seed: int) -> np.ndarray:
            places = np.arange(step * batch_size, (step + 1) * batch_size) % len(self.chosen)
            return self.chosen[places]

    return ChosenRows


class Products:
    """The matrix products of an encoder layer, alone: what the machine does at best with them.

    Args:
        shapes: (width in, width out, how many) each.
        tokens: rows to try.
    """

    DTYPES = ("bfloat16", "float32")

    def __init__(self, shapes: list[tuple[int, int, int]], tokens: tuple[int, ...]) -> None:
        import torch

        self._shapes, self._tokens = shapes, tokens
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def round(self) -> dict[str, float]:
        """FLOP/s of the products together, at the best number of rows, for each type of numbers."""
        return {dtype: max(self._rate(dtype, tokens) for tokens in self._tokens) for dtype in self.DTYPES}

    def _rate(self, dtype: str, tokens: int) -> float:
        import torch

        flops = took = 0.0
        for width, out, count in self._shapes:
            x = torch.randn(tokens, width, device=self._device).to(getattr(torch, dtype))
            w = torch.randn(out, width, device=self._device).to(x.dtype)
            into = torch.empty(tokens, out, dtype=x.dtype, device=self._device)
            turned = w.T.contiguous()

            # The layer's own call, and two that keep their memory: whichever is fastest is the ceiling.
            ways = (
                lambda x=x, w=w: torch.nn.functional.linear(x, w),
                lambda x=x, w=w, into=into: torch.mm(x, w.T, out=into),
                lambda x=x, w=turned, into=into: torch.mm(x, w, out=into),
            )
            took += count * min(self._mean(way) for way in ways)
            flops += count * 2 * tokens * width * out
        return flops / took

    def _mean(self, way: Any) -> float:
        """Seconds of a call, over calls that take a moment together: what is kept up, not the luckiest one."""
        way()
        calls = 1
        while True:
            took = seconds(lambda calls=calls: self._calls(way, calls))
            if took > MOMENT:
                return took / calls
            calls = max(calls + 1, int(calls * min(1.2 * MOMENT / took, 50)))

    def _calls(self, way: Any, calls: int) -> None:
        for _ in range(calls):
            way()
        synchronize()


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
