"""The frozen backbone computes what plain transformers models compute, and knows itself again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from corpora.common.errors import MachineError, UserError
from corpora.tokenizer import Tokenizer
from pretrain.backbone import Backbone, load_backbone
from pretrain.batching import collate, example_losses
from pretrain.prompts import insert_prompts

KINDS = ("t5-1.0", "t5-1.1", "mt5")


def tiny(kind: str) -> Any:
    """A random model of a family's shape: tied and scaled (1.0), or with a gated layer and a head of its own."""
    gated = kind != "t5-1.0"
    fields: dict[str, Any] = {
        "vocab_size": 90, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3,
        "num_heads": 3, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu" if gated else "relu",
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(KINDS.index(kind))
        if kind == "mt5":
            model: Any = MT5ForConditionalGeneration(MT5Config(**fields))
        else:
            model = T5ForConditionalGeneration(
                T5Config(**fields, **({"tie_word_embeddings": False} if gated else {}))
            )
        for block in (
            *model.encoder.block,
            *model.decoder.block,
        ):  # transformers starts the biases at nothing
            for layer in block.layer:
                bias = getattr(getattr(layer, "SelfAttention", None), "relative_attention_bias", None)
                if bias is not None:
                    torch.nn.init.normal_(bias.weight)
        if gated:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(90, 16))
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each tiny model, saved as transformers saves it."""
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp("models") / kind
        tiny(kind).save_pretrained(found[kind])
    return found


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids [3, 9], their mask, decoder ids [3, 3]."""
    rng = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(3, 90, (3, 9), generator=rng)
    mask_BL = torch.ones(3, 9, dtype=torch.bool)
    mask_BL[0, 4:] = mask_BL[2, 8:] = False
    decoder_ids_BT = torch.tensor([[0, 89, 7], [0, 89, 30], [0, 89, 12]])
    return ids_BL.where(mask_BL, 0), mask_BL, decoder_ids_BT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_with_a_prompt_equal_those_of_the_plain_model(
    kind: str, attention: str, folders: dict[str, Path]
) -> None:
    family = MT5ForConditionalGeneration if kind == "mt5" else T5ForConditionalGeneration
    plain = family.from_pretrained(folders[kind], attn_implementation=attention).eval()
    backbone = load_backbone(folders[kind])
    ids_BL, mask_BL, decoder_ids_BT = inputs()
    prompts_KPD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))

    embeds_BLD, long_mask = insert_prompts(
        prompts_KPD, backbone.embed(ids_BL), mask_BL, torch.tensor([1, 0, 1])
    )
    ours = backbone.target_logits(embeds_BLD, long_mask, decoder_ids_BT)

    by_hand = torch.cat([prompts_KPD[[1, 0, 1]], plain.shared(ids_BL)], 1)
    theirs = plain(
        inputs_embeds=by_hand,
        attention_mask=torch.cat([torch.ones(3, 5, dtype=torch.long), mask_BL.long()], 1),
        decoder_input_ids=decoder_ids_BT,
    ).logits
    assert ours.shape == (3, 3, 90)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_equals_that_of_the_plain_model(kind: str, folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders[kind])
    ids_BL, mask_BL, _ = inputs()
    rows = [ids[mask].numpy() for ids, mask in zip(ids_BL, mask_BL, strict=True)]
    targets = [torch.tensor([89, word]).numpy() for word in (7, 30, 12)]
    batch = collate(rows, [0, 0, 0], targets, backbone.pad_id, backbone.start_id, count="all")
    logits = backbone.target_logits(backbone.embed(batch.input_ids_BL), batch.mask_BL, batch.decoder_ids_BT)
    plain = backbone.model(
        input_ids=ids_BL, attention_mask=mask_BL.long(), labels=torch.tensor([[89, 7], [89, 30], [89, 12]])
    ).loss
    assert float(example_losses(logits, batch).mean()) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untied_head_is_kept_and_a_tied_one_is_scaled(kind: str, folders: dict[str, Path]) -> None:
    backbone, made = load_backbone(folders[kind]), tiny(kind)
    assert torch.equal(backbone.model.lm_head.weight, made.lm_head.weight)
    assert torch.equal(backbone.model.lm_head.weight, backbone.model.shared.weight) == (kind == "t5-1.0")
    states_BLD = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    mask, start = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[0]])
    hidden = made.decoder(
        input_ids=start, encoder_hidden_states=states_BLD, encoder_attention_mask=mask.long()
    ).last_hidden_state
    scale = 16**-0.5 if kind == "t5-1.0" else 1.0
    wanted = F.linear(hidden * scale, made.lm_head.weight)
    torch.testing.assert_close(backbone.decode(states_BLD, mask, start), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_has_the_same_loss_alone_and_padded_in_a_batch(
    kind: str, folders: dict[str, Path]
) -> None:
    backbone = load_backbone(folders[kind])
    ids_BL, mask_BL, _ = inputs()
    rows = [ids[mask].numpy() for ids, mask in zip(ids_BL, mask_BL, strict=True)]
    targets = [torch.tensor(ids).numpy() for ids in ([89, 7], [89, 30, 31, 32], [89, 12])]
    prompts_KPD = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(2))

    def losses(which: list[int]) -> torch.Tensor:
        batch = collate([rows[i] for i in which], [0] * len(which), [targets[i] for i in which], 0, 0)
        embeds, mask = insert_prompts(
            prompts_KPD, backbone.embed(batch.input_ids_BL), batch.mask_BL, batch.prompt_ids_B
        )
        return example_losses(backbone.target_logits(embeds, mask, batch.decoder_ids_BT), batch)

    alone = torch.cat([losses([i]) for i in range(3)])
    torch.testing.assert_close(losses([0, 1, 2]), alone, rtol=1e-5, atol=1e-5)


