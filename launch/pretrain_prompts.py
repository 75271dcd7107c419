"""What the DeepSpeed launcher starts, once a process: `deepspeed launch/pretrain_prompts.py CONFIG [key=value ...]`."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from launch.process import job_arguments

# A signal may come before the heavy imports are done.
_stop_asked: list[int] = []
_began = time.monotonic()


def _ask_to_stop(number: int, frame: FrameType | None) -> None:
    _stop_asked.append(number)


def main() -> int:
    """Run this process's share of the job.

    Returns:
        0 when the run is finished, else the exit code of what ended it; the reason is printed once.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ask_to_stop)
    arguments = job_arguments("Pre-train prompt groups")
    from launch.exits import ENDINGS, end

    try:
        from corpora.common.settings import load_settings
        from launch.launcher import config_path, zero_config_path
        from pretrain.offload import with_offload
        from pretrain.settings import (
            PretrainSettings,
            check_inputs,
            check_same_run,
            read_deepspeed_config,
        )

        settings = load_settings(PretrainSettings, config_path(arguments.config), arguments.overrides)
        check_inputs(settings)
        check_same_run(settings)

        from pretrain.watchdog import Watchdog

        with Watchdog(settings.out, settings.process_timeout) as watchdog:
            from pretrain.distributed import end_processes, lost_process
            from pretrain.engine import pretrain
            from pretrain.plan_run import filled_in

            with lost_process():
                settings = filled_in(settings)
                json_path = settings.deepspeed_config or zero_config_path(settings.zero_stage or 0)
                deepspeed_config = with_offload(
                    read_deepspeed_config(json_path),
                    settings.offload or "none",
                    settings.nvme_path,
                    settings.out,
                )
                pretrain(
                    settings,
                    deepspeed_config,
                    lambda: bool(_stop_asked) or watchdog.stop_asked,
                    watchdog,
                    _began,
                )
            end_processes()
    except ENDINGS as error:
        return end(error, ended=lambda: bool(_stop_asked))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a process that leaves while others still talk to it may abort, and its exit code be lost
