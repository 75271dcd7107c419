"""Soft prompts: where they start, where they stand, and that K together learn as each alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.tokenizer import Tokenizer
from pretrain.backbone import Backbone
from pretrain.batching import collate, example_losses
from pretrain.prompts import (
    INITIALISERS,
    PromptBank,
    check_prompts_train,
    init_prompt,
    insert_prompts,
    word_pieces,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Where a prompt stands.


def test_each_example_gets_its_own_prompt_before_its_tokens() -> None:
    prompts_KPD, embeds_BLD = drawn(3, 2, 4), drawn(2, 5, 4, seed=1)
    mask_BL = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    long, mask = insert_prompts(prompts_KPD, embeds_BLD, mask_BL, torch.tensor([2, 0]))
    assert torch.equal(long[:, :2], prompts_KPD[[2, 0]]) and torch.equal(long[:, 2:], embeds_BLD)
    assert mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]


def test_prompts_take_the_dtype_of_a_half_precision_backbone_and_keep_float32_gradients() -> None:
    prompts_KPD = drawn(1, 2, 4).requires_grad_(True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    long, _ = insert_prompts(prompts_KPD, drawn(1, 3, 4).bfloat16(), mask, torch.tensor([0]))
    long.float().square().sum().backward()
    assert long.dtype == torch.bfloat16
    assert prompts_KPD.grad is not None and prompts_KPD.grad.dtype == torch.float32


def test_a_prompt_of_another_width_is_refused_naming_both() -> None:
    with pytest.raises(ValueError, match="6 wide, the input embeddings 4"):
        insert_prompts(drawn(1, 2, 6), drawn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]))


# Where a prompt starts.


@pytest.mark.defect(1)
@pytest.mark.parametrize("name", sorted(INITIALISERS))
def test_a_prompt_starts_from_distinct_rows_at_the_scale_of_the_embeddings(
    name: str, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    prompt_PD = init_prompt(name, backbone, tokenizer, 60, generator(0, "a"), words=["no", "yes"])
    assert prompt_PD.shape == (60, backbone.d_model) and prompt_PD.dtype == torch.float32
    rms = float(prompt_PD.double().square().mean().sqrt())
    assert 0.8 < rms / backbone.embedding_rms < 1.25
    apart = torch.cdist(prompt_PD, prompt_PD) + torch.eye(60) * 1e9
    assert float(apart.min()) > 0.1 * rms
    again = init_prompt(name, backbone, tokenizer, 60, generator(0, "a"), words=["no", "yes"])
    other = init_prompt(name, backbone, tokenizer, 60, generator(0, "b"), words=["no", "yes"])
    assert torch.equal(prompt_PD, again) and not torch.equal(prompt_PD, other)


def test_vocabulary_rows_are_embeddings_of_frequent_words_and_never_of_special_tokens(
    backbone: Backbone, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.prompts.FREQUENT", 30)
    prompt_PD = init_prompt("vocabulary", backbone, tokenizer, 200, generator(0, "words"))
    table_VD = backbone.model.get_input_embeddings().weight
    is_row_PV = (prompt_PD[:, None] == table_VD).all(-1)
    assert bool((is_row_PV.sum(1) == 1).all())
    pieces = tokenizer.pieces(sorted(set(is_row_PV.int().argmax(1).tolist())))
    assert 15 < len(pieces) <= 30
    assert all(any(map(str.isalnum, piece)) and "<" not in piece for piece in pieces)


def test_word_pieces_hold_no_punctuation_and_no_markup_however_it_is_spelt() -> None:
    pieces = ["<pad>", "[END]", "<unk>", "▁good", "▁", "?", "ness", "<0x41>", "好", "▁<extra_id_0>", "a<b"]
    made: Any = SimpleNamespace(
        size=len(pieces), pad_id=0, eos_id=1, unk_id=2, pieces=lambda ids: [pieces[i] for i in ids]
    )
    ids, words = word_pieces(made)
    assert (ids.tolist(), words) == ([3, 6, 8, 10], ["▁good", "ness", "好", "a<b"])


def test_label_words_stand_first_and_option_letters_are_the_bare_pieces(
    backbone: Backbone, tokenizer: Tokenizer
) -> None:
    table_VD = backbone.model.get_input_embeddings().weight
    prompt_PD = init_prompt("label_words", backbone, tokenizer, 5, generator(0), words=["no", "maybe", "yes"])
    for row, word in enumerate(["no", "maybe", "yes"]):
        torch.testing.assert_close(prompt_PD[row], table_VD[list(tokenizer.word_ids(word))].mean(0))
    letters = init_prompt("label_words", backbone, tokenizer, 3, generator(0), words=["A", "B", "C", "D"])
    torch.testing.assert_close(letters, table_VD[list(tokenizer.letters[:3])])


def test_an_unknown_initialisation_is_refused_with_the_nearest(
    backbone: Backbone, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match='did you mean "vocabulary"'):
        init_prompt("vocabulry", backbone, tokenizer, 4, generator(0))


# How prompts learn.

RATES = [0.3, 0.03, 1.0]


def torch_adamw(starts: torch.Tensor, gradients: torch.Tensor, rms: float, clip: float) -> torch.Tensor:
    """Each of K prompts alone under torch's AdamW on u = prompt / RMS, [K, P, D]; gradients [S, K, P, D]."""
    ended = []
    for k, start in enumerate(starts):
        u = (start / rms).clone().requires_grad_(True)
        optimizer = torch.optim.AdamW([u], lr=RATES[k], weight_decay=0.01, eps=1e-8)
        for step, gradient in enumerate(gradients[:, k]):
            optimizer.param_groups[0]["lr"] = RATES[k] * (step + 1) ** -0.5
            u.grad = gradient * rms
            if clip:
                torch.nn.utils.clip_grad_norm_([u], clip)
            optimizer.step()
        ended.append(u.detach() * rms)
    return torch.stack(ended)


