"""What cells are made of: pre-trained prompts that do not fit are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import UserError
from finetune import workshop as module
from finetune.fewshot import run_fewshot
from finetune.methods import rows_for
from finetune.workshop import Cell, Workshop
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
    # Before anything is loaded: there is no such backbone.
    unloadable = settings.model_copy(update={"backbone": "nowhere"})
    with run_lock(Path(settings.out)), pytest.raises(UserError, match="another job is running"):
        run_fewshot(unloadable)
    assert not (Path(settings.out) / "results.jsonl").exists()


def test_the_rates_of_a_choice_and_methods_of_one_pattern_share_their_rendered_rows(
    small_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run(methods=["vanilla_pt", "hybrid_pt", "ppt"], calibration="contextual")
    workshop, name = Workshop(settings), settings.tasks[0]
    vanilla, hybrid, ppt = rows_for(workshop.task(name), settings.methods)

    def trial(row: Any = vanilla, rate: float = 0.1, seed: int = 0) -> Any:
        return workshop.trial(Cell(name, 12, row, seed, rate))

    first = trial()
    for other in (trial(rate=1.0), trial(row=ppt)):
        assert other.train is first.train and other.dev is first.dev
        assert other.content_free is first.content_free and first.content_free
    for other in (trial(row=hybrid), trial(seed=1)):
        assert [item.input_ids.tolist() for item in other.train] != [
            i.input_ids.tolist() for i in first.train
        ]
    workshop.forget_task(name)
    again = trial()
    assert again.train is not first.train
    assert [i.input_ids.tolist() for i in again.train] == [i.input_ids.tolist() for i in first.train]
    monkeypatch.setattr(module, "DRAWN_KEPT", 1)
    trial(seed=1)  # takes its place
    assert trial().train is not again.train


def test_full_tuning_forgets_a_task_after_its_last_choice(
    small_run: Any, task_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    real_trial, real_forget = Workshop.trial, Workshop.forget_task

    def trial(self: Workshop, cell: Cell) -> Any:
        said.append(self.task(cell.task).name)
        return real_trial(self, cell)

    def forget(self: Workshop, name: str) -> None:
        said.append(f"forget {self.task(name).name}")
        real_forget(self, name)

    monkeypatch.setattr(Workshop, "trial", trial)
    monkeypatch.setattr(Workshop, "forget_task", forget)
    run_fewshot(small_run(methods=["ft"], tasks=[task_files["mood"], task_files["pair"]], epochs=1))
    assert said == ["mood", "mood", "forget mood", "pair", "pair", "forget pair"]


def test_where_all_is_tuned_no_model_is_built_for_full_tuning(
    small_run: Any, read_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"methods": ["ft"], "seeds": [0], "epochs": 1}
    rows = read_rows(run_fewshot(small_run(**changes)))
    monkeypatch.delattr("finetune.fewshot.full_tuner")
    for stage in (None, 2):
        assert read_rows(run_fewshot(small_run(**changes, ft_zero_stage=stage))) == rows
