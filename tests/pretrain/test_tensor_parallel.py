"""Two processes that share each layer learn what one process learns: loss, prompt gradient and update.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.rendering import Rendered
from pretrain.backbone import Backbone
from pretrain.batching import end_to_end, pack_flat
from pretrain.distributed import form_groups
from pretrain.forward import PromptedBackbone
from pretrain.prompts import PromptBank, insert_prompts
from pretrain.tensor_parallel import check_degree, cut_weights, make_tensor_parallel, weight_part

ROOT = Path(__file__).parents[2]
FAMILIES = {"t5": (T5Config, T5ForConditionalGeneration), "mt5": (MT5Config, MT5ForConditionalGeneration)}
PROJECTIONS = ("relu", "gated-gelu")
CASES = [
    (family, projection, dtype, number)
    for family in FAMILIES
    for projection in PROJECTIONS
    for dtype, numbers in (("float32", range(3)), ("bfloat16", range(1)))
    for number in numbers
]


def tiny(family: str = "t5", projection: str = "gated-gelu", number: int = 0, **changes: Any) -> Any:
    """A random model; its heads times their width are seldom its own width, its biases and norms no constants."""
    rng = generator(number, "shape of a backbone", family, projection)
    shape = {
        "num_heads": 2 * int(rng.integers(1, 4)), "d_kv": int(rng.integers(2, 9)), "d_model": int(rng.integers(5, 40)),
        "d_ff": 2 * int(rng.integers(3, 30)), "num_layers": int(rng.integers(1, 4)),
        "num_decoder_layers": int(rng.integers(1, 4)),
    }  # fmt: skip
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=50, relative_attention_num_buckets=8, relative_attention_max_distance=12,
        decoder_start_token_id=0, feed_forward_proj=projection, **{**shape, **changes},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(number)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                torch.nn.init.normal_(parameter)
            elif "layer_norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.requires_grad_(False).eval()


def learn(model: Any, number: int) -> dict[str, torch.Tensor]:
    """Loss [], gradient and update [2, 3, D] of two prompts after one step, on examples of mixed lengths."""
    backbone = Backbone(model, "tiny")
    rng = torch.Generator().manual_seed(number)
    start_KPD = torch.randn(2, 3, backbone.d_model, generator=rng)
    bank = PromptBank(
        start_KPD.clone(), learning_rates_K=[0.1, 0.1], weight_decay=0.01, clip=0.1, eps=1e-8, embedding_rms=1.0
    )  # fmt: skip
    ids_BL = torch.randint(1, 50, (4, 11), generator=rng)
    mask_BL = torch.arange(11) < torch.tensor([11, 4, 7, 11])[:, None]
    decoder_ids_BT = torch.randint(0, 50, (4, 2), generator=rng)
    prompt_ids_B = torch.tensor([0, 1, 1, 0])
    if number == 1:  # one example whose rows lie apart in memory
        ids_BL, mask_BL, decoder_ids_BT, prompt_ids_B = (
            ids_BL[:1],
            mask_BL[:1],
            decoder_ids_BT[:1],
            prompt_ids_B[:1],
        )
    if number == 2:  # as pre-training does it, examples end to end
        texts = [
            ids_L[mask_L].numpy().astype(np.int32) for ids_L, mask_L in zip(ids_BL, mask_BL, strict=True)
        ]
        rendered = Rendered(*end_to_end(texts), np.zeros(len(texts), np.int64))
        targets = end_to_end([row.numpy().astype(np.int32) for row in decoder_ids_BT])
        batch = pack_flat(rendered, 3, prompt_ids_B.numpy(), *targets, np.ones(len(texts)), 0, 0)
        net = PromptedBackbone(backbone)
        (logits_BTV,) = net(bank.prompts_KPD, batch, [decoder_ids_BT], 0)
    else:
        embeds_BLD, mask_BL = insert_prompts(bank.prompts_KPD, backbone.embed(ids_BL), mask_BL, prompt_ids_B)
        if number == 1:
            embeds_BLD = embeds_BLD.mT.contiguous().mT
        states_BLD = backbone.encode(embeds_BLD, mask_BL)
        logits_BTV = backbone.decode(states_BLD, mask_BL, decoder_ids_BT)
    loss = torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), decoder_ids_BT.flatten())
    loss.backward()
    assert bank.prompts_KPD.grad is not None
    gradient_KPD = bank.prompts_KPD.grad.clone()
    bank.step(torch.ones(2), torch.ones(2, dtype=torch.bool))
    return {
        "loss": loss.detach(),
        "gradient": gradient_KPD,
        "update": bank.prompts_KPD.detach() - start_KPD,
    }


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How far two tensors are apart, as a share of the second's norm."""
    return float((ours - theirs).norm() / theirs.norm())