@pytest.mark.parametrize("rms", [1.0, 0.01, 23.0])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_bank_is_adamw_with_clipping_on_each_prompt_alone(rms: float, clip: float) -> None:
    starts, gradients = drawn(3, 4, 6) * rms, drawn(8, 3, 4, 6, seed=1) / rms
    gradients[:, 1] *= 1e-3  # clipped together, it would hardly move beside the others
    gradients[:, 2] *= 50
    bank = PromptBank(starts, RATES, weight_decay=0.01, clip=clip, embedding_rms=rms)
    for step, gradient in enumerate(gradients):
        bank.prompts_KPD.grad = gradient.clone()
        norms_K = bank.step((step + 1) ** -0.5)
        torch.testing.assert_close(norms_K, (gradient * rms).flatten(1).norm(dim=1))
        bank.zero_grad()
    wanted = torch_adamw(starts, gradients, rms, clip)
    torch.testing.assert_close(bank.prompts_KPD.detach(), wanted, rtol=2e-5, atol=2e-5 * rms)


def test_a_prompt_that_is_done_does_not_move_and_later_goes_on_where_it_was() -> None:
    starts, gradients = drawn(3, 2, 4), drawn(6, 3, 2, 4, seed=1)
    bank = PromptBank(starts, RATES, weight_decay=0.01, clip=1.0)
    for step in range(6):
        bank.prompts_KPD.grad = gradients[step].clone()
        if step == 2:
            bank.prompts_KPD.grad[1] = float("nan")  # what a stopped prompt gets does not matter
        bank.step(active_K=torch.tensor([True, step not in (2, 3), True]))
    assert bank.updates_K.tolist() == [6, 4, 6]
    rows = [gradients[:, 0], gradients[[0, 1, 4, 5], 1], gradients[:, 2]]
    for k, own in enumerate(rows):
        alone = PromptBank(starts[k : k + 1], [RATES[k]], weight_decay=0.01, clip=1.0)
        for gradient in own:
            alone.prompts_KPD.grad = gradient[None].clone()
            alone.step()
        assert torch.equal(bank.prompts_KPD[k], alone.prompts_KPD[0])


@pytest.mark.defect(2)
def test_the_first_update_starts_from_the_prompt_that_was_given() -> None:
    starts = drawn(2, 3, 4)
    kept = starts.clone()
    bank = PromptBank(starts, [0.1, 0.1], embedding_rms=2.0)
    bank.prompts_KPD.grad = drawn(2, 3, 4, seed=1)
    bank.step()
    # Adam's first update moves every entry by the rate against its gradient's sign.
    wanted = kept - 0.1 * 2.0 * drawn(2, 3, 4, seed=1).sign()
    torch.testing.assert_close(bank.prompts_KPD.detach(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(starts, kept)  # the bank has a copy of its own


@pytest.mark.defect(2, 10)
def test_a_bank_goes_on_from_its_state_to_the_bit() -> None:
    gradients = drawn(5, 2, 3, 4, seed=1)

    def run(bank: PromptBank, steps: range) -> PromptBank:
        for step in steps:
            bank.prompts_KPD.grad = gradients[step].clone()
            bank.step(0.5)
        return bank

    def made(start: torch.Tensor) -> PromptBank:
        return PromptBank(start, [0.1, 0.3], weight_decay=0.01, clip=1.0, embedding_rms=3.0)

    whole = run(made(drawn(2, 3, 4)), range(5))
    first = run(made(drawn(2, 3, 4)), range(3))
    second = made(drawn(2, 3, 4, seed=9))  # another start: all of it must come from the state
    second.load_state(first.state())
    run(second, range(3, 5))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name])
    with pytest.raises(ValueError, match="bank"):
        PromptBank(drawn(1, 3, 4), [0.1]).load_state(first.state())


