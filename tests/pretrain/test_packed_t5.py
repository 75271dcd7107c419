"""The forward pass without padding is T5's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

from pretrain import packed_t5
from pretrain.packed_t5 import decode, encode, head, make_layout


def tiny(**fields):
    torch.manual_seed(0)
    shape = {"d_model": 24, "d_ff": 40, "d_kv": 8, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 3}
    config = T5Config(vocab_size=60, decoder_start_token_id=0, **{**shape, **fields})
    return T5ForConditionalGeneration(config).eval().double()


def flat(rows):
    return torch.tensor([token for row in rows for token in row])


def padded(rows, fill):
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
@pytest.mark.parametrize(("group_cost", "groups"), [(1e9, 1), (0, 3)])
def test_loss_and_gradients_equal_those_of_transformers(projection, group_cost, groups, monkeypatch):
    monkeypatch.setattr(packed_t5, "GROUP_COST", group_cost)
    model = tiny(feed_forward_proj=projection)
    rng = np.random.default_rng(0)
    lengths, target_lengths = np.array([2, 5, 5, 9, 14]), np.array([3, 1, 4, 4, 2])
    inputs = [rng.integers(3, 60, n).tolist() for n in lengths]
    targets = [rng.integers(3, 60, n).tolist() for n in target_lengths]

    layout = make_layout(lengths, target_lengths, torch.device("cpu"))
    assert len(layout.groups) == groups
    decoder = [token for row in targets for token in [0, *row[:-1]]]
    encoded = encode(model, flat(inputs), layout)
    logits = head(model, decode(model, encoded, torch.tensor(decoder), layout))
    loss = F.cross_entropy(logits, flat(targets))
    loss.backward()
    ours = {name: param.grad.clone() for name, param in model.named_parameters()}

    model.zero_grad()
    ids = padded(inputs, 0)
    mask = padded([[1] * len(row) for row in inputs], 0)
    reference = model(input_ids=ids, attention_mask=mask, labels=padded(targets, -100)).loss
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    for name, param in model.named_parameters():
        # transformers computes softmax and norms in float32 whatever the model's dtype
        torch.testing.assert_close(ours[name], param.grad, rtol=1e-4, atol=1e-6)


def test_an_example_alone_gives_what_it_gives_among_others():
    model = tiny(feed_forward_proj="gated-gelu")
    first, second = torch.arange(3, 8), torch.arange(8, 20)
    both = encode(
        model,
        torch.cat([first, second]),
        make_layout(np.array([5, 12]), np.array([1, 1]), torch.device("cpu")),
    )
    alone = encode(model, first, make_layout(np.array([5]), np.array([1]), torch.device("cpu")))
    torch.testing.assert_close(both[:5], alone)
