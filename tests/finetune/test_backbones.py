"""Backbones wait on the CPU, compute one at a time, and go."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from finetune import backbones, fewshot
from finetune.backbones import Backbones
from finetune.plan import plan
from finetune.workshop import Workshop
from pretrain.backbone import load_backbone


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """Device, way of holding the weights and a weak reference of every backbone that is loaded for prompts."""
    found: list[tuple[str, str, Any]] = []

    def load(name: str, dtype: str, device: str = "cpu", weights: Any = "full") -> Any:
        backbone = load_backbone(name, dtype, device, weights)
        found.append((str(device), weights, weakref.ref(backbone.model)))
        return backbone

    monkeypatch.setattr(backbones, "load_backbone", load)
    return found


def alive(loaded: list[tuple[str, str, Any]]) -> int:
    gc.collect()
    return sum(model() is not None for _, _, model in loaded)


def test_planning_loads_each_backbone_once_in_full_on_the_cpu_and_computes_with_none(
    small_run: Any, loaded: list[Any]
) -> None:
    workshop = Workshop(small_run(methods=["vanilla_pt", "lm_adaption"], weights="int8", device="cuda"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: 1)
        patch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
        plan(workshop)
    assert [place[:2] for place in loaded] == [("cpu", "full")] * 2


def test_no_backbone_of_prompts_is_there_while_the_other_one_or_full_tuning_computes(
    small_run: Any, loaded: list[Any], read_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held in eight bits, so that each is loaded anew to compute; what waits on the CPU counts too."""
    there: list[tuple[str, int]] = []

    class Schedule(fewshot.Schedule):
        def __init__(self, workshop: Any, which: str, choices: Any, path: Path) -> None:
            super().__init__(workshop, which, choices, path)
            there.append((which, alive(loaded)))

    real = fewshot.full_tuner

    def full_tuner(*arguments: Any) -> Any:
        there.append(("ft", alive(loaded)))
        return real(*arguments)

    monkeypatch.setattr(fewshot, "Schedule", Schedule)
    monkeypatch.setattr(fewshot, "full_tuner", full_tuner)
    methods = ["vanilla_pt", "lm_adaption", "ft"]
    settings = small_run(methods=methods, seeds=[0], learning_rates=[0.1], weights="int8")
    rows = {row["method"]: row for row in read_rows(fewshot.run_fewshot(settings))}
    assert there == [("main", 2), ("lm", 1), ("ft", 0)]  # beside main, lm waits
    assert [place[1] for place in loaded] == ["full", "full", "int8", "int8"]
    model = load_backbone(settings.backbone).model
    assert rows["ft"]["trained"] == sum(p.numel() for p in model.parameters())
    assert rows["vanilla_pt"]["trained"] == settings.prompt_len * model.config.d_model


def test_on_a_cpu_a_backbone_in_full_is_loaded_once(small_run: Any, loaded: list[Any]) -> None:
    held = Backbones(small_run())
    first = held.backbone("main")
    assert held.net("main").backbone is first is held.backbone("main") and len(loaded) == 1
    size = held.size("main")
    held.let_go("main")
    assert held.size("main") == size and len(loaded) == 1
    del first
    assert alive(loaded) == 0
    held.let_go("lm")  # it never was there
    assert held.backbone("main").d_model == size.d_model and len(loaded) == 2
