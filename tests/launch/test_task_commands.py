"""`ppt task` as a person meets it: with flags, with answers on a terminal, and without either."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune.task import Task
from launch.cli import app

PPT = str(Path(sys.executable).with_name("ppt"))
SORTS = ["sports", "music", "film"]


@pytest.fixture
def news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with train.csv and test.csv, from which commands are run."""
    for part, start, n in (("train", 0, 90), ("test", 100, 12)):
        rows = [f"The boat moved number {i} along.,{SORTS[i % 3]},{i % 3}\n" for i in range(start, start + n)]
        (tmp_path / f"{part}.csv").write_text("headline,sort,code\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, given: str | None = None) -> Any:
    return CliRunner().invoke(app, ["task", *arguments], input=given, catch_exceptions=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a person sat at a terminal."""
    monkeypatch.setattr("launch.task_commands.on_terminal", lambda: True)


def test_without_a_terminal_everything_is_guessed_and_the_guesses_are_said_as_flags(
    news: Path, tokenizer_dir: Path
) -> None:
    done = subprocess.run(
        [PPT, "task", "new", "train.csv", "--test", "test.csv", "--label", "sort", "--tokenizer", str(tokenizer_dir),
         "--out", "mine/news.yaml"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "guessed: --format single_text --language en --fields headline --words film,music,sports"
        in done.stderr
    )
    assert "mine/news.yaml: single_text, 3 labels in sort, reads headline; not read: code" in done.stdout
    assert done.stdout.count("example: The boat moved number") == 2 and "<X>" in done.stdout
    task = Task.load("mine/news.yaml")
    assert task.name == "news" and task.verbalizer == ("film", "music", "sports")
    again = run("new", "train.csv", "--test", "test.csv", "--label", "sort", "--out", "mine/news.yaml")
    assert "already exists" in str(again.exception) and "--overwrite" in str(again.exception)


def test_a_person_is_asked_with_the_guess_as_default_and_again_after_a_wrong_answer(
    news: Path, asked: None
) -> None:
    answers = ["cod", "code", "", "", "", "athletics,songs", "0=athletics,1=songs,2=movies"]
    done = run("new", "train.csv", "--test", "test.csv", "--out", "t.yaml", given="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    assert "Column of the label [sort]" in done.stderr
    assert 'names "cod"; did you mean "code"?' in done.stderr
    assert "Format (single_text, sentence_pair, unified) [single_text]" in done.stderr
    assert '0 (30 rows, as "The boat moved number 0 along.")' in done.stderr  # what a code stands for
    assert "2 words (athletics, songs) for 3 labels (0, 1, 2)" in done.stderr
    assert "guessed" not in done.stderr
    task = Task.load("t.yaml")
    assert task.labels == ("0", "1", "2") and task.verbalizer == ("athletics", "songs", "movies")


def test_a_person_may_have_a_test_set_held_out(news: Path, asked: None) -> None:
    done = run("new", "train.csv", "--label", "sort", "--out", "t.yaml", given="0.1\n\n\n\n\n")
    assert done.exit_code == 0, done.output
    assert "no test set beside train.csv" in done.stderr and "Share of the rows to hold out: " in done.stderr
    assert len((news / "t" / "test.jsonl").read_text().splitlines()) == 9
    assert "81 rows to draw from, 9 test rows" in done.stdout


def test_a_person_is_asked_what_says_that_a_row_has_no_label(news: Path, asked: None) -> None:
    for part in ("train", "test"):
        text = Path(f"{part}.csv").read_text().replace(",film,", ",N/A,")
        Path(f"{part}.csv").write_text(text)
    answers = "\n".join(["N/A,music,sports", "", "", "", "no sort,music,sports"])
    done = run("new", ".", "--label", "sort", "--out", "t.yaml", given=answers + "\n")
    assert 'Labels (leave out "N/A" where it says that a row has none) [music,sports]' in done.stderr
    assert Task.load("t.yaml").labels == ("N/A", "music", "sports") and "taken for" not in done.stdout
    assert (
        '"N/A" taken for no label (--labels decides)'
        in run("new", ".", "--label", "sort", "--yes", "--out", "u.yaml").stdout
    )


def test_input_that_ends_before_the_questions_do_is_one_line(news: Path, asked: None) -> None:
    done = run("new", ".", "--label", "sort", "--out", "t.yaml", given="\n")
    assert "--yes takes all guesses" in str(done.exception) and not Path("t.yaml").exists()


def test_yes_asks_nothing_even_on_a_terminal(news: Path, asked: None) -> None:
    done = run("new", ".", "--label", "sort", "--yes", "--out", "t.yaml", given="")
    assert done.exit_code == 0 and "guessed: " in done.stderr
    refused = run("new", "train.csv", "--label", "sort", "--yes", "--out", "u.yaml", given="")
    assert "--split 0.2" in str(refused.exception) and not Path("u.yaml").exists()


def test_on_a_real_terminal_the_questions_are_asked(news: Path) -> None:
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [PPT, "task", "new", ".", "--label", "sort", "--out", "t.yaml"],
        stdin=follower, stdout=subprocess.PIPE, stderr=follower, text=True,
    )  # fmt: skip
    os.close(follower)
    os.write(leader, b"unified\n\n\n\n")
    out, _ = child.communicate(timeout=120)
    seen = b""
    while chunk := _read(leader):
        seen += chunk
    os.close(leader)
    assert child.returncode == 0, seen
    assert b"Format (single_text, sentence_pair, unified) [single_text]" in seen
    assert Task.load("t.yaml").format == "unified" and "3 labels in sort" in out


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # the other side is closed
        return b""


def test_check_lists_what_is_wrong_and_exits_with_2(news: Path, tokenizer_dir: Path) -> None:
    run("new", ".", "--label", "sort", "--yes", "--out", "t.yaml")
    good = run("check", "t.yaml", "--tokenizer", str(tokenizer_dir))
    assert good.exit_code == 0 and "90 rows to draw from, 12 test rows" in good.stdout
    text = (
        Path("t.yaml")
        .read_text()
        .replace("verbalizer: [film, music, sports]", "verbalizer: [film, музыка, 体育]")
    )
    Path("t.yaml").write_text(
        text.replace("fields: {", "fieldz: {").replace("name: t", "labels: [film, music, sports]\nname: t")
    )
    bad = run("check", "t.yaml", "--tokenizer", str(tokenizer_dir), "--json")
    assert bad.exit_code == 2
    value = json.loads(bad.stdout)
    assert value["problems"][0]["kind"] == "unknown_word" and value["ok"] is False
    assert '"музыка", "体育" are unknown' in value["problems"][0]["text"]
    assert value["labels"]["film"] == {"train": 30, "test": 4}


def test_check_takes_what_a_run_asks_for_from_its_settings_and_from_the_command_line(
    news: Path, tokenizer_dir: Path
) -> None:
    run("new", ".", "--label", "sort", "--yes", "--out", "t.yaml")
    more = run("check", "t.yaml", "shots=100")
    assert more.exit_code == 2 and "90 rows to draw from, 132 asked for" in more.stdout
    assert "label words and lengths were not looked at" in more.stderr
    Path("fewshot.yaml").write_text(
        f"out: o\nbackbone: {tokenizer_dir}\ntasks: [other]\nmethods: [ppt]\nshots: 80\n"
    )
    told = run("check", "t.yaml", "--config", "fewshot.yaml")
    assert told.exit_code == 2 and "112 asked for" in told.stdout and "example: " in told.stdout
    assert run("check", "t.yaml", "allow_fewer=true", "shots=40", "--config", "fewshot.yaml").exit_code == 0
    unknown = run("check", "t.yaml", "shot=3")
    assert 'did you mean "shots"' in str(unknown.exception)


def test_check_knows_the_presets_of_a_few_shot_run_by_name(news: Path, tokenizer_dir: Path) -> None:
    run("new", ".", "--label", "sort", "--yes", "--out", "t.yaml")
    Path("runs/demo/world/data").mkdir(parents=True)  # as after the demo
    of_its_own = run("check", "t.yaml", "--config", "pocket_table")  # whose backbone lies in the package
    assert "90 rows to draw from" in of_its_own.stdout and "example: " in of_its_own.stdout
    given = ("shots=100", f"backbone={tokenizer_dir}")
    assert run("check", "t.yaml", "--config", "main_table", *given).exit_code == 0  # takes fewer
    assert run("check", "t.yaml", "--config", "main_table", "allow_fewer=false", *given).exit_code == 2
    unknown = run("check", "t.yaml", "--config", "main_tabel")
    assert 'did you mean "main_table"' in str(unknown.exception)


def test_a_task_that_is_not_there_is_an_error_of_the_check(news: Path) -> None:
    found = run("check", "absent.yaml")
    assert found.exit_code == 2 and "error: absent.yaml does not exist" in found.stdout
