"""The benches of pre-training in their quickest form: what they measure cannot rot unseen."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HIDDEN = ("PPT_DATA", "LOCAL_RANK")  # real data; what DeepSpeed left behind in this process


# Hides packages, and this one where it is installed.
BARE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {"bitsandbytes", "blingfire", "deepspeed", "orjson", "peft", "pyarrow", "zstandard"}
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name.split(".")[0] in HIDDEN else find(name, path, target)
)
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in getattr(one, "__module__", "")]
"""


def run(folder: Path, name: str, *arguments: str, path: Path = ROOT) -> dict[str, Any]:
    """Run a bench in `folder`, with `path` as PYTHONPATH, and read what it wrote there."""
    # Without PPT_DATA, and from the tree that is tested.
    env = {key: value for key, value in os.environ.items() if key not in HIDDEN} | {"PYTHONPATH": str(path)}
    command = [sys.executable, str(ROOT / "benchmarks" / f"bench_{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "runs" / "bench" / f"{name}.json").read_text())
    return found


def test_the_pretraining_bench_checks_the_rival_and_writes_ratios_and_shares(tmp_path: Path) -> None:
    found = run(tmp_path, "pretrain", "--shapes", "tiny", "--only", "ours,grouped", "--quick")
    assert found["settings"]["text"] == "generated"
    assert found["ratios"].keys() == {"tiny/peft_grouped"} and found["ratios"]["tiny/peft_grouped"] > 0
    assert 0 < found["ceiling_share"]["tiny"] < 1
    sides = found["raw"]["tiny"]
    assert sides["ours"]["tokens_a_second"] > 0 and 0 <= sides["grouped"]["padding"] < 0.1
    (ours,), (grouped,) = sides["rounds"]["ours"], sides["rounds"]["grouped"]
    assert ours["tokens"] == grouped["tokens"] and ours["examples"] == grouped["examples"]


def test_the_gpu_bench_runs_dry_without_a_gpu(tmp_path: Path) -> None:
    found = run(tmp_path, "gpu", "--dry-run", "--only", "check,ours,peft_fixed,peft_grouped")
    checks = found["raw"]["check"]
    assert checks["float32"]["ok"] and checks["grouped"]["ok"] and checks["checkpointing"]["ok"]
    assert found["ratios"]["tiny-gated/peft_fixed"] > 0
    assert found["raw"]["peft_grouped"]["padding"] < 0.05 < found["raw"]["peft_fixed"]["padding"]
    aims = {(one["variant"], one["figure"]): one for one in found["aims"]}
    fixed = aims["peft_fixed", "ours_by"]
    assert fixed["met"] == (found["ratios"]["tiny-gated/peft_fixed"] >= fixed["bound"] == 4)
    assert found["raw"]["ours"]["predicted_gb"] > 0 and len(found["raw"]["ours"]["losses"]) == 2


def test_the_gpu_bench_runs_where_little_is_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    found = run(tmp_path, "gpu", "--dry-run", "--only", "ours,peft_fixed", path=tmp_path)
    assert found["raw"]["ours"]["tokens_a_second"] > 0
    assert found["raw"]["peft_fixed"]["skipped"] == "No module named 'peft'"


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("pretrain_variants")


def test_each_size_is_written_before_the_next_is_tried(tmp_path: Path, variants: Any) -> None:
    path = tmp_path / "found.json"
    seen: list[dict[str, Any]] = []

    def rate(size: int, least: float) -> dict[str, Any]:
        seen.append(json.loads(path.read_text()) if path.exists() else {})
        if size == 2:
            raise ValueError("a kernel failed")
        return {"tokens_a_second": 10.0 - size}

    assert variants._try_all((1, 2, 3), rate, variants.Found(path), "micro") == 1
    assert seen[0] == {} and seen[1]["micro"] == 1 and seen[1]["tokens_a_second"] == 9.0
    assert seen[2]["tried"]["2"] == {"failed": "ValueError: a kernel failed"}


def test_nothing_is_timed_that_did_not_run_before(variants: Any) -> None:
    calls: list[int] = []

    def work(number: int) -> int:
        calls.append(number)
        return 7

    found = variants._rate(work, 0.0, 2)
    assert calls == [0, 1, 0, 1] and found["calls"] == 2


def test_a_way_that_fails_leaves_the_others_their_verdicts(
    tmp_path: Path, variants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"loss": 1.0, "apart": 0.0, "cosine": 1.0, "norms": 1.0, "ok": True}
    monkeypatch.setattr(variants, "_plain", lambda plan: (1.0, None))

    def judge(plan: Any, name: str, loss: float, grad: None) -> dict[str, Any]:
        if name == "flex":
            raise RuntimeError("no kernel")
        if name == "nf4":
            raise ImportError("no package")
        return good

    monkeypatch.setattr(variants, "_check", judge)
    found = variants.Found(tmp_path / "found.json")
    plan = variants.Plan("tiny", "cpu", 8, (1024,), (4,), 0.0, ("flex", "nf4", "float32"))
    variants.check(plan, found)
    assert found["flex"] == {"ok": False, "failed": "RuntimeError: no kernel"} and found["float32"]["ok"]
    unproven = importlib.import_module("gpu_table").unproven
    assert unproven({"check": found}, plan.checks) == ["flex", "nf4"]
    assert unproven({"check": {"skipped": "no time left"}}, plan.checks) == list(plan.checks)


def test_the_gpu_bench_ends_with_an_error_where_a_check_has_no_verdict(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py"), "--dry-run", "--only", "check"]
    done = subprocess.run(
        [*command, "--minutes", "0"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "NO VERDICT: no time left" in done.stdout


@pytest.mark.torture
def test_the_gpu_bench_runs_every_variant_dry(tmp_path: Path) -> None:
    found = run(tmp_path, "gpu", "--dry-run", "--minutes", "20")["raw"]
    assert all("failed" not in one for one in found.values()), found
