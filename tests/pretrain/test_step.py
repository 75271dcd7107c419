"""Updates whose loss or gradient is no number, from a backbone that overflows on one token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pretrain.engine as engine
from corpora.common.errors import MachineError, Stopped
from corpora.common.settings import save_settings
from corpora.tokenizer import Tokenizer
from pretrain.checkpoint import checkpoint_path, saved_steps
from pretrain.distributed import Processes
from pretrain.engine import pretrain
from pretrain.groups import Group, open_groups
from pretrain.settings import PretrainSettings
from pretrain.step import _spoilt

Make = Callable[..., PretrainSettings]
NAME = "sentence_pair"
STEPS = 8


def tokens(group: Group, rows: Any, tokenizer: Tokenizer) -> list[set[int]]:
    """The token ids of each example."""
    rendered = group.corpus.render_batch(np.asarray(rows), tokenizer, 4)
    parts = np.split(rendered.input_ids, rendered.offsets[1:-1])
    return [set(part.tolist()) for part in parts]


def overflowing(backbone_dir: Path, tokenizer_dir: Path, token: int, folder: Path) -> Path:
    """A backbone of finite weights on which the examples with one token, and they alone, come to NaN.

    That token alone has something in the last dimension, and nothing else: normed it is the root of the width there,
    5.7, and no mixture of dimensions comes near. The first norm's weight times that is more than float32 holds; the
    projections ignore the dimension, and zero times infinity is no number.
    """
    import shutil

    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(backbone_dir)
    with torch.no_grad():
        table = model.shared.weight
        norm = table[token].norm()
        table[:, -1] = 0
        table[token] = 0
        table[token, -1] = norm
        layer = model.encoder.block[0].layer[0]
        layer.layer_norm.weight[-1] = torch.finfo(torch.float32).max / 5.5
        for projection in (layer.SelfAttention.q, layer.SelfAttention.k, layer.SelfAttention.v):
            projection.weight[:, -1] = 0
    shutil.copytree(tokenizer_dir, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def bad(
    settings: Make, tmp_path: Path, backbone_dir: Path, tokenizer_dir: Path, tokenizer: Tokenizer
) -> tuple[PretrainSettings, dict[int, list[int]]]:
    """A run that meets a token on which its backbone overflows; at which steps, counted from 1, in which rows."""
    run = settings(
        formats=[NAME], steps=STEPS, eval_examples=3, save_every=3, batch_size=2, on_nonfinite="skip",
        log_every=1, out=str(tmp_path / "skips"),
    )  # fmt: skip
    (group,) = open_groups(run, tokenizer)
    held = set().union(*tokens(group, group.held_rows, tokenizer))
    where: dict[int, dict[int, list[int]]] = {}
    for step in range(STEPS):
        rows = group.rows_of_step(step, run.batch_size, run.seed)
        for row, ids in zip(rows.tolist(), tokens(group, rows, tokenizer), strict=True):
            for token in ids - held:
                where.setdefault(token, {}).setdefault(step + 1, []).append(row)
    token = next(t for t, steps in sorted(where.items()) if len(steps) in (2, 3) and 1 not in steps)
    backbone = overflowing(backbone_dir, tokenizer_dir, token, tmp_path / "overflowing")
    return run.model_copy(update={"backbone": str(backbone)}), where[token]


def skipped(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "skipped"]


def test_a_step_that_overflows_stops_the_run_and_names_step_examples_and_checkpoint(
    bad: tuple[PretrainSettings, dict[int, list[int]]],
) -> None:
    run, where = bad
    with pytest.raises(MachineError) as caught:
        pretrain(run.model_copy(update={"on_nonfinite": "stop"}))
    first = min(where)
    message = str(caught.value)
    assert message.startswith(f"step {first}: not finite ({NAME} examples ")
    assert set(map(str, where[first])) <= set(message.partition("examples ")[2].partition(")")[0].split(", "))
    good = [step for step in range(0, first, run.save_every) if step]
    expected = (
        f"the last good checkpoint is {checkpoint_path(run.out, good[-1])}" if good else "no checkpoint yet"
    )
    assert expected in message and "on_nonfinite=skip" in message


def test_skipped_steps_are_written_down_and_change_nothing(
    bad: tuple[PretrainSettings, dict[int, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, where = bad
    states = []
    real = engine.train_step

    def watched(net: Any, bank: Any, *rest: Any) -> Any:
        before = bank.state()
        update = real(net, bank, *rest)
        if update.spoilt:
            states.append((before, bank.state()))
        return update

    monkeypatch.setattr(engine, "train_step", watched)
    pretrain(run)
    rows = skipped(run.out)
    assert [row["step"] for row in rows] == sorted(where)
    for row in rows:
        assert row["format"] == NAME and set(where[row["step"]]) <= set(row["rows"])
    assert len(states) == len(where)
    for before, after in states:
        assert all(torch.equal(before[name], after[name]) for name in before)
    last = load_file(checkpoint_path(run.out, STEPS) / "state.safetensors")
    assert int(last["bank.steps"][0]) == STEPS - len(where)
    assert all(torch.isfinite(tensor).all() for tensor in last.values() if tensor.is_floating_point())


def test_a_run_that_skips_goes_on_to_the_same_bytes_and_so_does_one_that_stopped_first(
    bad: tuple[PretrainSettings, dict[int, list[int]]],
) -> None:
    whole, _ = bad
    pretrain(whole)
    killed = whole.model_copy(update={"out": Path(f"{whole.out}-killed")})
    with pytest.raises(Stopped):  # right after the first update that was left out
        pretrain(
            killed, should_stop=lambda: (killed.out / "metrics.jsonl").exists() and bool(skipped(killed.out))
        )
    assert saved_steps(killed.out)[-1] < STEPS
    pretrain(killed)
    ended = whole.model_copy(update={"out": Path(f"{whole.out}-ended")})
    with pytest.raises(MachineError):
        pretrain(ended.model_copy(update={"on_nonfinite": "stop"}))
    pretrain(ended)
    for other in (killed, ended):
        for file in ("metrics.jsonl", "finished.json", f"prompts/{NAME}/prompt.safetensors"):
            assert (other.out / file).read_bytes() == (whole.out / file).read_bytes(), file


def test_two_processes_of_which_one_overflows_both_skip_and_learn_what_one_process_learns(
    bad: tuple[PretrainSettings, dict[int, list[int]]],
) -> None:
    alone, where = bad
    both = alone.model_copy(update={"out": Path(f"{alone.out}-both"), "processes": 2})
    config = both.out.with_suffix(".yaml")
    save_settings(config, both)
    command = [str(Path(sys.executable).with_name("ppt")), "pretrain", str(config)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pretrain(alone)
    assert [row["step"] for row in skipped(both.out)] == [row["step"] for row in skipped(alone.out)]
    for row in skipped(both.out):
        assert row["format"] == NAME and set(where[row["step"]]) <= set(row["rows"])
    one, other = (load_file(checkpoint_path(run.out, STEPS) / "state.safetensors") for run in (alone, both))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().max() <= 1e-3 * tensor.abs().max(), name


def test_where_only_a_logged_sum_overflows_no_other_group_is_blamed(
    settings: Make, tokenizer: Tokenizer
) -> None:
    groups = open_groups(settings(formats=[NAME, "unified"]), tokenizer)
    alone = Processes(0, 1, torch.device("cpu"))
    assert _spoilt([], groups, torch.tensor([True, False]), alone) == {"unified": []}


def test_too_many_in_a_row_end_the_run_all_the_same(
    bad: tuple[PretrainSettings, dict[int, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, where = bad
    monkeypatch.setattr(engine, "MOST_SKIPPED", 1)
    with pytest.raises(MachineError, match=f"step {min(where)}: not finite .*all left out; .*; try a lower"):
        pretrain(run)
