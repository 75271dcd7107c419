"""A pool whose pieces of work Ray Data spreads over a cluster; workers need this package and the same folders."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from corpora.common.errors import MachineError, UserError

T = TypeVar("T")


class RayPool:
    """See `corpora.common.processes.Pool`; `ray_pool` gives one."""

    remote = True

    def __init__(self) -> None:
        import ray

        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def each(self, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """See `Pool.each`; all arguments are read before the first piece of work begins."""
        import ray
        import ray.data

        rows = [{"piece": number, "arguments": ray.put(given)} for number, given in enumerate(arguments)]
        if not rows:
            return

        def do(row: dict[str, Any]) -> dict[str, Any]:
            number = int(row["piece"])
            try:
                return {"piece": number, "result": [work(*ray.get(row["arguments"]))], "failed": False}
            except (
                Exception
            ) as error:  # raised again where the pieces are handed out: Ray's own error would hide it
                return {"piece": number, "result": [error], "failed": True}

        pieces = ray.data.from_items(rows, override_num_blocks=len(rows))
        try:
            for row in pieces.map(do).iter_rows():
                (result,) = row["result"]
                if row["failed"]:
                    raise result
                yield int(row["piece"]), result
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise MachineError(f"a worker of Ray was lost ({reason}); the same command goes on") from error


@contextlib.contextmanager
def ray_pool(workers: int) -> Iterator[RayPool]:
    """Work on the cluster that `RAY_ADDRESS` names, else on a Ray of this machine that ends with the work.

    Args:
        workers: processes of a Ray of this machine.

    Raises:
        UserError: Ray is not installed.
        MachineError: the cluster cannot be reached.
    """
    # Ray would otherwise give every worker an environment of its own, made anew by its package manager.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'prompt-pretraining[ray]'") from error
    own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MachineError(f"Ray cannot be reached ({str(error).strip().splitlines()[0]})") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield RayPool()
    finally:
        ray.shutdown()
