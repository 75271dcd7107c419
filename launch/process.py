"""How every process that the DeepSpeed launcher starts begins: its arguments, and libraries told to be quiet."""

from __future__ import annotations

import argparse
import os


def job_arguments(description: str) -> argparse.Namespace:
    """Read the arguments of a launched script, before anything heavy is imported.

    Args:
        description: what the script does.

    Returns:
        `config` and `overrides`.
    """
    parser = argparse.ArgumentParser(description=f"{description}; started by the deepspeed launcher.")
    parser.add_argument("config", help="a YAML file of settings, or the name of a preset")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return parser.parse_args()
