"""The benches of pre-training in their quickest form: what they measure cannot rot unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


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
    env = {key: value for key, value in os.environ.items() if key != "PPT_DATA"} | {"PYTHONPATH": str(path)}
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
    found = run(tmp_path, "gpu", "--dry-run", "--only", "check,ours,peft_fixed")
    checks = found["raw"]["check"]
    assert checks["float32"]["ok"] and checks["grouped"]["ok"] and checks["checkpointing"]["ok"]
    assert found["ratios"]["tiny-gated/peft_fixed"] > 0
    assert found["raw"]["ours"]["predicted_gb"] > 0 and len(found["raw"]["ours"]["losses"]) == 2


def test_the_gpu_bench_runs_where_little_is_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    found = run(tmp_path, "gpu", "--dry-run", "--only", "ours,peft_fixed", path=tmp_path)
    assert found["raw"]["ours"]["tokens_a_second"] > 0
    assert found["raw"]["peft_fixed"]["skipped"] == "No module named 'peft'"


@pytest.mark.torture
def test_the_gpu_bench_runs_every_variant_dry(tmp_path: Path) -> None:
    found = run(tmp_path, "gpu", "--dry-run", "--minutes", "20")["raw"]
    assert all("failed" not in one for one in found.values()), found