def test_a_bank_says_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="2 prompts with 1 learning rates"):
        PromptBank(drawn(2, 3, 4), [0.1])
    with pytest.raises(ValueError, match="no gradient"):
        PromptBank(drawn(2, 3, 4), [0.1, 0.1]).step()


# Backbone and prompts together.


def loss(
    backbone: Backbone, prompts_KPD: torch.Tensor, which: list[int], rows: list[np.ndarray]
) -> torch.Tensor:
    """Sum over prompts of the mean loss over each prompt's own examples."""
    targets = [np.array([backbone.vocab_size - 1, 20 + len(row)], dtype=np.int32) for row in rows]
    weights = [1.0 / which.count(k) for k in which]
    batch = collate(rows, which, targets, backbone.pad_id, backbone.start_id, example_weights=weights)
    embeds, mask = insert_prompts(
        prompts_KPD, backbone.embed(batch.input_ids_BL), batch.mask_BL, batch.prompt_ids_B
    )
    losses_B = example_losses(backbone.target_logits(embeds, mask, batch.decoder_ids_BT), batch)
    return (losses_B * batch.example_weights_B).sum()


def rows_of(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 60, n).astype(np.int32) for n in lengths]


def test_the_gradient_of_a_prompt_is_that_of_the_plain_model(backbone: Backbone) -> None:
    rows, which = rows_of(6, 3, 8), [1, 0, 1]
    prompts_KPD = (drawn(2, 4, backbone.d_model) * backbone.embedding_rms).requires_grad_(True)
    loss(backbone, prompts_KPD, which, rows).backward()
    naive = prompts_KPD.detach().clone().requires_grad_(True)
    model, total = backbone.model, torch.zeros(())
    for row, k in zip(
        rows, which, strict=True
    ):  # one at a time, nothing padded, the label's position by hand
        embeds = torch.cat([naive[k], model.shared(torch.from_numpy(row).long())])[None]
        decoder = torch.tensor([[0, backbone.vocab_size - 1]])
        logits = model(inputs_embeds=embeds, decoder_input_ids=decoder).logits
        total = total - logits[0, 1].log_softmax(-1)[20 + len(row)] / which.count(k)
    total.backward()
    assert prompts_KPD.grad is not None and naive.grad is not None
    torch.testing.assert_close(
        prompts_KPD.grad, naive.grad, rtol=1e-4, atol=1e-5 * float(naive.grad.abs().max())
    )


def test_prompts_that_learn_together_end_as_each_does_alone(backbone: Backbone) -> None:
    starts = drawn(3, 4, backbone.d_model) * backbone.embedding_rms
    own = {0: rows_of(5, 9, seed=1), 1: rows_of(3, seed=2), 2: rows_of(12, 4, 4, seed=3)}

    def train(members: list[int]) -> torch.Tensor:
        bank = PromptBank(
            starts[members], [RATES[k] for k in members], 0.01, 1.0, embedding_rms=backbone.embedding_rms
        )
        which = [place for place, k in enumerate(members) for _ in own[k]]
        for _ in range(6):
            bank.zero_grad()
            loss(backbone, bank.prompts_KPD, which, [row for k in members for row in own[k]]).backward()
            bank.step()
        return bank.prompts_KPD.detach()

    together = train([0, 1, 2])
    for k in range(3):
        alone = train([k])[0]
        assert float((alone - starts[k]).abs().max()) > 0.01 * backbone.embedding_rms
        torch.testing.assert_close(together[k], alone, rtol=1e-3, atol=1e-3 * backbone.embedding_rms)


def gated(scale: float) -> Backbone:
    """A random 1.1 shape in a space `scale` times smaller, rescaled as the released code does it for `scale` 100."""
    config = T5Config(
        vocab_size=80, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, tie_word_embeddings=False, layer_norm_epsilon=1e-6 / scale**2,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        model: Any = T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(80, 16) * 0.3)
        for name, weight in model.named_parameters():
            if name == "shared.weight" or name.endswith("Attention.o.weight"):
                weight /= scale
            elif name.endswith(("wi_1.weight", "wo.weight")):
                weight /= scale**0.5
    return Backbone(model, f"1/{scale:g}")


