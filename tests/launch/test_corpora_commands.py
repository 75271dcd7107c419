from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpora.common.errors import UserError
from corpora.quality import QualitySettings
from launch.arguments import given, in_colour, terminal_columns
from launch.cli import app
from launch.corpora_commands import corpora_build


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_results_are_coloured_on_a_terminal_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "77")
        patch.delenv("NO_COLOR", raising=False)
        assert in_colour() and terminal_columns() == 77
        patch.setenv("TERM", "dumb")
        assert not in_colour()
        patch.setenv("TERM", "xterm")
        patch.setenv("NO_COLOR", "")  # no-color.org: only a value that is not empty counts
        assert in_colour()
        patch.setenv("NO_COLOR", "1")
        assert not in_colour() and terminal_columns() == 77


def test_in_a_pipe_results_have_neither_colours_nor_a_width(build_dir: Path) -> None:
    text = run("corpora", "show", build_dir, "-n", "2", "--format", "sentence_pair", "--label", "maybe")
    assert "\x1b" not in text and text.count("<X> = maybe") == 2
    assert max(map(len, run("corpora", "show", build_dir, "--width", "30").splitlines())) > 80  # label counts
    shown = json.loads(run("corpora", "show", build_dir, "-n", "1", "--json"))
    assert shown["formats"]["unified"]["examples"][0]["parts"][0]["role"] == "query"


def test_stats_are_printed_and_written_where_asked(build_dir: Path, tmp_path: Path) -> None:
    printed = json.loads(run("corpora", "stats", build_dir, "--out", tmp_path / "page", "--json"))
    assert printed == json.loads((tmp_path / "page" / "stats.json").read_text(encoding="utf-8"))
    assert (tmp_path / "page" / "stats.html").is_file()
    assert not (build_dir / "stats").exists()


def test_every_setting_of_quality_is_an_option_of_the_build() -> None:
    options = inspect.signature(corpora_build).parameters
    assert set(QualitySettings.model_fields) <= set(options)


def test_options_that_are_not_named_keep_the_defaults_of_the_settings() -> None:
    assert given(repair=False, ngram=None, keep_languages=["en"], similarity=0.5, duplicates="near") == {
        "keep_languages": ["en"],
        "similarity": 0.5,
        "duplicates": "near",
    }
    assert given(keep_languages=[], boilerplate=True) == {"keep_languages": [], "boilerplate": True}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ("build", "--text", "x", "--tokenizer", "t", "--out", "o", "--keep-languages", "xx"),
            'unknown language "xx"',
        ),
        (("build", "--text", "x", "--tokenizer", "t", "--out", "o", "--shard", "2/2"), "expected I/N"),
        (
            ("build", "--text", "x", "--tokenizer", "t", "--out", "o", "--formats", "unifid"),
            'did you mean "unified"',
        ),
        (("merge", "nowhere", "--workers", "0"), "greater than or equal to 1"),
        (("merge", "nowhere"), "holds no build"),
    ],
)
def test_wrong_options_end_in_one_line(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        CliRunner().invoke(app, ["corpora", *words], catch_exceptions=False)
    assert "\n" not in str(error.value)
