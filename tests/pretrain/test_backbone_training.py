"""`ppt backbone train`: what is learnt, what is written, what a restart gives."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from corpora.common.errors import MachineError, Stopped, UserError
from corpora.formats import Pattern
from corpora.tokenizer import Tokenizer
from pretrain import backbone_files, backbone_training
from pretrain.backbone_settings import BackboneTrainSettings
from pretrain.backbone_training import train_backbone
from pretrain.vocabulary import train_vocabulary

SHAPE = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 1}


def settings(out, tokenizer_dir, text_file, **fields):
    values = {
        "out": str(out),
        "tokenizer": str(tokenizer_dir),
        "shape": SHAPE,
        "text": [str(text_file)],
        "mixture": {"span": 0.7, "prefix": 0.3},
        "steps": 6,
        "batch_tokens": 256,
        "max_tokens": 48,
        "warmup": 2,
        "device": "cpu",
        "eval_examples": 8,
        "log_every": 2,
        **fields,
    }
    return BackboneTrainSettings.model_validate(values)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def rows(out, split):
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_a_tiny_model_learns_and_the_folder_loads(tmp_path, tokenizer_dir, text_file, cloze_file):
    run = settings(
        tmp_path / "run",
        tokenizer_dir,
        text_file,
        steps=120,
        mixture={"span": 0.5, "prefix": 0.2, "cloze": 0.3},
        cloze=[str(cloze_file)],
        eval_cloze=[str(cloze_file)],
        log_every=20,
        save_dtype="bfloat16",
    )
    out = train_backbone(run)
    train, held_out = rows(out, "train"), rows(out, "held-out")
    assert train[-1]["step"] == 120
    assert train[-1]["span"] < 0.8 * train[0]["span"]
    assert train[-1]["encoder"] < 0.8 * train[0]["encoder"]
    assert held_out[-1]["pages/accuracy"] == 1.0  # three records, seen over and over
    assert {"span", "prefix"} <= set(held_out[-1])

    model = T5ForConditionalGeneration.from_pretrained(out)
    tokenizer = Tokenizer.load(out)
    assert model.dtype == torch.bfloat16
    assert model.config.decoder_start_token_id == 0
    assert tokenizer.fingerprint == Tokenizer.load(tokenizer_dir).fingerprint
    fields = {"s": tokenizer.encode(["Anna found the oven."])[0]}
    ids = Pattern.parse("{s} <X>").render(tokenizer, fields, max_tokens=48)
    decoder = torch.tensor([[0, tokenizer.sentinel(0)]])
    logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], decoder_input_ids=decoder).logits
    assert int(logits[0, -1].argmax()) == tokenizer.word_ids("great")[0]
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert manifest["settings"]["seed"] == 0
    assert set(manifest["final"]) == set(held_out[-1]) - {"step", "split"}


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_computes_what_was_trained(tmp_path, tokenizer_dir, text_file, tied):
    kept = {}

    def remember(model, *_):
        kept.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        kept["scaled"] = model.config.scale_decoder_outputs

    shape = {**SHAPE, "tie_word_embeddings": tied, "feed_forward_proj": "gated-gelu"}
    run = settings(tmp_path / "run", tokenizer_dir, text_file, shape=shape, steps=3)
    original = backbone_training.save_model
    backbone_training.save_model = lambda model, *rest: (remember(model), original(model, *rest))
    try:
        out = train_backbone(run)
    finally:
        backbone_training.save_model = original
    model = T5ForConditionalGeneration.from_pretrained(out)
    assert model.config.scale_decoder_outputs is tied is kept.pop("scaled")
    assert (model.lm_head.weight is model.shared.weight) is tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def test_zero_steps_give_a_seeded_random_backbone(tmp_path, tokenizer_dir, text_file):
    made = [
        train_backbone(settings(tmp_path / str(i), tokenizer_dir, text_file, steps=0, text=[], seed=seed))
        for i, seed in enumerate([3, 3, 4])
    ]
    assert weights(made[0]) == weights(made[1]) != weights(made[2])
    assert T5ForConditionalGeneration.from_pretrained(made[0]).config.d_model == 32


def test_killed_and_restarted_gives_the_same_bytes(
    tmp_path, tokenizer_dir, text_file, cloze_file, monkeypatch
):
    fields = {
        "save_every": 2,
        "cloze": [str(cloze_file)],
        "mixture": {"span": 0.5, "prefix": 0.2, "cloze": 0.3},
    }
    whole = train_backbone(settings(tmp_path / "whole", tokenizer_dir, text_file, **fields))
    broken = settings(tmp_path / "broken", tokenizer_dir, text_file, **fields)
    step = backbone_training._step
    for dies_at in (1, 3, 5):  # before the first checkpoint, between two, before the last step

        def dying(*arguments, at=dies_at):
            if arguments[7] == at:
                raise RuntimeError("killed")
            return step(*arguments)

        monkeypatch.setattr(backbone_training, "_step", dying)
        with pytest.raises(RuntimeError):
            train_backbone(broken)
    monkeypatch.setattr(backbone_training, "_step", step)
    out = train_backbone(broken)
    assert weights(out) == weights(whole)
    for name in ("metrics.jsonl", "manifest.json", "config.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_other_optimisers_learn_and_resume_alike(tmp_path, tokenizer_dir, text_file, optimizer):
    fields = {"optimizer": optimizer, "learning_rate": 0.01, "steps": 4, "save_every": 2}
    whole = train_backbone(settings(tmp_path / "whole", tokenizer_dir, text_file, **fields))
    copy = settings(tmp_path / "copy", tokenizer_dir, text_file, **fields)
    checkpoint = whole / "checkpoints" / "step-00000002"
    (tmp_path / "copy" / "checkpoints").mkdir(parents=True)
    os.rename(checkpoint, tmp_path / "copy" / "checkpoints" / checkpoint.name)
    assert weights(train_backbone(copy)) == weights(whole)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, tokenizer_dir, text_file, monkeypatch):
    whole = train_backbone(settings(tmp_path / "whole", tokenizer_dir, text_file))
    stopped = settings(tmp_path / "stopped", tokenizer_dir, text_file)
    step = backbone_training._step

    def asked(*arguments):
        if arguments[7] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(backbone_training, "_step", asked)
    with pytest.raises(Stopped) as found:
        train_backbone(stopped)
    assert found.value.exit_code == 75
    assert (tmp_path / "stopped" / "checkpoints" / "step-00000003").is_dir()
    monkeypatch.setattr(backbone_training, "_step", step)
    assert weights(train_backbone(stopped)) == weights(whole)


def test_lm_adaption_starts_from_the_given_weights(tmp_path, backbone_dir, tokenizer_dir, text_file):
    fields = {"init": str(backbone_dir), "tokenizer": None, "mixture": {"prefix": 1.0}}
    same = train_backbone(settings(tmp_path / "same", tokenizer_dir, text_file, steps=0, **fields))
    adapted = train_backbone(settings(tmp_path / "adapted", tokenizer_dir, text_file, steps=3, **fields))
    before = T5ForConditionalGeneration.from_pretrained(backbone_dir).state_dict()
    untouched = T5ForConditionalGeneration.from_pretrained(same).state_dict()
    after = T5ForConditionalGeneration.from_pretrained(adapted).state_dict()
    assert all(torch.equal(untouched[name], tensor) for name, tensor in before.items())
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    moved = (after[name] - before[name]).norm() / before[name].norm()
    assert 0 < moved < 0.1
    assert set(rows(adapted, "train")[-1]) == {"step", "split", "prefix"}  # no other objective, no sentinels


def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(
    tmp_path, tokenizer_dir, text_file, monkeypatch
):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(backbone_files, "save_file", full)
    with pytest.raises(MachineError, match="no space left on device"):
        train_backbone(settings(tmp_path / "run", tokenizer_dir, text_file, save_every=2))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_finished_runs_are_left_alone_and_other_settings_refused(tmp_path, tokenizer_dir, text_file):
    out = train_backbone(settings(tmp_path / "run", tokenizer_dir, text_file, steps=2))
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    train_backbone(settings(tmp_path / "run", tokenizer_dir, text_file, steps=2))
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="other settings or data"):
        train_backbone(settings(tmp_path / "run", tokenizer_dir, text_file, steps=2, seed=1))


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0},
        {"text": []},
        {"mixture": {"cloze": 1.0}},
        {"mixture": {"span": 0.0}},
        {"optimiser": "x"},
    ],
)
def test_impossible_settings_are_refused(tmp_path, tokenizer_dir, text_file, fields):
    with pytest.raises(ValueError):
        settings(tmp_path, tokenizer_dir, text_file, **fields)


def test_a_shape_that_t5_has_not_is_refused_by_name(tmp_path, tokenizer_dir, text_file):
    with pytest.raises(UserError, match='did you mean "d_model"'):
        train_backbone(settings(tmp_path / "x", tokenizer_dir, text_file, shape={"d_modell": 3}))


def test_weights_and_tokenizer_must_fit(tmp_path, tokenizer_dir, text_file):
    small = train_backbone(settings(tmp_path / "small", tokenizer_dir, text_file, steps=0))
    text = tmp_path / "more.txt"
    text.write_text("\n\n".join(f"word{i} and word{i}s or wordy{i}" for i in range(2000)), encoding="utf-8")
    train_vocabulary([str(text_file), str(text)], 400, tmp_path / "larger")
    with pytest.raises(UserError, match="use the tokenizer that belongs to these weights"):
        train_backbone(settings(tmp_path / "x", tmp_path / "larger", text_file, init=str(small)))


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_loss_that_is_not_finite_is_never_updated_from_nor_saved(
    tmp_path, tokenizer_dir, text_file, monkeypatch, clip
):
    """Rows are written every 100 steps, checkpoints every step: the fault must be seen at its own step."""
    real, calls = backbone_training.losses, iter(range(10**6))

    def spoilt(model, batch, *rest):
        main, guesses, sums = real(model, batch, *rest)
        # The sixth step, and in it, when its examples are looked at one by one, the second.
        return (main * (torch.nan if next(calls) in (5, 7) else 1.0)), guesses, sums

    monkeypatch.setattr(backbone_training, "losses", spoilt)
    fields = {"save_every": 1, "log_every": 100, "eval_every": 100, "steps": 20, "clip": clip}
    run = settings(tmp_path / "run", tokenizer_dir, text_file, mixture={"prefix": 1.0}, **fields)
    with pytest.raises(MachineError) as caught:
        train_backbone(run)
    message = str(caught.value)
    good = tmp_path / "run" / "checkpoints" / "step-00000005"
    assert message.startswith('step 6: the loss is not finite (prefix example 1 "')
    assert f"; the last good checkpoint is {good}; lower learning_rate" in message
    assert "\n" not in message and "example 0" not in message
    assert max((tmp_path / "run" / "checkpoints").iterdir()) == good
    for file in good.glob("*.safetensors"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values())


def test_weights_that_an_update_blew_up_are_not_saved(tmp_path, tokenizer_dir, text_file, monkeypatch):
    real = backbone_training.BackboneOptimizer.step

    def blown_up(self, factor):
        real(self, factor)
        with torch.no_grad():
            self.params[0].mul_(torch.inf)

    monkeypatch.setattr(backbone_training.BackboneOptimizer, "step", blown_up)
    for steps in (1, 4):  # the last step writes no checkpoint but the backbone itself
        run = settings(tmp_path / str(steps), tokenizer_dir, text_file, save_every=1, steps=steps)
        with pytest.raises(MachineError, match=r"step 1: .* holds weights that are not finite; there is no"):
            train_backbone(run)
        assert not list((tmp_path / str(steps)).rglob("*.safetensors"))
