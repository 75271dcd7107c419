"""The pre-training loop in this process: what it learns, keeps, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pretrain.engine as engine
import pretrain.step as step_module
from corpora.common.errors import Stopped, UserError
from pretrain.artifact import load_prompt
from pretrain.backbone import load_backbone
from pretrain.checkpoint import checkpoint_path
from pretrain.engine import pretrain
from pretrain.groups import open_groups
from pretrain.settings import ALL_FORMATS, PretrainSettings

Make = Callable[..., PretrainSettings]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def prompt_bytes(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("prompts/*/prompt.safetensors"))}


def prompts(out: Path) -> dict[str, torch.Tensor]:
    return {
        path.parent.name: load_file(path)["prompt"]
        for path in sorted(out.glob("prompts/*/prompt.safetensors"))
    }


def same_run(one: Path, other: Path) -> None:
    assert prompt_bytes(one) == prompt_bytes(other)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "finished.json").read_bytes() == (other / "finished.json").read_bytes()


@pytest.mark.defect(13)
def test_one_job_trains_all_four_groups_from_the_files_that_the_build_wrote(
    settings: Make, backbone_dir: Path
) -> None:
    run = settings()
    summary = pretrain(run)
    assert sorted(summary) == sorted(ALL_FORMATS)
    backbone = load_backbone(str(backbone_dir))
    for name in ALL_FORMATS:
        prompt_PD, info = load_prompt(run.out / "prompts" / name)
        assert prompt_PD.shape == (4, 32) and prompt_PD.dtype == torch.float32
        assert info.format == name
        assert info.backbone_fingerprint == backbone.fingerprint
        assert info.corpus_manifest is not None
        assert info.step == summary[name]["step"]
    assert {row["format"] for row in rows(run.out)} == set(ALL_FORMATS)
    assert (run.out / "config.yaml").exists()
    assert list((run.out / "tensorboard").glob("events.*"))


@pytest.mark.defect(2)
def test_the_first_update_moves_the_prompts_that_were_loaded(settings: Make) -> None:
    """The released code loads them after its optimiser copied them, and throws its first update away."""
    at_0 = settings(
        steps=1, export_step=0, learning_rate=0.01, formats=["sentence_pair"], schedule="constant"
    )
    at_1 = settings(
        out=str(at_0.out) + "1", steps=1, export_step=1, learning_rate=0.01, formats=["sentence_pair"],
        schedule="constant", weight_decay=0.0,
    )  # fmt: skip
    pretrain(at_0)
    pretrain(at_1)
    start, moved = prompts(at_0.out)["sentence_pair"], prompts(at_1.out)["sentence_pair"]
    rms = load_backbone(at_0.backbone).embedding_rms
    # Adam's first update is the learning rate times the gradient's sign.
    change = ((moved - start).abs() / rms).numpy()
    assert np.median(change) == pytest.approx(0.01, rel=1e-2)
    assert change.max() == pytest.approx(0.01, rel=1e-2)


def test_the_backbone_learns_nothing(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(
        engine, "load_backbone", lambda *a, **k: loaded.append(load_backbone(*a, **k)) or loaded[0]
    )
    run = settings(steps=3)
    pretrain(run)
    before = load_backbone(run.backbone).model.state_dict()
    for name, tensor in loaded[0].model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None
    assert sum(file.stat().st_size for file in run.out.rglob("*.safetensors")) < 60_000


def test_the_held_out_loss_falls(settings: Make) -> None:
    run = settings(steps=40, formats=["sentence_pair"], batch_size=8, eval_every=40, schedule="constant")
    pretrain(run)
    losses = [row["loss"] for row in rows(run.out) if row["split"] == "validation"]
    assert losses[-1] < losses[0] - 0.4


@pytest.mark.defect(3)
def test_evaluation_scores_every_held_out_example_whatever_the_micro_batches(
    settings: Make, build_dir: Path
) -> None:
    from corpora.task_corpus import TaskCorpus

    names = ["sentence_pair", "single_text"]
    held = {name: len(TaskCorpus.open(build_dir, name).rows("validation")) for name in names}
    scores = []
    for batch_tokens in (400, 100_000):
        run = settings(
            out=f"{settings().out}{batch_tokens}", formats=names, eval_examples=None, batch_tokens=batch_tokens,
            steps=1, eval_every=100, prompt_len=2,
        )  # fmt: skip
        pretrain(run)
        first = [row for row in rows(run.out) if row["split"] == "validation" and row["step"] == 0]
        assert {row["format"]: row["examples"] for row in first} == held
        scores.append([(row["loss"], row["accuracy"]) for row in first])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def learnt(run: PretrainSettings, at_least: float = 0.1) -> dict[str, torch.Tensor]:
    """The prompts after the last step, which must have moved: two prompts that learnt nothing are equal, too."""
    pretrain(run)
    bank = load_file(checkpoint_path(run.out, run.steps) / "state.safetensors")["bank.prompts"]
    start = run.model_copy(update={"out": Path(f"{run.out}-start"), "steps": 1, "export_step": 0})
    pretrain(start)
    rms = load_backbone(run.backbone).embedding_rms
    found = dict(zip(run.formats, bank, strict=True))
    for name, before in prompts(start.out).items():
        assert float((found[name] - before).square().mean().sqrt()) > at_least * rms, name
    return found


def test_micro_batches_change_rounding_only(settings: Make) -> None:
    found = [
        learnt(settings(out=f"{settings().out}{tokens}", batch_tokens=tokens, steps=4, prompt_len=2))
        for tokens in (400, 100_000)
    ]
    for name in ALL_FORMATS:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_a_group_learns_the_same_alone_as_beside_the_others(settings: Make) -> None:
    together, alone = (
        settings(export_step=6),
        settings(out=str(settings().out) + "1", export_step=6, formats=["unified"]),
    )
    pretrain(together)
    pretrain(alone)
    torch.testing.assert_close(
        prompts(alone.out)["unified"], prompts(together.out)["unified"], rtol=1e-3, atol=1e-4
    )


def test_the_prompt_kept_is_that_of_the_lowest_held_out_loss(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: 3.0, 1: 1.0, 2: 2.0, 3: 1.0, 4: 5.0}
    seen = {}

    def scripted(net: Any, prompts_KPD: torch.Tensor, groups: Any, *rest: Any) -> Any:
        step = len(seen)
        seen[step] = prompts_KPD.detach().clone()
        return {group.name: engine.Score(losses[step], 0.5, 10) for group in groups}

    monkeypatch.setattr(engine, "evaluate", scripted)
    run = settings(steps=4, eval_every=1, formats=["single_text"])
    summary = pretrain(run)
    assert summary["single_text"]["step"] == 1  # equal losses: the earlier step
    assert torch.equal(prompts(run.out)["single_text"], seen[1][0])


def test_a_fixed_step_can_be_asked_for(settings: Make) -> None:
    run = settings(steps=5, export_step=4, eval_every=3, formats=["sentence_pair"])
    assert pretrain(run)["sentence_pair"]["step"] == 4


def test_a_group_without_improvement_leaves_the_job_and_the_others_go_on(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.evaluate

    def worse(*args: Any) -> Any:
        scores = real(*args)
        return {
            name: engine.Score(1.0 if name == "sentence_pair" else 1.0 / (2 + counter()), 0.5, 10)
            for name in scores
        }

    count = [0]

    def counter() -> int:
        count[0] += 1
        return count[0]

    monkeypatch.setattr(engine, "evaluate", worse)
    run = settings(steps=6, eval_every=1, log_every=1, patience=2, formats=["sentence_pair", "unified"])
    summary = pretrain(run)
    last = {name: max(r["step"] for r in rows(run.out) if r["format"] == name) for name in run.formats}
    assert last == {"sentence_pair": 2, "unified": 6}
    assert summary["sentence_pair"]["step"] == 0 and summary["unified"]["step"] == 6


@pytest.mark.defect(10)
@pytest.mark.parametrize("stop_after", [1, 2, 6, 9])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(settings: Make, stop_after: int) -> None:
    whole = settings(patience=2)
    pretrain(whole)
    run = settings(out=str(whole.out) + "-stopped", patience=2)
    asked = iter(range(1, 100))
    with pytest.raises(Stopped) as stopped:
        pretrain(run, should_stop=lambda: next(asked) >= stop_after)
    assert stopped.value.exit_code == 75
    pretrain(run)
    same_run(whole.out, run.out)


@pytest.mark.defect(10)
@pytest.mark.parametrize("place", ["train_step", "evaluate", "save_checkpoint", "save_prompt"])
def test_a_run_that_died_anywhere_goes_on_to_the_same_bytes(
    settings: Make, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    whole = settings()
    pretrain(whole)
    run = settings(out=str(whole.out) + "-died")
    real, calls = getattr(engine, place), iter(range(100))
    with monkeypatch.context() as patch:

        def die(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == 1:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        patch.setattr(engine, place, die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(run)
    pretrain(run)
    same_run(whole.out, run.out)


def test_a_finished_run_says_so_and_does_nothing(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = settings(steps=1)
    first = pretrain(run)
    times = {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}
    assert pretrain(run) == first
    assert {path: path.stat().st_mtime_ns for path in run.out.rglob("*")} == times


def test_another_setting_in_the_same_folder_is_refused_by_name(settings: Make) -> None:
    pretrain(settings(steps=1))
    with pytest.raises(UserError, match=r'"learning_rate" 0\.5, now it is 0\.25'):
        pretrain(settings(steps=1, learning_rate=0.25))


def test_another_backbone_under_the_same_name_is_refused(
    settings: Make, tmp_path: Path, backbone_dir: Path
) -> None:
    import shutil

    from safetensors.torch import save_file

    copy = tmp_path / "backbone"
    shutil.copytree(backbone_dir, copy)
    run = settings(backbone=str(copy))
    before = load_backbone(run.backbone).fingerprint
    with pytest.raises(Stopped):
        pretrain(run, should_stop=lambda: True)
    tensors = load_file(copy / "model.safetensors")
    tensors["shared.weight"] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    now = load_backbone(run.backbone).fingerprint
    with pytest.raises(
        UserError, match=f"begun with another backbone {copy} .fingerprint {before[:12]}, now {now[:12]}"
    ):
        pretrain(run)


def test_another_corpus_at_the_same_place_is_refused(
    settings: Make, tmp_path: Path, build_dir: Path, text_file: Path, tokenizer_dir: Path
) -> None:
    """As when it is built anew, with another seed, between two starts."""
    import shutil

    from corpora.build import build
    from corpora.build_settings import BuildSettings

    shutil.copytree(build_dir, tmp_path / "corpora")
    run = settings(corpora=str(tmp_path / "corpora"), formats=["unified", "sentence_pair"])
    with pytest.raises(Stopped):
        pretrain(run, should_stop=lambda: True)
    shutil.rmtree(tmp_path / "corpora")
    build(
        BuildSettings(
            text=[str(text_file)],
            tokenizer=str(tokenizer_dir),
            out=str(tmp_path / "corpora"),
            language="en",
            seed=1,
            formats=["unified", "sentence_pair"],
        )
    )
    before, now = (
        open_groups(settings(corpora=str(place), formats=["unified"]), load_backbone(run.backbone).tokenizer())[0]
        .corpus.manifest_hash[:12]
        for place in (build_dir, tmp_path / "corpora")
    )  # fmt: skip
    assert before != now
    with pytest.raises(UserError) as refused:
        pretrain(run)
    assert refused.value.exit_code == 2
    assert f"begun with another corpus {tmp_path}/corpora/unified (fingerprint {before}, now {now})" in str(
        refused.value
    )


def test_only_two_checkpoints_stay(settings: Make) -> None:
    run = settings(steps=6, save_every=1, formats=["unified"])
    pretrain(run)
    assert [path.name for path in sorted((run.out / "checkpoints").iterdir())] == [
        "step-00000005",
        "step-00000006",
    ]


def test_two_jobs_in_one_folder_are_refused(settings: Make) -> None:
    from pretrain.checkpoint import run_lock

    run = settings()
    with run_lock(run.out), pytest.raises(UserError, match="another job is running"):
        pretrain(run)


def test_a_vocabulary_other_than_the_backbones_is_refused(
    settings: Make, tmp_path: Path, build_dir: Path
) -> None:
    import shutil

    from corpora.common.files import read_json, write_json

    copy = tmp_path / "corpora"
    shutil.copytree(build_dir, copy)
    for folder in [copy / "store", *(copy / name for name in ALL_FORMATS)]:
        manifest = read_json(folder / "manifest.json")
        if folder.name == "store":
            manifest["tokenizer"]["fingerprint"] = "0" * 64
        manifest.pop("store", None)
        write_json(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match="tokenised with vocabulary 000000000000, the backbone's is"):
        pretrain(settings(corpora=str(copy)))


def test_all_target_positions_can_count_and_the_labels_own_loss_is_logged_beside(settings: Make) -> None:
    run = settings(count="all", steps=2, formats=["sentence_pair"])
    pretrain(run)
    row = next(row for row in rows(run.out) if row["split"] == "train")
    assert row["target_loss"] > 0 and row["target_loss"] != row["loss"]


def test_with_a_bfloat16_backbone_the_prompts_stay_float32(settings: Make) -> None:
    run = settings(dtype="bfloat16", steps=2, formats=["unified"])
    pretrain(run)
    prompt = prompts(run.out)["unified"]
    assert prompt.dtype == torch.float32
    assert not torch.equal(prompt, prompt.bfloat16().float())


@pytest.mark.parametrize("schedule", ["rsqrt", "constant", "linear"])
def test_the_schedule_is_written_with_every_row(settings: Make, schedule: str) -> None:
    run = settings(schedule=schedule, steps=4, log_every=1, formats=["unified"])
    pretrain(run)
    rates = [row["learning_rate"] for row in rows(run.out) if row["split"] == "train"]
    expected = {
        "rsqrt": [0.5, 0.5 / 2**0.5, 0.5 / 3**0.5, 0.25], "constant": [0.5] * 4, "linear": [0.5, 0.375, 0.25, 0.125],
    }  # fmt: skip
    assert rates == pytest.approx(expected[schedule])


def test_prompts_that_get_no_gradient_end_the_run_by_name(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight decay moves them all the same."""
    real = step_module.example_losses
    monkeypatch.setattr(step_module, "example_losses", lambda *arguments: real(*arguments) * 0.0)
    with pytest.raises(UserError, match="prompt unified does not train: its gradient has been zero"):
        pretrain(settings(steps=8, formats=["unified"], weight_decay=0.1))
