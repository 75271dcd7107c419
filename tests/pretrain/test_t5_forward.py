"""The forward pass through leaf modules is that of transformers' T5, with its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from pretrain.t5_forward import decode, encode

PROJECTIONS = ("relu", "gated-gelu", "gated-silu")


def tiny(projection: str, family: str = "t5", dtype: torch.dtype = torch.float32, width: int = 4) -> Any:
    """A random model whose position biases and norms are no constants."""
    config_class, model_class = (
        (T5Config, T5ForConditionalGeneration) if family == "t5" else (MT5Config, MT5ForConditionalGeneration)
    )
    config = config_class(
        vocab_size=90, d_model=16, d_kv=width, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, decoder_start_token_id=0,
        feed_forward_proj=projection,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                torch.nn.init.normal_(parameter)
            elif "layer_norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().to(dtype)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings [3, 20, 16] that ask for a gradient, their mask, decoder ids [3, 5]."""
    rng = torch.Generator().manual_seed(1)
    embeds_BLD = torch.randn(3, 20, 16, generator=rng).to(dtype).requires_grad_(True)
    mask_BL = torch.ones(3, 20, dtype=torch.bool)
    mask_BL[0, 4:] = mask_BL[2, 13:] = False
    return embeds_BLD, mask_BL, torch.randint(0, 90, (3, 5), generator=rng)


def plain(
    model: Any, embeds_BLD: torch.Tensor, mask_BL: torch.Tensor, ids_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' own stacks give."""
    states_BLD = model.encoder(inputs_embeds=embeds_BLD, attention_mask=mask_BL.long()).last_hidden_state
    output_BTD = model.decoder(
        input_ids=ids_BT, encoder_hidden_states=states_BLD, encoder_attention_mask=mask_BL.long(), use_cache=False
    ).last_hidden_state  # fmt: skip
    return states_BLD, output_BTD


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("family", ["t5", "mt5"])
@pytest.mark.parametrize("trains", ["prompts", "backbone"])
def test_outputs_and_gradients_equal_those_of_transformers(projection: str, family: str, trains: str) -> None:
    model = tiny(projection, family).requires_grad_(trains == "backbone")
    embeds_BLD, mask_BL, ids_BT = inputs()
    leaves = [embeds_BLD, *(model.parameters() if trains == "backbone" else ())]

    def gradients(states_BLD: torch.Tensor, output_BTD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights_BTD = torch.randn(output_BTD.shape, generator=torch.Generator().manual_seed(4))
        loss = (output_BTD * weights_BTD).sum() + states_BLD[mask_BL].square().sum()
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    theirs = plain(model, embeds_BLD, mask_BL, ids_BT)
    states_BLD = encode(model, embeds_BLD, mask_BL)
    ours = (states_BLD, decode(model, states_BLD, mask_BL, ids_BT))
    torch.testing.assert_close(ours[0][mask_BL], theirs[0][mask_BL], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)
    for own, other in zip(gradients(*ours), gradients(*theirs), strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_in_bfloat16_it_is_as_near_to_float32_as_transformers_is(projection: str) -> None:
    exact = tiny(projection, dtype=torch.bfloat16).float()  # weights that bfloat16 holds
    rounded = tiny(projection, dtype=torch.bfloat16)
    embeds_BLD, mask_BL, ids_BT = inputs(torch.bfloat16)
    with torch.no_grad():
        reference = plain(exact, embeds_BLD.float(), mask_BL, ids_BT)[1]
        theirs = plain(rounded, embeds_BLD, mask_BL, ids_BT)[1].float()
        ours = decode(rounded, encode(rounded, embeds_BLD, mask_BL), mask_BL, ids_BT).float()
    error, their_error = (float((one - reference).square().mean().sqrt()) for one in (ours, theirs))
    assert 0 < error < 1.5 * their_error


def test_no_position_sees_a_later_one_and_no_padding_is_read() -> None:
    model = tiny("gated-gelu")
    embeds_BLD, mask_BL, ids_BT = inputs()
    with torch.no_grad():
        states_BLD = encode(model, embeds_BLD, mask_BL)
        first = decode(model, states_BLD, mask_BL, ids_BT)
        changed_ids = ids_BT.clone()
        changed_ids[:, 3:] = (changed_ids[:, 3:] + 1) % 90
        changed_BLD = torch.where(mask_BL[..., None], embeds_BLD, embeds_BLD + 5)
        second = decode(model, encode(model, changed_BLD, mask_BL), mask_BL, changed_ids)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


@pytest.mark.parametrize("rows", [2, 7])  # the first reads the states, the second makes keys and values
def test_several_rows_of_an_example_give_what_each_gives_beside_states_of_its_own(rows: int) -> None:
    model = tiny("gated-gelu", dtype=torch.float64, width=64).requires_grad_(False)
    embeds_BLD, mask_BL, _ = inputs(torch.float64)
    ids_RT = torch.randint(0, 90, (3 * rows, 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        states_BLD = encode(model, embeds_BLD, mask_BL)
        together = decode(model, states_BLD, mask_BL, ids_RT)
        apart = decode(
            model, states_BLD.repeat_interleave(rows, 0), mask_BL.repeat_interleave(rows, 0), ids_RT
        )
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


def test_layers_put_in_the_place_of_others_are_called() -> None:
    model = tiny("gated-gelu")
    called = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None and next(module.parameters(), None) is not None:
            module.register_forward_hook(lambda _m, _i, _o, name=name: called.append(name))
    embeds_BLD, mask_BL, ids_BT = inputs()
    decode(model, encode(model, embeds_BLD, mask_BL), mask_BL, ids_BT)
    leaves = {
        name.rsplit(".", 1)[0]
        for name, _ in model.named_parameters(remove_duplicate=False)
        if name.startswith(("encoder.", "decoder."))
    }
    # The encoder's embedding is the caller's to call.
    assert leaves - set(called) == {"encoder.embed_tokens"}
