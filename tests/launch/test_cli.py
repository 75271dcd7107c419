"""Facts about the `ppt` command as a person meets it: help, one-line errors, exit codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PPT = str(Path(sys.executable).with_name("ppt"))


def ppt(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [PPT, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


COMMANDS = [
    ["demo"],
    ["corpora", "build"],
    ["corpora", "merge"],
    ["corpora", "show"],
    ["corpora", "stats"],
    ["corpora", "label", "train"],
    ["corpora", "label", "calibrate"],
    ["corpora", "label", "apply"],
    ["pretrain"],
    ["plan"],
    ["backbone", "vocab"],
    ["backbone", "train"],
    ["fewshot"],
    ["report"],
    ["task", "new"],
    ["task", "check"],
    ["prompts", "show"],
    ["prompts", "export"],
    ["prompts", "import"],
    ["task", "words"],
]


def test_every_command_has_help_with_an_example() -> None:
    from typer.main import get_command

    from launch.cli import app

    found = []

    def walk(command: object, path: list[str]) -> None:
        inner = getattr(command, "commands", None)
        if inner:
            for name, child in inner.items():
                walk(child, [*path, name])
        else:
            found.append(path)
            assert f"Example: ppt {' '.join(path)}" in (getattr(command, "help", "") or ""), path

    walk(get_command(app), [])
    assert sorted(found) == sorted(COMMANDS)


def test_help_answers_quickly() -> None:
    started = time.monotonic()
    result = ppt("--help")
    assert result.returncode == 0
    assert "pretrain" in result.stdout
    assert (
        time.monotonic() - started < 5
    )  # nothing heavy is imported: torch alone takes longer than that here


def test_unknown_command_exits_with_2() -> None:
    result = ppt("corpora", "bild")
    assert result.returncode == 2
    assert "build" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpora", "build", "--text", "absent.txt", "--tokenizer", "absent", "--out", "o"], "absent"),
        (["corpora", "show", "absent"], "absent"),
        (["corpora", "stats", "absent"], "absent"),
        (["fewshot", "absent.yaml"], "absent.yaml does not exist"),
        (["pretrain", "absent.yaml"], "absent.yaml does not exist"),
        (["plan", "--backbone", "absent", "--gpus", "L4"], "absent is neither a folder nor a shape"),
        (["backbone", "train", "absent.yaml"], "absent.yaml does not exist"),
        (["report", "absent"], "absent"),
        (["prompts", "show", "absent"], "absent"),
        (["corpora", "label", "train", "--reviews", "absent.jsonl", "--out", "o"], "absent.jsonl"),
        (["backbone", "vocab", "--text", "absent.txt", "--size", "100", "--out", "o"], "absent.txt"),
    ],
)
def test_missing_input_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = ppt(*arguments, cwd=tmp_path)
    assert message in one_line(result)
    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_bad_line_of_reviews_is_named_with_its_number(tmp_path: Path) -> None:
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text('{"text": "fine", "label": 3}\n{"text": "bad"\n')
    result = ppt("corpora", "label", "train", "--reviews", reviews, "--out", tmp_path / "labeller")
    assert result.returncode == 2
    assert "reviews.jsonl line 2" in one_line(result)
    assert not (tmp_path / "labeller").exists()


def test_place_that_cannot_be_written_is_one_line_and_exit_1(
    tmp_path: Path, text_file: Path, tokenizer_dir: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")  # a file where a folder must go: refused to root too
    result = ppt(
        "corpora", "build", "--text", text_file, "--tokenizer", tokenizer_dir, "--out", blocked / "out"
    )
    assert result.returncode == 1, result.stderr
    assert str(blocked) in result.stderr.splitlines()[-1]


def test_full_disk_is_one_line_and_exit_1_and_leaves_nothing_half_written(
    tmp_path: Path, text_file: Path, tokenizer_dir: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a full disk is simulated with a small tmpfs, which only root may mount")
    try:
        out = small / "corpora"
        result = ppt("corpora", "build", "--text", text_file, "--tokenizer", tokenizer_dir, "--out", out)
        assert result.returncode == 1, result.stderr
        assert "no space left on device" in result.stderr.splitlines()[-1].lower()
        assert not list(small.rglob("*.partial"))
        assert not (out / "store").exists()  # what is finished stays, so that the same command goes on later
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_commands_run_from_any_folder(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    result = ppt("prompts", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "import" in result.stdout


def test_text_takes_several_sources_as_a_shell_gives_them(
    tmp_path: Path, text_file: Path, tokenizer_dir: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        shutil.copy(text_file, tmp_path / name)
    out = tmp_path / "o"
    result = ppt(
        "corpora", "build", "--text", tmp_path / "a.txt", tmp_path / "b.txt",
        "--tokenizer", tokenizer_dir, "--out", out, "--formats", "sentence_pair",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '"documents": 400' in (out / "store" / "manifest.json").read_text()


def test_asked_to_end_a_build_stops_with_75_and_the_same_command_goes_on(
    tmp_path: Path, pocket_docs: list[list[str]], tokenizer_dir: Path
) -> None:
    import signal

    text = tmp_path / "long.txt"
    text.write_text("\n\n".join("\n".join(document) for document in pocket_docs * 100))
    command = [
        PPT, "corpora", "build", "--text", str(text), "--tokenizer", str(tokenizer_dir),
        "--out", str(tmp_path / "o"), "--formats", "sentence_pair",
    ]  # fmt: skip
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "o").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    errors = child.communicate(timeout=120)[1]
    assert child.returncode == 75, errors
    assert "the same command goes on" in errors and "Traceback" not in errors
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
