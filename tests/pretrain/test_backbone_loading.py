"""Weights go from their files straight to where they are kept, and little else is ever held."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from corpora.common.errors import UserError
from pretrain.backbone import load_backbone
from pretrain.distributed import Processes
from pretrain.tensor_parallel import CUT_AXES

ROOT = Path(__file__).parents[2]
SHARD = 25_000_000  # bytes at most, of the files of `sharded`
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    # glibc keeps small pieces that were freed; without it what was freed is seen to be gone.
    "MALLOC_MMAP_THRESHOLD_": "65536",
}  # fmt: skip

# What a process has in memory: its own pages and those of the files that it maps. The peak is forgotten on request.
GAUGE = '''
import json, sys, torch
from pretrain.backbone import load_backbone

def now(field):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[field].split()[0]) * 1024

def over(load):
    """What loading took at its peak, and what the loaded weights take."""
    load_backbone(sys.argv[2]) if load is not zero3 else None  # the libraries' own pages
    before = now("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    model = load()
    tensors = (getattr(t, "ds_tensor", t) for t in (*model.parameters(), *model.buffers()))
    kept = sum(t.numel() * t.element_size() for t in tensors)
    return {"peak": now("VmHWM") - before, "kept": kept}, model
'''


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 1.1 of about 200 MB in files of at most 25 MB, and a head of its own."""
    config = T5Config(
        vocab_size=4000, d_model=512, d_kv=64, d_ff=1536, num_layers=6, num_decoder_layers=6, num_heads=8,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(4000, 512))
    folder = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(folder, max_shard_size=SHARD)
    assert len(list(folder.glob("*.safetensors"))) >= 8
    return folder


def answers(script: str, *arguments: str) -> Any:
    """What a fresh process prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", GAUGE + script, *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_beside_the_weights_that_are_kept_loading_holds_less_than_one_and_a_half_shards(
    sharded: Path, backbone_dir: Path
) -> None:
    found = answers(
        """
from transformers import T5ForConditionalGeneration
zero3, found = None, {}
for name, ours in {
    "bfloat16": lambda: load_backbone(sys.argv[1], "bfloat16").model,
    "float32": lambda: load_backbone(sys.argv[1]).model,
    "nf4": lambda: load_backbone(sys.argv[1], "bfloat16", weights="nf4").model,
    "transformers": lambda: T5ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.bfloat16),
}.items():
    if name == "nf4":
        load_backbone(sys.argv[2], "bfloat16", weights="nf4")
    found[name], model = over(ours)
    del model
print(json.dumps(found))
""",
        str(sharded),
        str(backbone_dir),
    )
    for name in ("bfloat16", "float32", "nf4"):
        assert found[name]["peak"] < found[name]["kept"] + 1.5 * SHARD, (name, found)
    assert found["nf4"]["kept"] < 0.4 * found["bfloat16"]["kept"] < 0.21 * found["float32"]["kept"]
    # The gauge sees what it should: transformers maps all files until the last weight is in place.
    assert found["transformers"]["peak"] > found["transformers"]["kept"] + 4 * SHARD


ZERO3 = """
import os, deepspeed
from pathlib import Path
from pretrain.distributed import end_processes, start_processes
processes = start_processes("cpu")
config = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.0}
backbone = None
def zero3():
    global backbone
    backbone = load_backbone(sys.argv[1], "bfloat16", processes=processes, deepspeed_config=config)
    return backbone.model
load_backbone(sys.argv[2], processes=processes, deepspeed_config=config)
found, model = over(zero3)
whole = load_backbone(sys.argv[1], "bfloat16")
names = dict(whole.model.named_parameters())
found["same"] = []
for name, parameter in model.named_parameters():
    with deepspeed.zero.GatheredParameters([parameter]):
        found["same"].append(torch.equal(parameter, names[name]))
found["part"] = max(p.ds_tensor.numel() / p.ds_numel for p in model.parameters())
found["rms"] = backbone.embedding_rms == whole.embedding_rms
found["fingerprint"] = backbone.fingerprint == whole.fingerprint
found["untied"] = model.lm_head.weight is not model.shared.weight
found["whole"] = sum(p.numel() * p.element_size() for p in whole.model.parameters())
Path(sys.argv[3], f"{processes.rank}.json").write_text(json.dumps(found))
end_processes()
os._exit(0)
"""


def test_at_zero_3_a_process_holds_its_part_and_less_than_one_and_a_half_shards(
    sharded: Path, backbone_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "load.py"
    script.write_text(GAUGE + ZERO3)
    command = [
        str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--no_local_rank",
        str(script), str(sharded), str(backbone_dir), str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert all(found["same"]) and len(found["same"]) > 100
        assert found["rms"] and found["fingerprint"] and found["untied"]
        assert found["part"] == 0.5 and found["kept"] == found["whole"] / 2
        assert found["peak"] < found["kept"] + 1.5 * SHARD, found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_is_the_one_that_transformers_loads(sharded: Path, dtype: str) -> None:
    ours = load_backbone(sharded, dtype).model
    theirs = T5ForConditionalGeneration.from_pretrained(sharded, dtype=getattr(torch, dtype))
    own, wanted = ours.state_dict(), theirs.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) and own[name].dtype == wanted[name].dtype for name in own)
    assert ours.config.to_dict() == theirs.config.to_dict()


def test_a_process_that_shares_layers_reads_its_part_of_them(backbone_dir: Path) -> None:
    whole = load_backbone(backbone_dir).model.state_dict()
    parts = [
        load_backbone(backbone_dir, processes=Processes(rank, 2, torch.device("cpu"), 2)) for rank in range(2)
    ]
    assert parts[0].fingerprint == parts[1].fingerprint == load_backbone(backbone_dir).fingerprint
    for name, tensor in whole.items():
        one, two = (part.model.state_dict()[name] for part in parts)
        axis = CUT_AXES.get(name.split(".")[-2])
        assert torch.equal(torch.cat([one, two], axis) if axis is not None else one, tensor), name
        assert one.is_contiguous() and one.untyped_storage().nbytes() == one.nbytes
    with pytest.raises(UserError, match="tensor_parallel is 3"):
        load_backbone(backbone_dir, processes=Processes(0, 3, torch.device("cpu"), 3))


def test_an_old_bin_file_that_cannot_be_mapped_is_read(backbone_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(backbone_dir, tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    old, new = load_backbone(tmp_path / "old"), load_backbone(backbone_dir)
    assert old.fingerprint == new.fingerprint
    assert all(
        torch.equal(one, two) for one, two in zip(old.model.parameters(), new.model.parameters(), strict=True)
    )


def test_a_weight_of_another_shape_and_a_head_that_is_missing_are_refused(
    backbone_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(backbone_dir, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "d_ff": 48}))
    with pytest.raises(
        UserError, match=r"wi_0.weight has shape \(64, 32\), its configuration asks for \(48, 32\)"
    ):
        load_backbone(tmp_path / "model")
    untied = {key: value for key, value in config.items() if key != "scale_decoder_outputs"}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**untied, "tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"lacks 1 weights, lm_head\.weight first"):
        load_backbone(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["lm_head.weight"] = torch.ones_like(tensors["shared.weight"])
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_backbone(tmp_path / "model").model.lm_head.weight, tensors["lm_head.weight"])
