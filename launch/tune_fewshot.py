"""What the DeepSpeed launcher starts, once a process: `deepspeed launch/tune_fewshot.py CONFIG [key=value ...]`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from launch.process import job_arguments

# A signal may come before there is anybody to say why the process ends.
_stop_asked: list[int] = []


def _ask_to_stop(number: int, frame: FrameType | None) -> None:
    _stop_asked.append(number)


def _other_gone() -> bool:
    """Whether another process of this machine is gone: the launcher then ends the rest, and `ppt fewshot` says why."""
    import psutil

    try:
        beside = psutil.Process(os.getppid()).children()
        alive = [process for process in beside if process.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return True
    return len(alive) < int(os.environ["LOCAL_SIZE"])


def main() -> int:
    """Run this process's share of the job.

    Returns:
        0 when the run is finished, 75 when it was stopped and can go on, else the exit code of what ended it; the
        reason is printed once.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ask_to_stop)
    arguments = job_arguments("Tune few-shot cells")
    from corpora.common.errors import Stopped
    from launch.exits import ENDINGS, end

    class _Ended(Stopped):
        """The launcher ends this process because another one is gone."""

    def stop(number: int, frame: FrameType | None) -> None:
        _ask_to_stop(number, frame)
        if len(_stop_asked) == 1:  # else one is on its way up already
            raise (
                _Ended()
                if _other_gone()
                else Stopped("stopped; the same command goes on from what is finished")
            )

    try:
        if _stop_asked:
            raise Stopped("stopped before it began; the same command starts it")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        from launch.launcher import fewshot_settings

        settings = fewshot_settings(arguments.config, arguments.overrides)

        from finetune.fewshot import run_fewshot
        from finetune.meeting import meet
        from finetune.shares import Share
        from pretrain.distributed import end_processes, lost_process, share_machine

        share_machine(settings.device or "auto")
        share = Share(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")))
        with lost_process():
            run_fewshot(meet(settings, share), share)
        end_processes()
    except _Ended as error:
        return error.exit_code
    except ENDINGS as error:
        # Asked by a user, all are; those after the first wait until it has spoken and is gone.
        return end(error, ended=_other_gone)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a process that leaves while others still talk to it may abort, and its exit code be lost
