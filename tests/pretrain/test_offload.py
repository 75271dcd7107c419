"""Where a frozen backbone lies while ZeRO 3 computes, and what is said before anything starts when it cannot lie there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from corpora.common.errors import MachineError, UserError
from pretrain.offload import check_dtype, check_offload, fit_buffers, swap_folder, swap_removed, with_offload
from pretrain.settings import PretrainSettings, check_inputs

PRESET = json.loads((Path(__file__).parents[2] / "launch" / "zero" / "zero3.json").read_text())


def test_a_preset_gets_the_block_that_deepspeed_reads(tmp_path: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert with_offload(PRESET, "none", None, tmp_path / "run") == PRESET
    cpu = with_offload(PRESET, "cpu", None, tmp_path / "run")["zero_optimization"]
    assert DeepSpeedZeroConfig(**cpu).offload_param.device == "cpu"
    nvme = with_offload(PRESET, "nvme", tmp_path, tmp_path / "run")["zero_optimization"]
    assert DeepSpeedZeroConfig(**nvme).offload_param.nvme_path == swap_folder(tmp_path, tmp_path / "run")
    assert "offload_param" not in PRESET["zero_optimization"]


def test_buffers_hold_a_process_share_of_the_largest_weight_unless_a_file_says_otherwise() -> None:
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "disk"}}
    assert fit_buffers(zero, 1001, 2)["offload_param"]["buffer_size"] == 502
    own = {"stage": 3, "offload_param": {"device": "nvme", "buffer_size": 7}}
    assert fit_buffers(own, 1001, 2) == own
    for other in ({"stage": 3}, {"stage": 3, "offload_param": {"device": "cpu"}}):
        assert fit_buffers(other, 1001, 2) == other


def test_each_run_has_a_folder_of_its_own_on_the_disk_and_leaves_nothing(tmp_path: Path) -> None:
    one, other = swap_folder(tmp_path, Path("run")), swap_folder(tmp_path, Path("other"))
    assert one != other and one == swap_folder(tmp_path, Path("run").absolute())
    for folder in (one, other):
        (folder / "zero_stage_3").mkdir(parents=True)
    with pytest.raises(RuntimeError), swap_removed("nvme", tmp_path, Path("run"), first=True):
        raise RuntimeError
    with swap_removed("nvme", tmp_path, Path("other"), first=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"offload": "cpu", "zero_stage": 0}, "offload is cpu, which fills in the preset of ZeRO 3; expected zero_stage 3"),
        ({"offload": "cpu", "zero_stage": 3, "deepspeed_config": "own.json"}, "no deepspeed_config"),
        ({"offload": "nvme", "zero_stage": 3}, "offload is nvme and nvme_path is not set"),
        ({"offload": "cpu", "zero_stage": 3, "nvme_path": "disk"}, "offload is cpu and nvme_path is disk"),
        ({"tensor_parallel": 2, "processes": 3}, "tensor_parallel is 2 and processes is 3; expected a multiple of 2"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(
    settings: Callable[..., PretrainSettings], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**changes)


def test_a_missing_folder_is_one_line(tmp_path: Path, settings: Callable[..., PretrainSettings]) -> None:
    run = settings(zero_stage=3, offload="nvme", nvme_path=str(tmp_path / "disk"))
    with pytest.raises(UserError, match="disk does not exist; expected a folder on an NVMe disk"):
        check_inputs(run)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is missing")
def test_a_machine_without_libaio_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "CFLAGS", "-Dio_setup=io_setup_of_no_library"
    )  # where it is installed, nothing is found either
    with pytest.raises(MachineError, match="install libaio-dev") as caught:
        check_offload("nvme", tmp_path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_a_machine_without_a_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="install g"):
        check_offload("nvme", tmp_path)


def test_weights_that_would_come_back_from_the_disk_as_another_type_are_refused() -> None:
    nvme: dict[str, Any] = {"stage": 3, "offload_param": {"device": "nvme"}}
    with pytest.raises(
        UserError, match=r"works in bfloat16 alone .* is float32; expected dtype bfloat16, or offload cpu"
    ):
        check_dtype(nvme, "float32", "cpu")
    check_dtype(nvme, "bfloat16", "cpu")
    check_dtype(nvme, "float32", "cuda")
    check_dtype({"stage": 3}, "float32", "cpu")
