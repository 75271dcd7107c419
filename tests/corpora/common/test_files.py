"""Facts about atomic writes, manifests and hashes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from corpora.common.errors import MachineError, UserError
from corpora.common.files import (
    atomic_folder,
    drop_partials,
    hash_json,
    read_json,
    read_manifest,
    write_bytes_atomic,
    write_json,
    write_manifest,
)


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes_atomic(path, b"one")
    write_bytes_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_full_disk_keeps_the_old_file_and_is_a_machine_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="no space left on device"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "made") as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "whole").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "whole").read_text() == "x"


def test_folder_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match="already exists"), atomic_folder(tmp_path / "made"):
        pass
    with atomic_folder(tmp_path / "made", replace=True) as folder:
        (folder / "new").write_text("x")
    assert (tmp_path / "made" / "new").exists()


def test_missing_input_inside_a_folder_is_not_called_a_write_failure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "made"):
        (tmp_path / "absent").read_text()


def test_json_is_the_same_bytes_for_any_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": [2, 3]})
    write_json(tmp_path / "b", {"y": [2, 3], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert hash_json({"x": 1, "y": 2}) == hash_json({"y": 2, "x": 1}) != hash_json({"x": 1, "y": 3})


def test_bad_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"a": 1,\n"b": }\n')
    with pytest.raises(UserError, match=r"bad\.json line 2"):
        read_json(path)


def test_manifest_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, "store", {"units": 3})
    assert read_manifest(tmp_path, "store")["units"] == 3
    with pytest.raises(UserError, match="holds a store, expected a labeller"):
        read_manifest(tmp_path, "labeller")
    write_json(tmp_path / "manifest.json", {"kind": "store", "format_version": 99})
    with pytest.raises(UserError, match="format version 99"):
        read_manifest(tmp_path, "store")


def test_what_is_half_written_below_a_folder_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "prompts" / "a.partial").mkdir(parents=True)
    (tmp_path / "prompts" / "a.partial" / "one.partial").write_bytes(b"half")
    (tmp_path / "prompts" / "b").mkdir()
    (tmp_path / "prompts" / "b" / "partial").write_bytes(b"whole")
    (tmp_path / "two.jsonl.partial").write_bytes(b"half")
    drop_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "partial", "prompts"]
