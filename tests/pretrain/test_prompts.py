"""Facts about soft prompts and the bank that trains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.tokenizer import Tokenizer
from pretrain.backbone import Backbone, load_backbone
from pretrain.batching import collate, example_losses
from pretrain.prompts import INITIALISERS, PromptBank, check_prompts_train, init_prompt, insert_prompts


def random_bank(k: int, **options: Any) -> PromptBank:
    start = torch.randn(k, 3, 4, generator=torch.Generator().manual_seed(0))
    return PromptBank(start, [0.1 * (i + 1) for i in range(k)], **options)


def test_prompt_stands_before_its_own_example() -> None:
    prompts_KPD = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 4)
    embeds, mask = insert_prompts(
        prompts_KPD, torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool), torch.tensor([1, 0])
    )
    assert embeds.shape == (2, 8, 4) and mask.shape == (2, 8)
    assert torch.equal(embeds[0, :3], prompts_KPD[1]) and torch.equal(embeds[1, :3], prompts_KPD[0])
    with pytest.raises(ValueError, match="4 wide, the input embeddings 6"):
        insert_prompts(prompts_KPD, torch.zeros(2, 5, 6), mask[:, :5], torch.tensor([1, 0]))


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_bank_does_what_adamw_and_clipping_do_to_each_prompt_alone(clip: float) -> None:
    rms, decay = 3.0, 0.01
    bank = random_bank(3, weight_decay=decay, clip=clip, embedding_rms=rms)
    alone = [(prompt.detach() / rms).clone().requires_grad_(True) for prompt in bank.prompts_KPD]
    optimizers = [
        torch.optim.AdamW([u], lr=0.1 * (k + 1), weight_decay=decay, foreach=False)
        for k, u in enumerate(alone)
    ]
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        weights = torch.randn(3, 3, 4, generator=rng)
        bank.zero_grad()
        (bank.prompts_KPD.tanh() * weights).sum().backward()
        norms_K = bank.step()
        for k, (u, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            optimizer.zero_grad()
            ((u * rms).tanh() * weights[k]).sum().backward()
            norm = torch.nn.utils.clip_grad_norm_([u], clip or float("inf"))
            assert float(norms_K[k]) == pytest.approx(float(norm), rel=1e-5)
            optimizer.step()
    for k, u in enumerate(alone):
        torch.testing.assert_close(bank.prompts_KPD[k].detach(), (u * rms).detach(), rtol=1e-4, atol=1e-5)


def test_inactive_prompts_stay_bit_for_bit_and_go_on_later_as_if_nothing_had_been() -> None:
    one, other = random_bank(2), random_bank(2)

    def step(bank: PromptBank, active: list[bool], target: float) -> None:
        bank.zero_grad()
        (bank.prompts_KPD - target).square().sum().backward()
        bank.step(active_K=torch.tensor(active))

    step(one, [True, False], 1.0)
    assert torch.equal(one.prompts_KPD[1], other.prompts_KPD[1])
    step(one, [True, True], 1.0)
    step(other, [True, True], 1.0)
    step(other, [True, False], 1.0)
    torch.testing.assert_close(one.prompts_KPD, other.prompts_KPD, rtol=0, atol=0)


def test_state_restores_the_bank_bit_for_bit() -> None:
    bank, again = random_bank(2, weight_decay=0.1, clip=1.0), random_bank(2, weight_decay=0.1, clip=1.0)

    def run(bank: PromptBank, steps: int) -> None:
        for _ in range(steps):
            bank.zero_grad()
            bank.prompts_KPD.square().sum().backward()
            bank.step(lr_scale_K=torch.tensor([1.0, 0.5]))

    run(bank, 5)
    saved = {name: tensor.clone() for name, tensor in bank.state().items()}
    run(bank, 5)
    again.load_state(saved)
    run(again, 5)
    assert torch.equal(bank.prompts_KPD, again.prompts_KPD)
    with pytest.raises(ValueError, match="state of prompts"):
        random_bank(3).load_state(saved)


def test_prompts_together_get_the_gradient_that_each_gets_alone(backbone_dir: Path) -> None:
    backbone = load_backbone(backbone_dir)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(3, 60, size=n).astype(np.int32) for n in (4, 9, 6, 7)]
    targets = [np.array([60, int(rng.integers(3, 60))], np.int32) for _ in inputs]
    which = [0, 1, 1, 0]
    start = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))

    def gradient(rows: list[int]) -> torch.Tensor:
        bank = PromptBank(start, [1.0, 1.0])
        batch = collate([inputs[i] for i in rows], [which[i] for i in rows], [targets[i] for i in rows], 0, 0)
        embeds, mask = insert_prompts(
            bank.prompts_KPD, backbone.embed(batch.input_ids_BL), batch.mask_BL, batch.prompt_ids_B
        )
        example_losses(backbone.target_logits(embeds, mask, batch.decoder_ids_BT), batch).sum().backward()
        assert bank.prompts_KPD.grad is not None
        return bank.prompts_KPD.grad

    together = gradient([0, 1, 2, 3])
    torch.testing.assert_close(together[0], gradient([0, 3])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1], gradient([1, 2])[1], rtol=1e-4, atol=1e-5)
    assert float(gradient([0, 3])[1].abs().max()) == 0.0


@pytest.mark.defect(1)
@pytest.mark.parametrize("name", sorted(INITIALISERS))
def test_prompts_start_with_different_rows_at_the_scale_of_the_embeddings(
    name: str, backbone_dir: Path, tokenizer: Tokenizer
) -> None:
    backbone = load_backbone(backbone_dir)
    prompt_PD = init_prompt(name, backbone, tokenizer, 50, generator(0, "test"), words=("good", "bad"))
    assert prompt_PD.shape == (50, 32) and prompt_PD.dtype == torch.float32
    rms = float(prompt_PD.double().square().mean().sqrt())
    assert rms == pytest.approx(backbone.embedding_rms, rel=0.2)
    assert len(torch.unique(prompt_PD, dim=0)) == 50
    again = init_prompt(name, backbone, tokenizer, 50, generator(0, "test"), words=("good", "bad"))
    assert torch.equal(prompt_PD, again)


def test_vocabulary_rows_are_embeddings_of_words_and_never_of_control_pieces(
    backbone_dir: Path, tokenizer: Tokenizer
) -> None:
    backbone = load_backbone(backbone_dir)
    table_VD = backbone.model.get_input_embeddings().weight
    prompt_PD = init_prompt("vocabulary", backbone, tokenizer, 40, generator(1, "test"))
    ids = [int((table_VD == row).all(1).nonzero()[0]) for row in prompt_PD]
    for piece in tokenizer.pieces(ids):
        assert any(map(str.isalnum, piece)) and not piece.startswith("<")


def test_unknown_initialisation_is_refused_with_the_nearest_name(
    backbone_dir: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match='did you mean "normal"'):
        init_prompt("norml", load_backbone(backbone_dir), tokenizer, 4, generator(0, "x"))


def test_prompts_that_do_not_train_stop_the_run_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    bank = random_bank(2)
    start = bank.prompts_KPD.detach().clone()
    with pytest.raises(UserError, match="prompt 0 does not train"):
        check_prompts_train(start, bank)
    with torch.no_grad():
        bank.prompts_KPD += 1e-6
    check_prompts_train(start, bank)
    assert "hardly moves" in capsys.readouterr().err
    with torch.no_grad():
        bank.prompts_KPD += 0.1
    check_prompts_train(start, bank)
    assert capsys.readouterr().err == ""


def test_one_setting_trains_alike_on_a_backbone_rescaled_for_half_precision() -> None:
    """The scale trap: released PPT divides T5's weights; in units of the embedding RMS nothing changes."""
    config = T5Config(
        vocab_size=80, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, layer_norm_epsilon=1e-12,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        plain = T5ForConditionalGeneration(config).eval()
        plain.lm_head.weight = torch.nn.Parameter(torch.randn_like(plain.lm_head.weight))
    scaled = T5ForConditionalGeneration(config).eval()
    scaled.lm_head.weight = torch.nn.Parameter(torch.zeros_like(plain.lm_head.weight))
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        scaled.shared.weight /= 100
        for name, parameter in scaled.named_parameters():
            if name.endswith("Attention.o.weight"):
                parameter /= 100
            elif name.endswith(("wi_1.weight", "wo.weight")):
                parameter /= 10
    ids = np.arange(5, 15, dtype=np.int32)
    batch = collate([ids], [0], [np.array([79, 7], np.int32)], 0, 0)
    start = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
    ends = []
    for model, factor in ((plain, 1.0), (scaled, 0.01)):
        backbone = Backbone(model, "made")
        bank = PromptBank(
            start * factor, [0.3], weight_decay=0.01, clip=1.0, embedding_rms=backbone.embedding_rms
        )
        for _ in range(5):
            bank.zero_grad()
            embeds, mask = insert_prompts(
                bank.prompts_KPD, backbone.embed(batch.input_ids_BL), batch.mask_BL, batch.prompt_ids_B
            )
            example_losses(backbone.target_logits(embeds, mask, batch.decoder_ids_BT), batch).sum().backward()
            bank.step()
        ends.append(bank.prompts_KPD.detach() / factor)
    assert float((ends[0] - start).abs().max()) > 0.1
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-2, atol=1e-2)
