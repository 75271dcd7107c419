"""A prompt on disk: what is written is what is read, and what is wrong is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from corpora.common.errors import MachineError, UserError
from corpora.tokenizer import Tokenizer
from pretrain.artifact import (
    PromptInfo,
    check_backbone,
    export_peft,
    import_prompt,
    load_prompt,
    prompt_fingerprint,
    save_prompt,
)
from pretrain.backbone import Backbone
from pretrain.prompts import insert_prompts


@pytest.fixture
def info(backbone: Backbone) -> PromptInfo:
    return PromptInfo(
        format="sentence_pair",
        backbone=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        tokenizer_fingerprint=backbone.tokenizer().fingerprint,
        embedding_rms=backbone.embedding_rms,
        corpus_manifest="ab" * 32,
        step=2000,
        learning_rate=0.3,
        seed=0,
        dev_score=0.625,
        licence="Apache-2.0",
        task={"name": "made", "verbalizer": ["no", "yes"]},
    )


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_prompt_comes_back_to_the_bit_with_all_that_is_said_of_it(info: PromptInfo, tmp_path: Path) -> None:
    prompt_PD = drawn(5, 32)
    save_prompt(tmp_path / "p", prompt_PD, info)
    loaded, again = load_prompt(tmp_path / "p")
    assert torch.equal(loaded, prompt_PD) and again == info
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["prompt.json", "prompt.safetensors"]
    assert load_file(tmp_path / "p" / "prompt.safetensors")["prompt"].dtype == torch.float32
    fields = json.loads((tmp_path / "p" / "prompt.json").read_text())
    assert set(fields) == {
        "format", "backbone", "backbone_fingerprint", "tokenizer_fingerprint", "space", "embedding_rms",
        "corpus_manifest", "step", "learning_rate", "seed", "dev_score", "licence", "task",
    } and fields["space"] == "huggingface"  # fmt: skip


def test_the_same_prompt_gives_the_same_bytes_and_a_new_one_takes_its_place(
    info: PromptInfo, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        save_prompt(tmp_path / name, drawn(5, 32), info)
    for name in ("prompt.json", "prompt.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    save_prompt(tmp_path / "a", drawn(5, 32) + 1, info)
    assert torch.equal(load_prompt(tmp_path / "a")[0], drawn(5, 32) + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_prompt_with_nan_or_of_another_shape_is_never_written(info: PromptInfo, tmp_path: Path) -> None:
    for wrong in (torch.full((2, 3), float("nan")), drawn(4)):
        with pytest.raises(ValueError, match="finite"):
            save_prompt(tmp_path / "p", wrong, info)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_the_machines_fault_and_leaves_nothing(
    info: PromptInfo, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot write"):
        save_prompt(tmp_path / "file" / "p", drawn(5, 32), info)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_fingerprint_is_of_values_and_shape() -> None:
    prompt_PD = drawn(4, 6)
    assert prompt_fingerprint(prompt_PD) == prompt_fingerprint(prompt_PD.t().contiguous().t())
    others = [prompt_PD + 1e-6, prompt_PD.reshape(6, 4), prompt_PD[:3]]
    assert len({prompt_fingerprint(other) for other in [prompt_PD, *others]}) == 4


def spoil_json(**changes: Any) -> Any:
    def spoil(folder: Path) -> None:
        fields = json.loads((folder / "prompt.json").read_text())
        kept = {name: value for name, value in {**fields, **changes}.items() if value != "gone"}
        (folder / "prompt.json").write_text(json.dumps(kept))

    return spoil


def spoil_tensor(**tensors: torch.Tensor) -> Any:
    return lambda folder: save_file(tensors, folder / "prompt.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "prompt.json").unlink(), "holds no prompt"),
        (lambda folder: (folder / "prompt.safetensors").unlink(), "holds no prompt"),
        (lambda folder: (folder / "prompt.json").write_text('{"format":\n1,}'), r"prompt.json line 2"),
        (lambda folder: (folder / "prompt.json").write_text("[]"), "prompt.json: expected an object"),
        (spoil_json(trust_remote_code=True), 'unknown field "trust_remote_code"'),
        (spoil_json(auto_map={"AutoModel": "evil.Model"}), 'unknown field "auto_map"'),
        (spoil_json(backbone_fingerprint="gone"), 'field "backbone_fingerprint" is missing'),
        (spoil_json(embedding_rms="large"), 'prompt.json: field "embedding_rms"'),
        (spoil_json(format=["sentence_pair"]), 'prompt.json: field "format"'),
        (spoil_json(format="sentence_pairs"), 'did you mean "sentence_pair"'),
        (spoil_json(space="scaled"), r"space is .scaled.*ppt prompts import"),
        (lambda folder: (folder / "prompt.safetensors").write_bytes(b"no"), "is not a safetensors file"),
        (spoil_tensor(prompt=torch.ones(2, 3), more=torch.ones(1)), "holds more, prompt, expected one"),
        (spoil_tensor(prompt=torch.ones(2, 3, 4)), r"shape \[2, 3, 4\], expected floats \[P, D\]"),
        (spoil_tensor(prompt=torch.ones(2, 3, dtype=torch.int64)), "int64"),
        (spoil_tensor(prompt=torch.tensor([[1.0, float("inf")]])), "not finite"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line_that_names_the_file(
    spoil: Any, message: str, info: PromptInfo, tmp_path: Path
) -> None:
    save_prompt(tmp_path / "p", drawn(5, 32), info)
    spoil(tmp_path / "p")
    with pytest.raises(UserError, match=message) as caught:
        load_prompt(tmp_path / "p")
    assert str(tmp_path / "p") in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_of_another_backbone_or_tokenizer_is_refused_naming_both_sides(
    info: PromptInfo, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    check_backbone(info, backbone, tokenizer)
    check_backbone(
        dataclasses.replace(info, backbone_fingerprint=None, tokenizer_fingerprint=None), backbone, tokenizer
    )
    other = dataclasses.replace(info, backbone="t5-other", backbone_fingerprint="c0ffee" * 10)
    with pytest.raises(UserError) as caught:
        check_backbone(other, backbone)
    for part in ("t5-other", "c0ffeec0ffee", backbone.name, backbone.fingerprint[:12]):
        assert part in str(caught.value)
    with pytest.raises(UserError) as caught:
        check_backbone(dataclasses.replace(info, tokenizer_fingerprint="c0ffee" * 10), backbone, tokenizer)
    for part in ("c0ffeec0ffee", tokenizer.name, tokenizer.fingerprint[:12]):
        assert part in str(caught.value)


def test_peft_loads_an_exported_prompt_and_gives_the_same_logits_and_loss(
    info: PromptInfo, backbone: Backbone, backbone_dir: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

    prompt_PD = drawn(6, backbone.d_model) * backbone.embedding_rms
    save_prompt(tmp_path / "p", prompt_PD, info)
    export_peft(tmp_path / "p", tmp_path / "peft")
    theirs = PeftModel.from_pretrained(
        T5ForConditionalGeneration.from_pretrained(backbone_dir), tmp_path / "peft"
    )
    theirs.eval()

    ids_BL = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    mask_BL = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    labels_BT = torch.tensor([[backbone.vocab_size - 1, 20], [backbone.vocab_size - 1, 30]])
    out = theirs(input_ids=ids_BL, attention_mask=mask_BL.long(), labels=labels_BT)
    embeds, mask = insert_prompts(
        prompt_PD[None], backbone.embed(ids_BL), mask_BL, torch.zeros(2, dtype=torch.long)
    )
    start = torch.full((2, 1), backbone.start_id)
    logits = backbone.target_logits(embeds, mask, torch.cat([start, labels_BT[:, :1]], 1))
    torch.testing.assert_close(logits, out.logits, rtol=1e-5, atol=1e-5)
    ours = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten())
    assert ours.item() == pytest.approx(out.loss.item(), rel=1e-5)
    weights = [weight for name, weight in theirs.named_parameters() if "prompt" in name]
    assert [tuple(weight.shape) for weight in weights] == [(6, backbone.d_model)]  # one table, not two


@pytest.mark.parametrize("kind", ["npy", "pt", "pt_dict", "safetensors"])
@pytest.mark.parametrize(("space", "factor"), [("huggingface", 1.0), ("scaled", 100.0)])
def test_a_prompt_of_another_library_is_imported_into_this_space(
    kind: str, space: str, factor: float, backbone: Backbone, tmp_path: Path
) -> None:
    prompt_PD = drawn(5, backbone.d_model)
    file = tmp_path / f"prompt.{kind.split('_')[0]}"
    if kind == "npy":
        np.save(file, prompt_PD.numpy())
    elif kind == "safetensors":
        save_file({"prompt_embeddings": prompt_PD}, file)
    else:
        torch.save({"prompt": prompt_PD} if kind == "pt_dict" else prompt_PD, file)
    import_prompt(
        file, tmp_path / "p", backbone=backbone, format="single_text", space=space, licence="Apache-2.0"
    )
    loaded, info = load_prompt(tmp_path / "p")
    assert torch.equal(loaded, prompt_PD * factor)
    assert (info.space, info.format, info.licence) == ("huggingface", "single_text", "Apache-2.0")
    check_backbone(info, backbone, backbone.tokenizer())


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def write(data: Any) -> Any:
    def writer(file: Path) -> Path:
        if isinstance(data, bytes):
            file.write_bytes(data)
        elif isinstance(data, torch.Tensor):
            np.save(file, data.numpy())
        else:
            torch.save(data, file)
        return file

    return writer


def saved_objects(file: Path) -> Path:
    np.save(file, np.array([_Evil()], dtype=object))
    return file


@pytest.mark.parametrize(
    ("name", "writer", "message"),
    [
        ("a.npy", write(drawn(5, 8)), "is 8 wide, the backbone .* is 32"),
        ("a.npy", write(drawn(5, 32, 1)), r"shape \[5, 32, 1\]"),
        ("a.npy", write(torch.full((5, 32), float("nan"))), "not finite"),
        ("a.npy", write(b"text"), "cannot be read as a tensor"),
        ("a.npy", saved_objects, "cannot be read as a tensor"),
        ("a.pt", write(b"text"), "cannot be read as a tensor"),
        ("a.pt", write(_Evil()), "cannot be read as a tensor"),
        ("a.pt", write({"a": drawn(5, 32), "b": drawn(5, 32)}), "holds 2 tensors, expected one"),
        ("a.pt", write({"a": "text"}), "holds a str, expected a tensor"),
        ("a.txt", write(b"text"), "expected a .npy, .pt, .bin or .safetensors"),
        ("a.npy", lambda file: file, "does not exist"),
    ],
)
def test_a_file_that_is_no_prompt_is_not_imported_and_its_code_never_runs(
    name: str, writer: Any, message: str, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = writer(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        import_prompt(file, tmp_path / "p", backbone=backbone, format="unified")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "p").exists() and not (tmp_path / "ran").exists()


def test_an_unknown_space_or_format_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", drawn(5, 32).numpy())
    with pytest.raises(UserError, match='did you mean "scaled"'):
        import_prompt(tmp_path / "a.npy", tmp_path / "p", backbone=backbone, format="unified", space="scale")
    with pytest.raises(UserError, match='did you mean "unified"'):
        import_prompt(tmp_path / "a.npy", tmp_path / "p", backbone=backbone, format="unify")


def test_prompts_that_others_trained_are_read(real_data: Path, tmp_path: Path) -> None:
    """google-research/prompt-tuning's .npy and SUPMER's .pt, for a backbone of their width (weights do not matter)."""
    from transformers import T5Config, T5ForConditionalGeneration

    files = sorted((real_data / "prompts").glob("*.*"))
    assert files
    for file in files:
        width = 2048 if "xl" in file.name else 768
        config = T5Config(vocab_size=20, d_model=width, d_kv=2, d_ff=4, num_layers=1, num_heads=1)
        backbone = Backbone(T5ForConditionalGeneration(config), f"width {width}")
        import_prompt(file, tmp_path / file.stem, backbone=backbone, format="sentence_pair")
        prompt_PD, info = load_prompt(tmp_path / file.stem)
        assert prompt_PD.shape == (100, width) and info.tokenizer_fingerprint is None
        assert 5 < float(prompt_PD.square().mean().sqrt()) < 60