def test_settings_mean_the_same_in_the_released_codes_scaled_space() -> None:
    """The scale trap: embeddings / 100 and prompt / 100 train alike at the same settings, in units of the RMS."""
    rows, which = rows_of(6, 3, 8), [0, 0, 0]
    start = drawn(1, 4, 16)
    ends, losses = [], []
    for scale in (1.0, 100.0):
        backbone = gated(scale)
        bank = PromptBank(
            start / scale, [0.3], weight_decay=0.01, clip=0.5, eps=1e-6, embedding_rms=backbone.embedding_rms
        )
        for _ in range(5):
            bank.zero_grad()
            value = loss(backbone, bank.prompts_KPD, which, rows)
            value.backward()
            bank.step()
        ends.append(bank.prompts_KPD.detach() * scale)
        losses.append(value.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert float((ends[0] - start).abs().max()) > 0.5
    torch.testing.assert_close(ends[1], ends[0], rtol=2e-3, atol=2e-3)


def test_the_released_codes_settings_convert_by_a_hundred() -> None:
    """Learning rate x 100, weight decay, clip and eps / 100 train alike here; any of the four left as it was does not."""
    there = {"lr": 2e-3, "weight_decay": 30.0, "clip": 20.0, "eps": 1.0}  # large enough for each to matter
    here = {"lr": 0.2, "weight_decay": 0.3, "clip": 0.2, "eps": 0.01}
    rows, which = rows_of(6, 3, 8), [0, 0, 0]

    def train(scale: float, lr: float, clip: float, **others: float) -> torch.Tensor:
        backbone, prompt = gated(scale), (drawn(1, 4, 16) / scale).requires_grad_(True)
        optimizer = torch.optim.AdamW([prompt], lr=lr, **others)
        for _ in range(3):
            optimizer.zero_grad()
            loss(backbone, prompt, which, rows).backward()
            torch.nn.utils.clip_grad_norm_([prompt], clip)
            optimizer.step()
        return prompt.detach() * scale

    wanted = train(100.0, **there)
    torch.testing.assert_close(train(1.0, **here), wanted, rtol=1e-3, atol=1e-3)
    for name, value in there.items():
        assert float((train(1.0, **{**here, name: value}) - wanted).abs().max()) > 0.01, name


# That they learn at all.


def updated(gradient: torch.Tensor, rate: float, **settings: float) -> tuple[torch.Tensor, PromptBank]:
    start = drawn(2, 3, 4)
    bank = PromptBank(start, [0.1, rate], **settings)
    for _ in range(3):
        bank.prompts_KPD.grad = torch.stack([drawn(3, 4, seed=1), gradient])
        bank.step()
    return start, bank


def test_prompts_that_learn_pass_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    check_prompts_train(*updated(drawn(3, 4, seed=2), 0.03))
    assert capsys.readouterr().err == ""


def test_a_prompt_without_gradient_is_named_even_where_weight_decay_moves_it() -> None:
    start, bank = updated(torch.zeros(3, 4), 0.1, weight_decay=0.1)
    assert not torch.equal(bank.prompts_KPD[1], start[1])
    with pytest.raises(UserError, match=r"prompt unified does not train: its gradient has been zero.*<X>"):
        check_prompts_train(start, bank, names=["sentence_pair", "unified"])


def test_a_prompt_that_does_not_move_or_flies_off_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"prompt 1 does not train.*raise the learning rate"):
        check_prompts_train(*updated(drawn(3, 4, seed=2), 1e-12))
    with pytest.raises(UserError, match=r"prompt 1 does not train.*lower the learning rate"):
        check_prompts_train(*updated(drawn(3, 4, seed=2), 1e39))


def test_a_prompt_that_hardly_moves_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    check_prompts_train(*updated(drawn(3, 4, seed=2), 1e-5))
    warning = capsys.readouterr().err
    assert "prompt 1 hardly moves" in warning and "units of the embedding RMS" in warning


def test_a_prompt_that_had_no_update_is_not_judged() -> None:
    start = drawn(2, 3, 4)
    bank = PromptBank(start, [0.1, 0.1])
    bank.prompts_KPD.grad = torch.zeros(2, 3, 4)
    bank.prompts_KPD.grad[0] = 1.0
    bank.step(active_K=torch.tensor([True, False]))
    check_prompts_train(start, bank)
