"""Tests of corpora/sources.py."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from corpora.common.errors import UserError
from corpora.sources import find_sources, open_source, reading


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


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".xz", lzma.compress), (".bz2", bz2.compress), (".gz", gzip.compress)]
)
def test_streams_behind_each_other_are_one_file_and_a_damaged_one_is_no_end(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    first, second = pack(b"first\n"), pack(b"second\n" * 1000)
    path.write_bytes(first + second)
    with open_source(find_sources([path])[0]) as file:
        assert file.read() == b"first\n" + b"second\n" * 1000
    for broken in (first + second[:-8], first + b"\x01" + second[1:], first + second[: len(second) // 2]):
        path.write_bytes(broken)
        (source,) = find_sources([path])
        with pytest.raises(UserError, match="damaged"), reading(source), open_source(source) as file:
            file.read()


def test_xz_streams_may_be_padded_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one") + b"\0" * 8 + lzma.compress(b"two") + b"\0" * 4)
    with open_source(find_sources([path])[0]) as file:
        assert file.read() == b"onetwo"


def test_files_of_one_name_are_told_apart_by_as_little_as_it_takes(tmp_path: Path) -> None:
    for folder in ("00", "01"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.txt").write_text("x")
    assert [source.short for source in find_sources([tmp_path])] == ["00/part.txt", "01/part.txt"]
    twice = find_sources([tmp_path / "00", tmp_path / "00" / "part.txt"])
    assert [source.short for source in twice] == ["00/part.txt (1)", "00/part.txt (2)"]


def test_a_folder_inside_that_may_not_be_read_is_an_error(
    tmp_path: Path, without_rights: Callable[[Callable[[], object]], tuple[int, str]]
) -> None:
    (tmp_path / "open.txt").write_text("x")
    (tmp_path / "closed").mkdir(mode=0)
    tmp_path.chmod(0o755)
    code, message = without_rights(lambda: find_sources([tmp_path]))
    assert code == 1 and "closed: permission denied" in message


def test_a_worker_in_another_folder_finds_a_relative_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    (source,) = find_sources(["a.txt"])
    assert source.elsewhere().name == str(tmp_path / "a.txt") and source.elsewhere().short == "a.txt"
