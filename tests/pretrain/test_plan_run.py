"""A run's open settings are filled in from its plan, and what is set stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import pretrain.plan_run as plan_run
from corpora.common.errors import UserError
from corpora.common.settings import read_yaml
from pretrain.devices import Fleet, known_devices
from pretrain.distributed import Processes
from pretrain.engine import pretrain
from pretrain.plan_run import filled_in, workload
from pretrain.settings import PLANNED_KEYS, PretrainSettings, check_same_run

Make = Callable[..., PretrainSettings]


def write_config(settings: PretrainSettings, **changes: Any) -> None:
    settings.out.mkdir(parents=True)
    values = {**settings.model_dump(mode="json"), **changes}
    (settings.out / "config.yaml").write_text(yaml.safe_dump(values))


def on(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> None:
    """Let the job believe that it runs on these devices."""
    monkeypatch.setattr(plan_run, "_fleet", lambda processes: (fleet, None))


def test_open_settings_are_filled_in_and_nothing_else_changes(settings: Make) -> None:
    before = settings(batch_tokens=None)
    after = filled_in(before)
    assert all(getattr(after, key) is not None for key in PLANNED_KEYS)
    assert (after.zero_stage, after.tensor_parallel, after.offload) == (0, 1, "none")
    assert 1024 <= after.micro_batch_tokens <= 8192
    assert after.planned_for == 1
    changed = {*PLANNED_KEYS, "planned_for"}
    assert after.model_dump(exclude=changed) == before.model_dump(exclude=changed)


def test_what_is_set_stays(settings: Make) -> None:
    chosen = {
        "zero_stage": 2,
        "tensor_parallel": 1,
        "offload": "none",
        "checkpointing": True,
        "batch_tokens": 777,
    }
    assert filled_in(settings(**chosen)) == settings(**chosen)
    after = filled_in(settings(batch_tokens=777, checkpointing=True))
    assert (after.batch_tokens, after.checkpointing, after.zero_stage) == (777, True, 0)


def test_a_run_that_goes_on_keeps_its_plan_unless_the_number_of_processes_changed(settings: Make) -> None:
    begun = filled_in(settings(batch_tokens=None))
    write_config(begun, batch_tokens=1500)
    assert filled_in(settings(batch_tokens=None)).batch_tokens == 1500
    check_same_run(settings(batch_tokens=None))
    (begun.out / "config.yaml").write_text(
        yaml.safe_dump({**begun.model_dump(mode="json"), "batch_tokens": 1500, "planned_for": 4})
    )
    assert filled_in(settings(batch_tokens=None)).batch_tokens == begun.batch_tokens


def test_the_plan_stands_in_the_runs_config_and_the_run_ends_like_one_that_was_told(settings: Make) -> None:
    from safetensors.torch import load_file

    names = ["sentence_pair"]
    planned = settings(formats=names, steps=2, eval_every=2, batch_tokens=None)
    told = planned.model_copy(update={"out": planned.out.with_name("told"), "batch_tokens": 200})
    pretrain(planned)
    recorded = read_yaml(planned.out / "config.yaml")
    assert all(recorded[key] is not None for key in PLANNED_KEYS)
    pretrain(told)
    one, other = (
        load_file(run.out / "prompts" / names[0] / "prompt.safetensors")["prompt"] for run in (planned, told)
    )
    assert (one - other).abs().max() < 1e-3 * other.abs().max()


def test_lengths_are_those_of_the_corpora(settings: Make, tmp_path: Path) -> None:
    work, source = workload(settings())
    assert str(settings().corpora) in source
    assert work.tokens < work.attended < work.longest
    assert (work.prompts, work.examples) == (4, 16)
    assumed, source = workload(settings(corpora=str(tmp_path / "none")), tokens=200)
    assert (assumed.tokens, source) == (200, "given")


def test_where_nothing_fits_the_error_says_which_weights_would(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Fleet(known_devices()["L4-24GB"]))
    with pytest.raises(
        UserError, match=r"does not fit 1xL4-24GB with weights=full: .*; weights=(int8|nf4) would fit"
    ):
        filled_in(settings(backbone="google/t5-v1_1-xxl", dtype="bfloat16", offload="none"))


def test_too_small_gpus_share_the_backbone_by_default(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Fleet(known_devices()["RTX4090-24GB"], 2))
    xxl = settings(backbone="google/t5-v1_1-xxl", dtype="bfloat16", batch_tokens=None)
    assert filled_in(xxl).tensor_parallel == 2
    assert filled_in(xxl.model_copy(update={"zero_stage": 3})).tensor_parallel == 1


def test_the_smallest_memory_of_all_processes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Two(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value, (1e9, *value[1:])]

    monkeypatch.setenv("LOCAL_SIZE", "1")
    fleet, _ = plan_run._fleet(Two(0, 2, torch.device("cpu")))
    assert (fleet.device.memory, fleet.per_machine, fleet.machines) == (1e9, 1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"offload": "cpu", "zero_stage": 3},
        {"zero_stage": 3},
        {"weights": "fp8", "dtype": "bfloat16"},
    ],
)
def test_what_settings_say_outright_is_taken_though_no_plan_would_think_of_it(
    settings: Callable[..., PretrainSettings], changes: dict[str, Any]
) -> None:
    run = filled_in(settings(**changes, batch_tokens=None))
    assert {key: getattr(run, key) for key in changes} == changes
    assert run.batch_tokens is not None and run.tensor_parallel == 1