def test_every_token_that_stands_is_read_and_no_padding_is(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["t5-1.1"])
    ids_BL, mask_BL, decoder_ids_BT = inputs()
    embeds_BLD = backbone.embed(ids_BL).requires_grad_(True)
    prompts_KPD = torch.randn(1, 3, 16).requires_grad_(True)
    long, mask = insert_prompts(prompts_KPD, embeds_BLD, mask_BL, torch.zeros(3, dtype=torch.long))
    backbone.target_logits(long, mask, decoder_ids_BT).square().sum().backward()
    assert embeds_BLD.grad is not None and prompts_KPD.grad is not None
    assert torch.equal(embeds_BLD.grad.abs().sum(-1) > 0, mask_BL)  # the mask `<X>` is a token like any other
    assert bool((prompts_KPD.grad.abs().sum(-1) > 0).all())


def test_nothing_of_the_backbone_learns_or_drops(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["t5-1.1"])  # its config asks for dropout 0.1
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    assert not backbone.embed(torch.tensor([[3]])).requires_grad


def test_the_encoder_runs_once_and_logits_are_made_at_targets_only(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["t5-1.0"])
    seen: dict[str, list[tuple[int, ...]]] = {"encoder.final_layer_norm": [], "lm_head": []}
    for name, calls in seen.items():
        module = backbone.model.get_submodule(name)
        module.register_forward_hook(
            lambda _m, _i, out, calls=calls: calls.append(tuple(out.shape if torch.is_tensor(out) else out[0].shape))
        )  # fmt: skip
    ids_BL, mask_BL, decoder_ids_BT = inputs()
    backbone.target_logits(backbone.embed(ids_BL), mask_BL, decoder_ids_BT)
    assert seen == {"encoder.final_layer_norm": [(3, 9, 16)], "lm_head": [(3, 3, 90)]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_survives_saving_and_the_dtype_of_loading(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    first = load_backbone(folders[kind])
    first.model.save_pretrained(tmp_path / "again")
    assert load_backbone(tmp_path / "again").fingerprint == first.fingerprint
    half = load_backbone(folders[kind], dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.fingerprint == first.fingerprint
    assert Backbone(tiny(kind), "made").fingerprint == first.fingerprint  # of a model that is in no file


def test_the_fingerprint_counts_a_tied_table_once_whatever_names_a_file_gives_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    wanted = load_backbone(folders["t5-1.0"]).fingerprint
    for aliases in (["encoder.embed_tokens.weight", "lm_head.weight"], ["decoder.embed_tokens.weight"]):
        folder = tmp_path / str(len(aliases))
        shutil.copytree(folders["t5-1.0"], folder)
        tensors = load_file(folder / "model.safetensors")
        for alias in aliases:
            tensors[alias] = tensors["shared.weight"].clone()
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(2, 3)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert load_backbone(folder).fingerprint == wanted  # the first T5 files hold such leftovers


def test_the_fingerprint_of_a_bin_file_and_of_shards_is_that_of_one_safetensors_file(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    wanted = load_backbone(folders["t5-1.1"]).fingerprint
    shutil.copytree(folders["t5-1.1"], tmp_path / "bin")
    tensors = load_file(tmp_path / "bin" / "model.safetensors")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "bin" / "pytorch_model.bin")
    assert load_backbone(tmp_path / "bin").fingerprint == wanted
    tiny("t5-1.1").save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_backbone(tmp_path / "shards").fingerprint == wanted


def test_the_fingerprint_tells_other_weights_other_shapes_and_other_dtypes_apart(
    folders: dict[str, Path],
) -> None:
    found = {load_backbone(folder).fingerprint for folder in folders.values()}
    other = tiny("t5-1.1")
    with torch.no_grad():
        other.decoder.final_layer_norm.weight[3] += 1e-3
    found |= {Backbone(other, "other").fingerprint, Backbone(tiny("t5-1.1").bfloat16(), "half").fingerprint}
    assert len(found) == 5


def test_the_embedding_rms_is_that_of_the_table_in_float64(folders: dict[str, Path]) -> None:
    backbone = load_backbone(folders["mt5"])
    wanted = tiny("mt5").shared.weight.double().square().mean().sqrt()
    assert backbone.embedding_rms == pytest.approx(wanted.item(), rel=1e-12)
    with torch.no_grad():
        backbone.model.shared.weight.zero_()
    del backbone.embedding_rms
    with pytest.raises(UserError, match="RMS of 0"):
        _ = backbone.embedding_rms


def test_a_tokenizer_that_does_not_fit_is_refused(
    backbone_dir: Path, tokenizer_dir: Path, tokenizer: Tokenizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    backbone = load_backbone(backbone_dir)
    backbone.check_tokenizer(backbone.tokenizer())
    backbone.check_tokenizer(tokenizer)  # the same vocabulary from another place
    with pytest.raises(UserError, match=rf"has {tokenizer.size} ids, the backbone .* embeds 90"):
        load_backbone(folders["t5-1.0"]).check_tokenizer(tokenizer)
    shutil.copytree(tokenizer_dir, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps({**config, "extra_ids": 99}))
    with pytest.raises(UserError, match=r"other.*is not the one of the backbone"):
        backbone.check_tokenizer(Tokenizer.load(tmp_path / "other"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "cannot load the backbone"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load the backbone"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), '"bert"; supported: t5'),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678901"), "cannot load the weights"),
        (
            lambda folder: save_file(
                {k: v for k, v in load_file(folder / "model.safetensors").items() if "decoder.block.0" not in k},
                folder / "model.safetensors", metadata={"format": "pt"},
            ),
            r"lacks \d+ weights, decoder.block.0",
        ),
    ],
)  # fmt: skip
def test_what_is_no_whole_backbone_is_refused_in_one_line(
    spoil: Any, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["t5-1.1"], tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_dtype_is_refused(backbone_dir: Path) -> None:
    with pytest.raises(UserError, match="one of float32, bfloat16"):
        load_backbone(backbone_dir, dtype="float16")


def test_code_beside_the_weights_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["t5-1.1"], tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit('code ran')\n")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForSeq2SeqLM": "evil.Model"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert load_backbone(tmp_path / "model").d_model == 16
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(UserError):
        load_backbone(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "kind"), [("nobody/none", MachineError), ("here/none", UserError), ("./nobody/none", UserError)]
)
def test_without_a_network_a_hub_name_is_the_machines_fault_and_a_mistyped_path_the_users(
    name: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("pretrain.backbone.hub_reachable", lambda: False)
    with pytest.raises(kind, match=f"cannot load the backbone {name}.*the hub cannot be reached"):
        load_backbone(name)
