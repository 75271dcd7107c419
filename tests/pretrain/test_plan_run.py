"""A run's open settings are filled in from its plan, and what is set stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
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
    (settings.out / "checkpoints" / "step-00000001").mkdir(parents=True)
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


def test_a_key_set_now_that_differs_from_the_recorded_plan_makes_a_new_one(settings: Make) -> None:
    begun = filled_in(settings(batch_tokens=None))
    write_config(begun, zero_stage=3, offload="cpu", batch_tokens=1500)
    same = filled_in(settings(batch_tokens=None, zero_stage=3))
    assert (same.zero_stage, same.offload, same.batch_tokens) == (3, "cpu", 1500)
    other = filled_in(settings(batch_tokens=None, zero_stage=0))
    assert (other.zero_stage, other.offload, other.batch_tokens) == (0, "none", begun.batch_tokens)


def test_a_recorded_plan_that_no_settings_would_allow_is_refused(settings: Make) -> None:
    write_config(filled_in(settings(batch_tokens=None)), zero_stage=0, offload="cpu")
    with pytest.raises(UserError, match="the plan: offload is cpu, which fills in the preset of ZeRO 3"):
        filled_in(settings(batch_tokens=None))


def test_a_plan_that_does_without_the_disk_lets_its_folder_go(settings: Make, tmp_path: Path) -> None:
    after = filled_in(settings(nvme_path=str(tmp_path)))
    assert (after.offload, after.nvme_path) == ("none", None)


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


class Two(Processes):
    """One of two processes whose other one is on another device; `gather` is in the order of ranks."""

    def __init__(self, rank: int, other: Any) -> None:
        super().__init__(rank, 2, torch.device("cpu"))
        object.__setattr__(self, "others", list(other))

    def gather(self, value: Any) -> list[Any]:
        other = self.others.pop(0)  # type: ignore[attr-defined]
        return [value, other] if self.first else [other, value]


def test_processes_on_different_devices_get_the_first_ones_with_the_smallest_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_SIZE", "1")
    h100, l4 = known_devices()["H100-80GB"], known_devices()["L4-24GB"]
    fleets = []
    for rank, (mine, other) in enumerate([(h100, l4), (l4, h100)]):
        monkeypatch.setattr(plan_run, "this_device", lambda on_gpu, local, mine=mine: (mine, mine.kind))
        fleets.append(plan_run._fleet(Two(rank, [(other, 1, other.kind)])))
    assert fleets[0] == fleets[1] == (Fleet(replace(h100, memory=l4.memory), 1, 2), "H100-80GB")


def test_processes_on_different_devices_take_the_first_ones_plan(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second alone would come to another: its corpora are not those of the first."""
    import pretrain.distributed as distributed

    first = {
        "zero_stage": 3, "tensor_parallel": 1, "offload": "none", "checkpointing": True, "batch_tokens": 1234,
    }  # fmt: skip
    h100 = known_devices()["H100-80GB"]
    second = Two(1, [None, (h100, 2, None), (first, "why", None)])
    monkeypatch.setattr(distributed, "start_processes", lambda *_, **__: second)
    after = filled_in(settings(batch_tokens=None))
    assert {key: getattr(after, key) for key in PLANNED_KEYS} == first


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
