"""Checkpoints: what they hold, and how a run goes on from the last whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from corpora.common.errors import MachineError, Stopped, UserError
from pretrain.checkpoint import checkpoint_path, saved_steps, sound_step, spoilt
from pretrain.engine import pretrain
from pretrain.settings import PretrainSettings

Make = Callable[..., PretrainSettings]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1  # in the last tensor, or the JSON's text
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "tensors cut short": lambda folder: cut(folder / "state.safetensors"),
    "one bit of the tensors": lambda folder: flip(folder / "state.safetensors"),
    "JSON cut short": lambda folder: cut(folder / "state.json"),
    "manifest cut short": lambda folder: cut(folder / "manifest.json"),
    "tensors gone": lambda folder: (folder / "state.safetensors").unlink(),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()] and None,
}


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory, build_dir: Path, backbone_dir: Path
) -> tuple[PretrainSettings, Path]:
    """A finished run, and one that was stopped after five updates and has checkpoints of steps 4 and 5."""
    folder = tmp_path_factory.mktemp("stopped")
    run = PretrainSettings(
        out=folder / "whole", corpora=build_dir, backbone=str(backbone_dir), formats=["unified", "sentence_pair"],
        prompt_len=4, steps=6, batch_size=4, batch_tokens=2000, eval_every=3, save_every=2, log_every=2,
        eval_examples=10, device="cpu", learning_rate=0.5,
    )  # fmt: skip
    pretrain(run)
    half = run.model_copy(update={"out": folder / "half"})
    with pytest.raises(Stopped):
        pretrain(
            half, should_stop=lambda: 4 in saved_steps(half.out)
        )  # asked next after the update that follows
    assert saved_steps(half.out) == [4, 5]
    return run, half.out


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_spoilt_checkpoint_is_named_and_the_run_goes_on_from_the_one_before_to_the_same_bytes(
    stopped: tuple[PretrainSettings, Path], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, half = stopped
    run = whole.model_copy(update={"out": tmp_path / "run"})
    shutil.copytree(half, run.out)
    DAMAGE[damage](checkpoint_path(run.out, 5))
    pretrain(run)
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if line.startswith("warning: ") and "step-00000005" in line]
    assert len(warnings) == 1 and warnings[0].endswith("the checkpoint of step 5 is left out")
    assert any(line.startswith("going on from step 4 ") for line in lines)
    for file in ("metrics.jsonl", "finished.json", "prompts/unified/prompt.safetensors"):
        assert (run.out / file).read_bytes() == (whole.out / file).read_bytes(), file
    assert all(spoilt(run.out, step) is None for step in saved_steps(run.out))


def test_with_no_whole_checkpoint_left_the_run_says_what_to_do(
    stopped: tuple[PretrainSettings, Path], tmp_path: Path
) -> None:
    whole, half = stopped
    run = whole.model_copy(update={"out": tmp_path / "run"})
    shutil.copytree(half, run.out)
    for step in saved_steps(run.out):
        cut(checkpoint_path(run.out, step) / "state.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole; put one back from a copy, or remove"):
        pretrain(run)
    shutil.rmtree(run.out / "checkpoints")  # as it says
    pretrain(run)
    assert (run.out / "metrics.jsonl").read_bytes() == (whole.out / "metrics.jsonl").read_bytes()


def test_a_disk_that_cannot_be_read_spoils_no_checkpoint(
    stopped: tuple[PretrainSettings, Path], tmp_path: Path
) -> None:
    shutil.copytree(stopped[1], tmp_path / "run")
    file = checkpoint_path(tmp_path / "run", 5) / "state.safetensors"
    file.unlink()
    file.mkdir()  # opens with an error of the system, for root too
    with pytest.raises(
        MachineError, match=r"cannot read .*step-00000005: is a directory; nothing was changed"
    ):
        sound_step(tmp_path / "run")


def test_a_run_without_checkpoints_begins_at_the_start(tmp_path: Path) -> None:
    assert sound_step(tmp_path) is None


def test_a_checkpoint_holds_four_times_the_prompts_and_nothing_of_the_backbone(settings: Make) -> None:
    """Prompts, two moments and the best prompts, float32; of the backbone not one tensor."""
    run = settings(steps=2, prompt_len=100)
    pretrain(run)
    folder = checkpoint_path(run.out, 2)
    tensors = load_file(folder / "state.safetensors")
    prompt_bytes = 4 * 100 * 32 * 4  # formats x tokens x width x bytes
    assert {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()} == {
        "bank.prompts": prompt_bytes, "bank.mean": prompt_bytes, "bank.square": prompt_bytes, "best": prompt_bytes,
        "bank.steps": 4 * 8,
    }  # fmt: skip
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4 * prompt_bytes + 4000
