"""The paper's tables as settings of `ppt fewshot`, each by its name."""

from __future__ import annotations

from pathlib import Path

from corpora.common.settings import load_settings
from finetune.settings import FewshotSettings
from launch.launcher import LAUNCH, PRESETS, config_path

TABLES = PRESETS / "fewshot"
INSIDE = "launch:"  # begins a path that lies in this package, wherever it is installed


def fewshot_settings(config: str | Path, overrides: list[str] | None = None) -> FewshotSettings:
    """Settings of a few-shot run from a file or a preset.

    Args:
        config: a YAML file, or the name of one in `launch/presets/fewshot`.
        overrides: `key=value` settings, which go before the file's.

    Raises:
        UserError: neither exists, or a setting is wrong.
    """
    settings = load_settings(FewshotSettings, config_path(config, TABLES), overrides)
    return settings.model_copy(
        update={
            "backbone": _inside(settings.backbone),
            "lm_backbone": settings.lm_backbone and _inside(settings.lm_backbone),
            "tasks": tuple(map(_inside, settings.tasks)),
        }
    )


def _inside(path: str) -> str:
    return str(LAUNCH / path.removeprefix(INSIDE)) if path.startswith(INSIDE) else path
