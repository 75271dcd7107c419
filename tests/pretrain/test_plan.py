"""What a plan chooses, on which devices, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.common.errors import UserError
from pretrain.devices import GIB, parse_fleet
from pretrain.plan import FREE, Plan, make_plan, predict
from pretrain.shapes import find_shape
from pretrain.strategy import Strategy, Workload

XXL = find_shape("google/t5-v1_1-xxl")
SMALL = find_shape("google/t5-v1_1-small")


def plan(gpus: str, **changes: Any) -> Plan:
    return make_plan(
        changes.pop("shape", XXL), parse_fleet(gpus), Workload(), **{"dtype": "bfloat16", **changes}
    )


def test_eight_large_gpus_take_plain_data_parallel() -> None:
    pick = plan("8xH100-80GB").pick
    assert pick is not None and pick.strategy == Strategy()
    assert pick.memory.peak < 0.8 * 80e9


def test_eight_gpus_of_40_gb_hold_the_whole_backbone_as_well() -> None:
    pick = plan("8xA100-40GB").pick
    assert pick is not None and pick.strategy == Strategy()
    assert pick.batch_tokens >= 4096


def test_11b_and_a_real_batch_take_less_than_40_gb_of_a_gpu() -> None:
    pick = plan("H100-80GB").pick
    assert pick is not None and pick.strategy == Strategy()
    assert predict(XXL, parse_fleet("H100-80GB"), Strategy(), 6144).memory.peak < 40e9


def test_gpus_too_small_for_the_backbone_share_its_layers() -> None:
    found = plan("2xRTX4090-24GB")
    assert found.pick is not None and found.pick.strategy == Strategy(tensor_parallel=2)
    assert "the whole backbone needs" in found.why
    assert found.hint is not None and found.hint.startswith("weights=int8 would be")


def test_one_small_gpu_offloads_and_says_that_4_bits_would_stay_on_it() -> None:
    found = plan("L4-24GB")
    assert found.pick is not None and found.pick.strategy.offload == "cpu"
    assert found.hint is not None and "weights=nf4 would keep the backbone on the device" in found.hint


def test_weights_are_never_rounded_unasked_and_what_would_fit_is_said() -> None:
    found = plan("L4-24GB", allowed=lambda one: one.offload == "none")
    assert found.pick is None
    assert (
        "does not fit" in found.why
        and "of 21.3 usable GiB" in found.why
        and found.hint == "weights=nf4 would fit"
    )
    assert plan("L4-24GB", weights="nf4").pick is not None


def test_a_micro_batch_that_was_asked_for_is_named_where_nothing_fits() -> None:
    found = plan("L4-24GB", batch_tokens=100000)
    assert found.pick is None and "with batch_tokens=100000; leave it open" in found.why


def test_a_cpu_takes_data_parallel_and_micro_batches_of_its_caches() -> None:
    pick = plan("2xCPU", shape=SMALL, dtype="float32").pick
    assert pick is not None and pick.strategy == Strategy(dtype="float32")
    assert pick.batch_tokens <= 8192


def test_a_device_without_bfloat16_is_told_to_take_float32() -> None:
    with pytest.raises(UserError, match="V100-32GB has no bfloat16 units; take dtype=float32"):
        plan("V100-32GB")
    assert plan("V100-32GB", shape=SMALL, dtype="float32").pick is not None


def test_fp8_is_weighed_only_where_the_device_computes_in_it() -> None:
    assert any(one.strategy.weights == "fp8" for one in plan("H100-80GB").best)
    assert not any(one.strategy.weights == "fp8" for one in plan("A100-80GB").best)


@pytest.mark.parametrize(
    ("setting", "value"), [("tensor_parallel", 3), ("offload", "nowhere")], ids=["parts", "offload"]
)
def test_settings_that_leave_nothing_open_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(UserError, match="leave no way to run"):
        plan("8xH100-80GB", allowed=lambda one: getattr(one, setting) == value)


def test_the_tensor_parallel_that_leaves_nothing_open_is_named() -> None:
    asked = Strategy(tensor_parallel=3)
    with pytest.raises(UserError, match="tensor_parallel=3 must divide the 8 processes"):
        plan("8xH100-80GB", allowed=lambda one: one.tensor_parallel == 3, asked=asked)


GPUS = ["1xL4-24GB", "2xRTX4090-24GB", "4xA100-40GB", "8xH100-80GB", "2x8xH200-141GB"]
NAMES = [
    "google/t5-v1_1-small",
    "google/t5-v1_1-xl",
    "google/t5-v1_1-xxl",
    "google/mt5-xxl",
    "google-t5/t5-11b",
]


@given(st.sampled_from(GPUS), st.sampled_from(NAMES), st.integers(120, 1000), st.integers(1, 4000))
def test_whatever_is_chosen_fits_and_nothing_that_fits_is_much_faster(
    gpus: str, name: str, tokens: int, examples: int
) -> None:
    work = Workload(tokens=tokens, attended=1.3 * tokens, examples=examples)
    found = make_plan(find_shape(name), parse_fleet(gpus), work, "bfloat16")
    fitting = [one for one in found.best if one.fits and one.strategy.weights == "full"]
    assert (found.pick is None) == (not fitting)
    if found.pick is not None:
        assert found.pick in fitting
        assert found.pick.memory.peak <= FREE * found.pick.fleet.device.memory
        assert found.pick.batch_tokens >= work.longest
        assert found.pick.tokens_per_second >= 0.8 * max(one.tokens_per_second for one in fitting)


@given(st.sampled_from(GPUS), st.integers(2000, 60_000))
def test_a_step_takes_as_long_as_its_micro_batches(gpus: str, batch_tokens: int) -> None:
    one = predict(XXL, parse_fleet(gpus), Strategy(), batch_tokens)
    work, fleet = Workload(), one.fleet
    assert one.tokens_per_second * one.step == pytest.approx(work.examples * work.tokens)
    assert one.step / one.micro_batch.total == pytest.approx(
        -(-work.examples * work.tokens // (fleet.devices * batch_tokens))
    )


def test_operations_are_four_a_weight_of_the_encoder_and_token() -> None:
    h100 = parse_fleet("H100-80GB")
    one = predict(XXL, h100, Strategy(), 16384, share=1.0)
    encoder = 4 * XXL.num_layers * XXL.encoder_block
    rate = 1.0 / (one.micro_batch.compute / 16384)
    assert 0.9 * 0.78 * 989e12 / encoder < rate < 0.78 * 989e12 / encoder
    twice = predict(XXL, h100, replace(Strategy(), checkpointing=True), 16384, share=1.0)
    assert twice.micro_batch.compute / one.micro_batch.compute == pytest.approx(1.5, rel=0.05)


def test_an_unmeasured_share_scales_the_time() -> None:
    fast, slow = (predict(XXL, parse_fleet("H200"), share=share) for share in (0.6, 0.3))
    assert slow.step / fast.step == pytest.approx(2, rel=0.05)


def test_a_prediction_says_its_parts_and_its_settings() -> None:
    found = predict(XXL, parse_fleet("H200"), Strategy(), 16384).as_json()
    parts = dict(found["memory_bytes"])
    peak, allocated = parts.pop("peak"), parts.pop("allocated")
    assert sum(parts.values()) == pytest.approx(peak)
    assert peak - allocated == pytest.approx(parts["context"])
    assert 20 * GIB < parts["weights"] < 22 * GIB
    assert found["settings"]["batch_tokens"] == 16384
