"""Tests of builds in shards: corpora/merge.py and the shards of corpora/build.py."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from corpora import build as build_module
from corpora import parts as parts_module
from corpora.build import build, merge
from corpora.build_settings import BuildSettings, LabelSettings
from corpora.common.errors import UserError
from corpora.common.files import read_json, write_json
from corpora.common.ray_pool import ray_pool
from corpora.make_corpora import apply_labeller
from corpora.store import SentenceStore

Tree = Callable[[Path], dict[str, str]]  # every file of a folder and the hash of its bytes
Died = Callable[[Callable[[], object], int], int]


@pytest.fixture
def several(tmp_path: Path, pocket_docs: list[list[str]], text_file: Path) -> list[str]:
    """Sources of every kind that parts are cut from in another way, bad records among them."""
    lines = [json.dumps({"text": "\n".join(document)}) for document in pocket_docs[:60]]
    lines[7:7] = ["{broken"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for name in ("b", "c", "d"):
        lines[11:11] = ['{"text": 3}']
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return [
        str(tmp_path / "a.jsonl"),
        str(text_file),
        *(str(tmp_path / f"{name}.jsonl.gz") for name in "bcd"),
    ]


@pytest.mark.parametrize("by_file", [True, False])
def test_one_shard_or_five_in_any_order_end_with_the_same_bytes(
    settings_of: Callable[..., BuildSettings],
    tree: Tree,
    several: list[str],
    monkeypatch: pytest.MonkeyPatch,
    by_file: bool,
) -> None:
    monkeypatch.setattr(parts_module, "MANY_FILES", 0.5 if by_file else 4)
    whole = build(settings_of("whole", text=several, part_bytes=5000))
    made = []
    for shard in ("3/5", "0/5", "4/5", "1/5", "2/5"):
        folder = build(settings_of("sharded", text=several, part_bytes=5000, shard=shard))
        made.append({path.name for path in folder.glob("[0-9]*")})
    assert not set.intersection(*made) and all(made)
    assert tree(merge(Path(settings_of("sharded").out))) == tree(whole)
    assert tree(merge(Path(settings_of("sharded").out), LabelSettings(workers=2))) == tree(whole)
    assert build(settings_of("sharded", text=several, part_bytes=5000, shard="1/5")).name == "sharded"


def test_shards_that_are_missing_or_of_another_number_are_errors_that_say_what_to_do(
    settings_of: Callable[..., BuildSettings], several: list[str]
) -> None:
    same = {"text": several, "labeller": None, "formats": ["sentence_pair"]}
    build(settings_of("build", shard="1/3", **same))
    with pytest.raises(UserError, match=r"shard 0, 2 of 3 is not finished"):
        merge(settings_of("build").out)
    with pytest.raises(UserError, match="holds shards; finish them and run ppt corpora merge"):
        build(settings_of("build", **same))
    with pytest.raises(UserError, match="is a shard of 3, this command says 2"):
        build(settings_of("build", shard="1/2", **same))
    with pytest.raises(UserError, match="built with seed 0, this command says 1"):
        build(settings_of("build", shard="0/3", seed=1, **same))
    for wrong in ("3/3", "x", "-1/2", "1"):
        with pytest.raises(ValueError, match="expected I/N"):
            settings_of("build", shard=wrong)


def test_a_store_knows_the_file_and_the_line_of_each_document(
    settings_of: Callable[..., BuildSettings], several: list[str], pocket_docs: list[list[str]]
) -> None:
    out = build(
        settings_of(
            "build", text=several, part_bytes=3000, labeller=None, formats=["sentence_pair"], workers=2
        )
    )
    store = SentenceStore.open(out / "store")
    assert store.place(0) == "a.jsonl line 1"
    assert store.place(7) == "a.jsonl line 9"  # line 8 is broken
    assert store.place(60) == f"{Path(several[1]).name} line 1"
    assert store.place(61) == f"{Path(several[1]).name} line {len(pocket_docs[0]) + 2}"
    assert store.place(store.n_docs - 1) == "d.jsonl.gz line 64"
    dropped = store.manifest["dropped_places"]
    assert dropped["not valid JSON"] == [
        f"{n} line {8 + k}" for n, k in [("a.jsonl", 0), *((f"{x}.jsonl.gz", 0) for x in "bcd")]
    ]


def test_a_build_by_ray_has_the_same_bytes_and_the_same_errors(
    settings_of: Callable[..., BuildSettings], tree: Tree, several: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"text": several, "part_bytes": 9000}
    whole = tree(build(settings_of("whole", **same)))
    broken = Path(several[1]).parent / "broken.jsonl"
    broken.write_text("{")
    with ray_pool(2) as pool:
        monkeypatch.setattr(build_module, "_pool", lambda settings: contextlib.nullcontext(pool))
        assert tree(build(settings_of("ray", **same))) == whole
        with pytest.raises(UserError, match=r"broken\.jsonl line 1: not valid JSON"):
            build(settings_of("strict", text=[str(broken)], strict=True))
        with pytest.raises(ValueError, match="invalid literal"):
            list(pool.each(int, [("x",)]))


def test_what_is_no_finished_shard_is_told_before_anything_is_merged(
    settings_of: Callable[..., BuildSettings], several: list[str], tree: Tree
) -> None:
    same = {"text": several, "labeller": None, "formats": ["sentence_pair"]}
    out = Path(settings_of("build").out)
    build(settings_of("build", shard="0/2", **same))
    (out / "shards" / "3").mkdir()  # of an earlier command with more shards, which was stopped
    with pytest.raises(UserError, match="shard 1 of 2 is not finished"):
        merge(out)
    build(settings_of("build", shard="1/2", **same))
    other = read_json(out / "shards" / "1" / "manifest.json")
    other["parts"]["0"] += 1
    write_json(out / "shards" / "1" / "manifest.json", other)
    with pytest.raises(UserError, match="it changed between them"):
        merge(out)
    shutil.rmtree(out / "shards")
    with pytest.raises(UserError, match="no shard is finished"):
        merge(out)


def test_strict_refuses_shards_that_left_records_out(
    settings_of: Callable[..., BuildSettings], several: list[str]
) -> None:
    same = {"text": several[:1], "labeller": None, "formats": ["sentence_pair"], "shard": "0/1"}
    build(settings_of("build", **same))
    with pytest.raises(UserError, match=r"a\.jsonl, part 0: not valid JSON"):
        build(settings_of("build", strict=True, **same))
    with pytest.raises(UserError, match=r"a\.jsonl line 8: not valid JSON"):
        merge(settings_of("build").out, strict=True)


def test_a_build_in_shards_killed_at_any_rename_of_its_merge_ends_with_the_same_bytes(
    settings_of: Callable[..., BuildSettings], tree: Tree, several: list[str], died: Died
) -> None:
    same = {"text": several[:2], "part_bytes": 9000}
    whole = tree(build(settings_of("whole", **same)))
    for shard in ("0/2", "1/2"):
        build(settings_of("sharded", shard=shard, **same))
    out = Path(settings_of("sharded").out)
    deaths = 0
    for replace in range(200):
        if died(lambda: merge(out), replace) == 0:
            break
        deaths += 1
    assert deaths > 5 and tree(out) == whole


def test_labels_applied_again_go_on_from_the_finished_ranges(
    settings_of: Callable[..., BuildSettings],
    tree: Tree,
    labeller_dir: Path,
    died: Died,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("corpora.labelling.RANGE", 300)
    out = build(settings_of("build", labeller=None))
    whole = tree(build(settings_of("whole")) / "single_text")
    done: list[str] = []
    for replace in range(0, 100, 3):
        if died(lambda: apply_labeller(out, labeller_dir), replace) == 0:
            break
        now = sorted(path.name for path in out.glob("labels-*/*.npy"))
        assert set(done) <= set(now) or (out / "single_text").exists()
        done = now
    assert len(done) > 2 and tree(out / "single_text") == whole