def process(rank: int, world: int, folder: Path) -> None:
    """What one of the processes does: every case whole and shared; writes what it saw."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    here = form_groups(rank, world, torch.device("cpu"), world)
    sums = []
    all_reduce = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda *a, **k: sums.append(a[0].shape) or all_reduce(*a, **k)  # type: ignore[func-returns-value]
    seen = []
    for family, projection, dtype, number in CASES:
        model = tiny(family, projection, number).to(getattr(torch, dtype))
        alone, exact = learn(model, number), learn(model.float(), number)
        model = model.to(getattr(torch, dtype))
        make_tensor_parallel(model, world, here.tensor_rank, here.tensor_group, "tiny")
        sums.clear()
        shared = learn(model, number)
        case: dict[str, Any] = {what: apart(shared[what], alone[what]) for what in shared}
        case["rounding"] = {what: apart(alone[what], exact[what]) for what in alone}
        case["shared_rounding"] = {what: apart(shared[what], exact[what]) for what in alone}
        case["sums"] = len(sums)
        case["layers"] = [model.config.num_layers, model.config.num_decoder_layers]
        case["checksum"] = [float(shared[what].double().sum()) for what in shared]
        seen.append(case)
    counted = here.sum(torch.tensor([1.0, 2.0, 4.0]) + rank, wishes=1).tolist()
    (folder / f"seen-{rank}.json").write_text(json.dumps({"cases": seen, "counted": counted}))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("shared")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]  # fmt: skip
    for one in started:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors.decode()
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def seen(reports: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What each of two processes saw, case by case."""
    return [report["cases"] for report in reports]


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_loss_gradient_and_update_are_those_of_one_process(seen: list[Any], case: int) -> None:
    for of_process in seen:
        found = of_process[case]
        if CASES[case][2] == "float32":
            for what in ("loss", "gradient", "update"):
                assert found[what] < 2e-5, what
        else:  # as near to the exact ones as bfloat16 in one process is; Adam's first update is little but signs
            for what in ("loss", "gradient"):
                assert found["shared_rounding"][what] < 2 * found["rounding"][what] + 0.01, what


def test_all_processes_of_a_group_have_the_same_numbers(seen: list[Any]) -> None:
    assert [case["checksum"] for case in seen[0]] == [case["checksum"] for case in seen[1]]


def test_the_processes_of_a_group_count_once_but_each_may_have_a_wish(reports: list[Any]) -> None:
    assert [report["counted"] for report in reports] == [[1.0, 2.0, 4.0 + 5.0]] * 2


def test_each_block_sums_once_for_all_layers_that_read_the_same_input(seen: list[Any]) -> None:
    for case in seen[0]:
        encoder, decoder = case["layers"]
        forward = 2 * encoder + 3 * decoder
        # The decoder's first two norms come before anything that depends on the prompt.
        backward = 2 * encoder + 1 + 3 * decoder - 2
        assert case["sums"] == forward + backward


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_parts_together_are_the_whole_and_hold_no_more_memory(projection: str) -> None:
    whole = tiny("t5", projection, num_heads=6, d_ff=12)
    parts = []
    for rank in range(3):
        model = tiny("t5", projection, num_heads=6, d_ff=12)
        cut_weights(model, 3, rank)
        parts.append(dict(model.named_parameters()))
        for name, parameter in parts[-1].items():
            assert parameter.untyped_storage().nbytes() == parameter.numel() * 4, name
    for name, parameter in whole.named_parameters():
        places = [weight_part(name, parameter.shape, 3, rank) for rank in range(3)]
        filled = torch.full_like(parameter, float("nan"))
        for part, place in zip(parts, places, strict=True):
            filled[place] = part[name]
        assert torch.equal(filled, parameter), name
    cut = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in parts[0].values())
    blocks = sum(p.numel() for n, p in whole.named_parameters() if "block" in n and "layer_norm" not in n)
    assert cut == blocks * 2 // 3


def test_a_loader_may_have_read_no_more_than_the_parts() -> None:
    whole, read = tiny(), tiny()
    for name, parameter in list(read.named_parameters()):
        owner = read.get_submodule(name.rpartition(".")[0])
        part = parameter[weight_part(name, parameter.shape, 2, 1)]
        owner.weight = torch.nn.Parameter(part, requires_grad=False)
    cut_weights(whole, 2, 1)
    cut_weights(read, 2, 1)
    for name, wanted in whole.named_parameters():
        found = read.get_parameter(name)
        assert torch.equal(found, wanted) and found.is_contiguous(), name
        if "block" in name:
            assert found.untyped_storage().nbytes() == found.nbytes, name
    attention = read.encoder.block[0].layer[0].SelfAttention
    assert attention.n_heads == read.config.num_heads // 2 and attention.q.out_features == len(
        attention.q.weight
    )


def test_weights_that_are_neither_whole_nor_parts_are_an_error() -> None:
    model = tiny(num_heads=4)
    cut_weights(model, 4, 0)
    with pytest.raises(ValueError, match="q has a weight of shape"):
        cut_weights(model, 2, 0)


@pytest.mark.parametrize(
    "heads, width, degree, fits", [(6, 64, 4, "1, 2"), (4, 6, 4, "1, 2"), (3, 9, 2, "1, 3")]
)
def test_parts_that_would_be_unequal_are_refused(heads: int, width: int, degree: int, fits: str) -> None:
    config = T5Config(num_heads=heads, d_ff=width)
    with pytest.raises(UserError) as caught:
        check_degree(config, degree, "tiny")
    assert str(caught.value) == (
        f"tensor_parallel is {degree}, and tiny has {heads} attention heads and a feed-forward width (d_ff) of {width}; "
        f"expected a number that divides both: {fits}"
    )


if __name__ == "__main__":
    process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
