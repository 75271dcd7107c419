"""Tests of corpora/sources.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corpora.common.errors import UserError
from corpora.sources import find_sources


def test_missing_or_unknown_sources_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "empty").mkdir()
    for source, reason in [
        ("nothing.txt", "does not exist"),
        ("a.pdf", "unknown kind of file"),
        ("empty", "no text there"),
        ("*.jsonl", "no text there"),
    ]:
        with pytest.raises(UserError, match=reason):
            find_sources([tmp_path / source])
    with pytest.raises(UserError, match="no text given"):
        find_sources([])


def test_a_source_says_its_content_but_not_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (source,) = find_sources([tmp_path / "a.txt"])
    assert source.identity() == {
        "name": "a.txt",
        "bytes": 5,
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    }


def test_links_that_lead_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    for given in (tmp_path / "in", tmp_path / "**" / "*.txt"):
        assert [Path(source.name).name for source in find_sources([given])] == ["a.txt"]


def test_what_is_no_file_says_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "me.txt").symlink_to(tmp_path / "me.txt")
    for name, reason in [
        (tmp_path / "pipe.txt", "is a pipe; a build reads its text more than once: write it to a file first"),
        ("/dev/null", "is a device"),
        (tmp_path / "gone.txt", "is a link to nothing"),
        (tmp_path / "me.txt", "cannot be read: too many levels of symbolic links"),
    ]:
        with pytest.raises(UserError, match=reason):
            find_sources([name])
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.txt" / "inside.txt").write_text("x")
    assert len(find_sources([tmp_path / "folder.txt"])) == 1
