"""What the DeepSpeed launcher starts, once a process: `deepspeed launch/train_backbone.py CONFIG [key=value ...]`."""

from __future__ import annotations

import sys

from launch.process import job_arguments


def main() -> int:
    """Run this process's share of the job.

    Returns:
        0 when the run is finished, 75 when it was stopped and can go on, else the exit code of what ended it.
    """
    arguments = job_arguments("Train a backbone")
    from launch.exits import ENDINGS, end

    try:
        from corpora.common.settings import load_settings
        from launch.launcher import config_path
        from pretrain.backbone_settings import BackboneTrainSettings
        from pretrain.backbone_training import train_backbone
        from pretrain.distributed import end_processes

        settings = load_settings(BackboneTrainSettings, config_path(arguments.config), arguments.overrides)
        try:
            train_backbone(settings)
        finally:
            end_processes()
    except ENDINGS as error:
        return end(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
