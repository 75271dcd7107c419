"""Device lists as people write them, and GPUs as torch names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.common.errors import UserError
from pretrain.devices import GIB, has_gpu, known_devices, named_device, parse_fleet


@pytest.mark.parametrize(
    ("text", "machines", "count", "kind"),
    [
        ("8xH100-80GB", 1, 8, "H100-80GB"),
        ("h200", 1, 1, "H200-141GB"),
        ("2x8xA100-40GB", 2, 8, "A100-40GB"),
        ("4xl40s", 1, 4, "L40S-48GB"),
        ("2xCPU", 1, 2, "CPU"),
    ],
)
def test_lists_of_devices_are_read(text: str, machines: int, count: int, kind: str) -> None:
    fleet = parse_fleet(text)
    assert (fleet.machines, fleet.per_machine, fleet.device.kind) == (machines, count, kind)


def test_processes_on_a_cpu_share_its_memory() -> None:
    assert parse_fleet("2xCPU").device.memory == parse_fleet("CPU").device.memory / 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8xH10-80GB", 'did you mean "H100-80GB"'),
        ("A100", 'did you mean "A100-'),  # of which size?
        ("8xMI300X", "expected one of .* or add its line to pretrain/devices.yaml$"),
        ("0xH200", "expected a number and a kind"),
        ("", "expected a number and a kind"),
    ],
)
def test_what_no_device_is_called_is_refused_with_the_nearest(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_fleet(text)


@pytest.mark.parametrize(
    ("name", "gib", "kind"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.1, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100-80GB"),
        ("NVIDIA H200", 139.8, "H200-141GB"),
        ("NVIDIA L4", 22.0, "L4-24GB"),
        ("NVIDIA L40S", 44.4, "L40S-48GB"),
        ("NVIDIA GeForce RTX 4090", 23.5, "RTX4090-24GB"),
        ("Tesla V100-SXM2-32GB", 31.7, "V100-32GB"),
        ("Tesla T4", 14.6, "T4-16GB"),
        ("NVIDIA A10", 22.0, "A10-24GB"),
        ("NVIDIA A10G", 22.0, "A10G-24GB"),
        ("NVIDIA GeForce RTX 4080", 15.7, "RTX4080-16GB"),
        ("NVIDIA GeForce RTX 3060", 11.8, "RTX3060-12GB"),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives_it(name: str, gib: float, kind: str) -> None:
    device, assumed = named_device(name, gib * GIB)
    assert (device.kind, device.memory, assumed) == (kind, gib * GIB, None)


def test_an_unknown_gpu_borrows_rates_from_one_of_its_size_and_says_so() -> None:
    device, assumed = named_device("NVIDIA X9000", 24 * GIB)
    assert device.memory == 24 * GIB
    assert assumed is not None and "NVIDIA X9000" in assumed and device.kind in assumed


def test_every_kind_has_rates_that_can_be() -> None:
    for device in known_devices().values():
        assert 8e12 < device.float32 < 1e14
        assert device.bf16 is None or device.bf16 > device.float32 or device.kind.startswith("RTX")
        assert device.fp8 is None or device.fp8 == pytest.approx(2 * (device.bf16 or 0), rel=0.02)
        assert device.host <= 64e9 and device.bandwidth > device.link > 0


@pytest.mark.parametrize(
    ("shown", "found"), [(None, True), ("0,1", True), ("", False), ("-1", False), ("NoDevFiles", False)]
)
def test_a_machine_whose_gpus_are_hidden_from_a_process_has_none(
    shown: str | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert has_gpu() == found
