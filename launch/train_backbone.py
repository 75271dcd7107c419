"""What the DeepSpeed launcher starts, once a process: `deepspeed launch/train_backbone.py CONFIG [key=value ...]`."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Run this process's share of the job.

    Returns:
        0 when the run is finished, 75 when it was stopped and can go on, else the exit code of what ended it.
    """
    parser = argparse.ArgumentParser(description="Train a backbone; started by the deepspeed launcher.")
    parser.add_argument("config", help="a YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    arguments = parser.parse_args()
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
