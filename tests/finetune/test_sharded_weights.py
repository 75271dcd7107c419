"""Full tuning by several processes gives what one gives: real processes through DeepSpeed's launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from finetune.calibrate import ItemSet
from finetune.full_tuning import full_tuner
from finetune.sharded_weights import engine_config, even_rounds, share_out
from finetune.tune import TuneOptions

OPTIONS = TuneOptions(
    eval_every=2, batch_tokens=256, weight_decay=1e-3, clip=1.0, ft_weight_decay=0.01, count="label", length_normalised=False
)  # fmt: skip
WAYS = [(0, "float32"), (2, "float32"), (3, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")]
SCRIPT = """
import json, os, sys, weakref
from pathlib import Path
from corpora.common.settings import load_settings
from finetune.calibrate import ItemSet
from finetune.full_tuning import full_tuner
from finetune.memory import give_back_memory
from finetune.settings import FewshotSettings
from pretrain.distributed import end_processes
from finetune.methods import rows_for
from finetune.tune import TuneOptions
from finetune.workshop import Cell, Workshop

settings = load_settings(FewshotSettings, sys.argv[1])
workshop = Workshop(settings)
(row,) = rows_for(workshop.task(settings.tasks[0]), ("ft",))
trials = [workshop.trial(Cell(settings.tasks[0], 12, row, 0, rate)) for rate in settings.rates("ft")]
options = TuneOptions(**json.loads(sys.argv[4]))
found = []
for stage, dtype in json.loads(sys.argv[3]):
    changes = {"ft_zero_stage": stage, "ft_dtype": dtype}
    tuner = full_tuner(settings.model_copy(update=changes), settings.backbone, options)
    outcomes = tuner.tune_rates(trials)
    scores = tuner.score_best(ItemSet(trials[0].dev, trials[0].verbalizer))
    held = sum(
        p.ds_tensor.numel() if stage == 3 else p.numel() for p in tuner.weights.backbone.model.parameters()
    )
    model = weakref.ref(tuner.weights.backbone.model)
    kept = sum(kept.numel() for kept in tuner.weights._kept.values())
    tuner.end()
    del tuner
    give_back_memory()
    found.append({
        "gone": model() is None,
        "curves": [outcome.curve for outcome in outcomes],
        "diverged": [outcome.diverged for outcome in outcomes],
        "log_probs": scores.log_probs.tolist(),
        "labels": scores.labels.tolist(),
        "held": held,
        "kept": kept,
    })
Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(found))
end_processes()
os._exit(0)
"""


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory,
    backbone_dir: Path,
    prompts_dir: Path,
    task_files: dict[str, str],
) -> dict[str, Any]:
    """What two processes found each way, and the settings: 12 examples in batches of 11 and 1, three rates, one diverges."""
    from finetune.settings import FewshotSettings

    folder = tmp_path_factory.mktemp("sharded")
    settings = FewshotSettings(
        out=str(folder / "run"), backbone=str(backbone_dir), tasks=(task_files["mood"],), seeds=(0,), shots=12,
        dev_shots=12, epochs=4, batch_size=11, ft_learning_rates=(3e-4, 3e-3, 1e39), prompt_len=4, device="cpu",
    )  # fmt: skip
    (folder / "fewshot.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (folder / "tune.py").write_text(SCRIPT)
    command = [
        str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--no_local_rank",
        str(folder / "tune.py"), str(folder / "fewshot.yaml"), str(folder), json.dumps(WAYS),
        json.dumps(asdict(OPTIONS)),
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {"settings": settings, "ranks": ranks}


@pytest.mark.parametrize("way", range(len(WAYS)), ids=[f"zero{stage}-{dtype}" for stage, dtype in WAYS])
def test_two_processes_tune_what_one_tunes(found: dict[str, Any], ft_trials: Any, way: int) -> None:
    _, dtype = WAYS[way]
    settings, (one, other) = found["settings"], (rank[way] for rank in found["ranks"])
    trials = ft_trials(settings)
    tuner = full_tuner(settings, settings.backbone, OPTIONS)
    outcomes = tuner.tune_rates(trials)
    scores = tuner.score_best(ItemSet(trials[0].dev, trials[0].verbalizer))
    assert one["curves"] == other["curves"] and one["log_probs"] == other["log_probs"]
    assert one["labels"] == scores.labels.tolist()
    assert one["diverged"][:2] == [None, None] and one["diverged"][2] is not None
    near = 1e-4 if dtype == "float32" else 0.15
    for outcome, curve in zip(outcomes[:2], one["curves"][:2], strict=True):
        assert [point["step"] for point in curve] == [point["step"] for point in outcome.curve]
        for point, wanted in zip(curve, outcome.curve, strict=True):
            assert point["dev_loss"] == pytest.approx(wanted["dev_loss"], abs=near)
            if wanted["train_loss"] is not None:
                assert point["train_loss"] == pytest.approx(wanted["train_loss"], abs=near)
    if dtype == "float32":
        np.testing.assert_allclose(one["log_probs"], scores.log_probs, atol=1e-3)
        assert np.array_equal(np.argmax(one["log_probs"], axis=1), scores.predictions)
    assert (
        outcomes[1].curve[-1]["dev_loss"] < outcomes[1].curve[0]["dev_loss"] - 0.5
    )  # there was something to learn


def test_each_process_keeps_its_share(found: dict[str, Any]) -> None:
    whole = found["ranks"][0][0]["held"]
    for rank in found["ranks"]:
        for (stage, _), seen in zip(WAYS, rank, strict=True):
            assert seen["kept"] < 0.51 * whole
            assert seen["held"] < 0.51 * whole or stage < 3


def test_up_to_zero_2_weights_leave_the_memory_when_all_is_tuned(found: dict[str, Any]) -> None:
    for rank in found["ranks"]:
        assert all(seen["gone"] for (stage, _), seen in zip(WAYS, rank, strict=True) if stage < 3)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_every_process_makes_as_many_passes_and_every_example_counts_once(world: int, count: int) -> None:
    lengths = [7 + (3 * i) % 11 for i in range(count)]
    work = [share_out(lengths, 40, rank, world) for rank in range(world)]
    assert len({len(passes) for passes in work}) == 1
    counted = [int(i) for passes in work for group, counts in passes if counts for i in group]
    assert sorted(counted) == list(range(count))
    idle = [group for passes in work for group, counts in passes if not counts]
    assert all(len(group) == 1 for group in idle)
    assert all(sum(lengths[i] for i in group) <= 40 for passes in work for group, _ in passes)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 33])
def test_in_each_round_every_process_scores_as_many_examples(world: int, count: int) -> None:
    lengths = [7 + (5 * i) % 23 for i in range(count)]
    seen: set[int] = set()
    for parts, budget in even_rounds(lengths, 60, world):
        assert len(parts) == world and len({len(part) for part in parts}) == 1
        for part in parts:
            longest = max(lengths[i] for i in part)
            assert len(part) * longest <= budget <= 60
            seen.update(int(i) for i in part)
    assert seen == set(range(count))
    assert [list(part) for parts, _ in even_rounds([90], 60, world) for part in parts] == [[0]] * world


def test_bfloat16_asks_for_float32_masters_and_sums() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    config = DeepSpeedConfig(engine_config(2, "bfloat16", 1.0))
    assert config.bfloat16_config.enabled and config.grad_accum_dtype == "fp32"
    assert config.gradient_clipping == 1.0 and config.zero_config.stage == 2
