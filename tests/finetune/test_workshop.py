"""What cells are made of: pre-trained prompts that do not fit are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import UserError
from finetune.fewshot import run_fewshot
from pretrain.checkpoint import run_lock


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "format",
            "unified",
            "single_text holds a prompt of the format unified, expected one of single_text",
        ),
        ("tokenizer_fingerprint", "f" * 64, "fingerprint ffffffffffff.*not with"),
    ],
)
def test_a_prompt_of_another_format_or_tokenizer_is_refused_by_both_names(
    small_run: Any, prompts_dir: Path, tmp_path: Path, field: str, value: str, message: str
) -> None:
    folder = tmp_path / "prompts" / "single_text"
    shutil.copytree(prompts_dir / "single_text", folder)
    info = json.loads((folder / "prompt.json").read_text())
    (folder / "prompt.json").write_text(json.dumps({**info, field: value}))
    settings = small_run(prompts=str(tmp_path / "prompts"), methods=["ppt"])
    with pytest.raises(UserError, match=message):
        run_fewshot(settings)
    assert not Path(settings.out).exists()


def test_a_second_job_in_the_folder_of_a_run_is_refused(small_run: Any) -> None:
    settings = small_run(methods=["vanilla_pt"], seeds=[0])
    with run_lock(Path(settings.out)), pytest.raises(UserError, match="another job is running"):
        run_fewshot(settings)
    assert not (Path(settings.out) / "results.jsonl").exists()
