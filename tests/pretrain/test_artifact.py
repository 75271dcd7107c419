"""Facts about prompts on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from corpora.common.errors import UserError
from pretrain.artifact import (
    PromptInfo,
    check_backbone,
    export_peft,
    import_prompt,
    load_prompt,
    prompt_fingerprint,
    save_prompt,
)
from pretrain.backbone import Backbone, load_backbone


@pytest.fixture(scope="module")
def backbone(backbone_dir: Path) -> Backbone:
    return load_backbone(backbone_dir)


@pytest.fixture
def prompt_PD() -> torch.Tensor:
    return torch.randn(5, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def info(backbone: Backbone) -> PromptInfo:
    return PromptInfo(
        format="sentence_pair",
        backbone=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        tokenizer_fingerprint=backbone.tokenizer().fingerprint,
        embedding_rms=backbone.embedding_rms,
        step=8000,
        learning_rate=0.3,
        seed=1,
        dev_score=0.5,
        task={"name": "sst2", "verbalizer": ["bad", "good"]},
    )


def test_saved_prompt_loads_bit_for_bit(tmp_path: Path, prompt_PD: torch.Tensor, info: PromptInfo) -> None:
    save_prompt(tmp_path / "p", prompt_PD, info)
    loaded, about = load_prompt(tmp_path / "p")
    assert torch.equal(loaded, prompt_PD) and about == info
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["prompt.json", "prompt.safetensors"]
    assert prompt_fingerprint(loaded) == prompt_fingerprint(prompt_PD) != prompt_fingerprint(prompt_PD + 1)


def test_prompt_that_is_not_finite_is_never_saved(
    tmp_path: Path, prompt_PD: torch.Tensor, info: PromptInfo
) -> None:
    prompt_PD[1, 2] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        save_prompt(tmp_path / "p", prompt_PD, info)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": "code.py"}, 'unknown field "auto_map"'),  # a prompt can never name code (peft 2896)
        ({"space": "scaled"}, "expected huggingface"),
        ({"format": "pairs"}, 'format is "pairs"'),
    ],
)
def test_wrong_prompt_json_is_refused(
    tmp_path: Path, prompt_PD: torch.Tensor, info: PromptInfo, change: dict[str, str], message: str
) -> None:
    save_prompt(tmp_path / "p", prompt_PD, info)
    about = tmp_path / "p" / "prompt.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **change}))
    with pytest.raises(UserError, match="prompt.json") as caught:
        load_prompt(tmp_path / "p")
    assert message in str(caught.value)


def test_damaged_or_foreign_tensors_are_refused(
    tmp_path: Path, prompt_PD: torch.Tensor, info: PromptInfo
) -> None:
    save_prompt(tmp_path / "p", prompt_PD, info)
    path = tmp_path / "p" / "prompt.safetensors"
    for tensors, message in (
        ({"weight": prompt_PD}, "expected one tensor: prompt"),
        ({"prompt": prompt_PD[0]}, r"expected floats \[P, D\]"),
        ({"prompt": prompt_PD * float("inf")}, "not finite"),
    ):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        with pytest.raises(UserError, match=message):
            load_prompt(tmp_path / "p")
    path.write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_prompt(tmp_path / "p")
    path.unlink()
    with pytest.raises(UserError, match="holds no prompt"):
        load_prompt(tmp_path / "p")


def test_prompt_of_another_backbone_is_refused_with_both_named(backbone: Backbone, info: PromptInfo) -> None:
    check_backbone(info, backbone)
    with pytest.raises(UserError, match=r"belongs to the backbone t5-other .*not to"):
        check_backbone(replace(info, backbone="t5-other", backbone_fingerprint="0" * 64), backbone)


def test_exported_prompt_gives_the_same_logits_in_peft(
    tmp_path: Path, prompt_PD: torch.Tensor, info: PromptInfo, backbone: Backbone
) -> None:
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    from pretrain.prompts import insert_prompts

    save_prompt(tmp_path / "p", prompt_PD, info)
    export_peft(tmp_path / "p", tmp_path / "peft")
    model = T5ForConditionalGeneration.from_pretrained(backbone.name)
    peft = PeftModel.from_pretrained(model, str(tmp_path / "peft")).eval()
    ids_BL = torch.tensor([[5, 9, 11, 30], [6, 7, 12, 40]])
    decoder_BT = torch.tensor([[0, 60], [0, 60]])
    mask_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    with torch.no_grad():
        theirs = peft(input_ids=ids_BL, attention_mask=mask_BL.long(), decoder_input_ids=decoder_BT).logits
        embeds, mask = insert_prompts(
            prompt_PD[None], backbone.embed(ids_BL), mask_BL, torch.zeros(2, dtype=torch.long)
        )
        ours = backbone.target_logits(embeds, mask, decoder_BT)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_prompts_of_other_libraries_come_in_and_scaled_ones_are_multiplied(
    tmp_path: Path, prompt_PD: torch.Tensor, backbone: Backbone
) -> None:
    np.save(tmp_path / "a.npy", prompt_PD.numpy())
    torch.save(prompt_PD, tmp_path / "b.pt")
    save_file({"anything": prompt_PD}, tmp_path / "c.safetensors")
    for name in ("a.npy", "b.pt", "c.safetensors"):
        out = tmp_path / f"out-{name}"
        import_prompt(tmp_path / name, out, backbone=backbone, format="unified", licence="MIT")
        loaded, about = load_prompt(out)
        assert torch.equal(loaded, prompt_PD)
        assert about.licence == "MIT" and about.backbone_fingerprint == backbone.fingerprint
    import_prompt(
        tmp_path / "a.npy", tmp_path / "scaled", backbone=backbone, format="unified", space="scaled"
    )
    torch.testing.assert_close(load_prompt(tmp_path / "scaled")[0], prompt_PD * 100)


def test_imports_of_the_wrong_width_kind_or_with_code_in_them_are_refused(
    tmp_path: Path, backbone: Backbone
) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((5, 64), np.float32))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "a.bin2").write_text("x")

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    torch.save({"p": Code()}, tmp_path / "code.pt")
    for name, message in (
        ("wide.npy", "64 wide"),
        ("text.npy", "cannot be read as a tensor"),
        ("a.bin2", "expected a .npy"),
        ("code.pt", "cannot be read as a tensor"),
        ("absent.npy", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            import_prompt(tmp_path / name, tmp_path / "out", backbone=backbone, format="unified")
    assert not (tmp_path / "out").exists()


def test_prompts_trained_by_others_can_be_read(tmp_path: Path, real_data: Path) -> None:
    from pretrain.artifact import _read_tensor

    shapes = {path.name: tuple(_read_tensor(path).shape) for path in (real_data / "prompts").iterdir()}
    assert set(shapes.values()) == {(100, 768), (100, 2048)}
