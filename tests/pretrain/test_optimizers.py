"""Backbone optimisers: Muon is torch's, rates are relative where they should be."""

import pytest
import torch
from torch import nn

from pretrain.optimizers import (
    Muon,
    RelativeAdam,
    attention_heads,
    join_heads,
    orthogonalise,
    schedule,
    split_heads,
)


def test_muon_on_whole_matrices_is_torchs():
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (40, 16), (16, 40)]
    ours = [nn.Parameter(torch.randn(s)) for s in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine, reference = Muon([(p, 1, 1) for p in ours], weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step(0.02)
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # both iterate in bfloat16
        assert (a - b).abs().mean() < 2e-4


def test_each_head_is_made_orthogonal_and_the_size_of_the_update_stays():
    torch.manual_seed(0)
    stack = torch.randn(2, 24, 24)
    for axis in (1, 2):
        assert torch.equal(join_heads(split_heads(stack, 3, axis), 3, axis), stack)
        update = join_heads(orthogonalise(split_heads(stack, 3, axis)), 3, axis).float()
        head = update[0, :8] if axis == 1 else update[0, :, :8]
        values = torch.linalg.svdvals(head)
        assert values.min() > 0.5 and values.max() < 1.5
        whole = orthogonalise(stack).float()
        assert float(update.norm()) == pytest.approx(float(whole.norm()), rel=0.15)


def test_attention_matrices_are_told_by_their_names():
    assert attention_heads("encoder.block.0.layer.0.SelfAttention.q.weight", 4) == (4, 1)
    assert attention_heads("decoder.block.0.layer.1.EncDecAttention.o.weight", 4) == (4, 2)
    assert attention_heads("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 4) == (1, 1)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_relative_rate_moves_a_tensor_by_a_share_of_its_size(scale):
    param = nn.Parameter(torch.full((8, 8), scale))
    adam = RelativeAdam([([param], 0.01, True, 0.0)])
    param.grad = torch.ones_like(param)
    adam.step(1.0)
    torch.testing.assert_close(param.detach(), torch.full((8, 8), scale * 0.99))


def test_schedules_warm_up_and_end_at_their_floor():
    assert schedule(0, 100, 10, "cosine") == pytest.approx(0.1)
    assert schedule(9, 100, 10, "linear") == 1.0
    assert schedule(100, 100, 10, "cosine", 0.05) == pytest.approx(0.05)
    assert schedule(55, 100, 10, "linear") == pytest.approx(0.5)
    assert schedule(99, 100, 10, "constant") == 1.0
