"""A report of a real run: what `ppt fewshot` writes is what `ppt report` reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from corpora.common.errors import UserError
from finetune.report import report, summarise

if TYPE_CHECKING:
    from finetune.settings import FewshotSettings


def test_a_run_of_every_method_is_reported_whole(
    tmp_path: Path, small_run: Callable[..., FewshotSettings], task_files: dict[str, str]
) -> None:
    from finetune.fewshot import run_fewshot
    from finetune.methods import METHODS

    run = run_fewshot(
        small_run(tasks=[task_files["pair"], task_files["ten"]], epochs=1, learning_rates=[0.3])
    )
    result = report([run], tmp_path / "out")
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert result.summary == summarise(rows)
    assert result.table is not None
    table = {line[0].text: [entry.text for entry in line[1:]] for line in result.table.body}
    assert set(table) == {method.title for method in METHODS.values()}
    assert result.table.head == ("method", "pair", "pair F1", "ten", "average")
    assert not any("missing" in entry for line in table.values() for entry in line)
    assert table["Unified PPT"][2].endswith("†") and not table["Unified PPT"][0].endswith("†")
    assert "## Words nearest to each prompt" in result.text and "pre-trained, sentence_pair" in result.text
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {
        "bars.png",
        "differences.png",
        "curves_dev.png",
        "curves_dev_loss.png",
        "curves_train_loss.png",
    }
    assert "transformers" in (tmp_path / "out" / "report.json").read_text(encoding="utf-8")


def test_words_of_the_pretrained_prompts_stand_in_the_report_of_a_run_that_names_a_pretraining_run(
    tmp_path: Path, small_run: Callable[..., FewshotSettings], prompts_dir: Path
) -> None:
    from finetune.fewshot import run_fewshot

    (tmp_path / "pretrain" / "checkpoints").mkdir(parents=True)
    shutil.copytree(prompts_dir, tmp_path / "pretrain" / "prompts")
    run = run_fewshot(
        small_run(
            prompts=str(tmp_path / "pretrain"), methods=["ppt"], seeds=[0], epochs=1, learning_rates=[0.3]
        )
    )
    text = report([run], tmp_path / "out").text
    found = re.findall(r"^\| pre-trained, (\w+) +\| \S+ -?\d\.\d\d", text, flags=re.MULTILINE)
    assert found == ["multiple_choice", "sentence_pair", "single_text", "unified"]


def test_runs_of_other_settings_are_refused_by_the_setting(
    tmp_path: Path, small_run: Callable[..., FewshotSettings]
) -> None:
    from finetune.fewshot import run_fewshot

    common: dict[str, Any] = {"methods": ["vanilla_pt"], "seeds": [0], "learning_rates": [0.3]}
    one = run_fewshot(small_run(out=str(tmp_path / "one"), **common))
    two = run_fewshot(small_run(out=str(tmp_path / "two"), **common, epochs=2))
    with pytest.raises(UserError, match=r'"protocol\.epochs".*3 and 2'):
        report([one, two], tmp_path / "out")
