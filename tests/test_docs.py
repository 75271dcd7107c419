"""What the pages tell a reader to type works: every shell block is run, or says why not and is at least well-formed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"sh", "python", "text", "yaml", "json"}  # `text` is for reading: output, layouts, formulas
SECONDS = 120  # for one block
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>.*?)\s*-->")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int  # of the opening fence
    language: str
    text: str
    not_run: str | None  # the reason, where the line before says so

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)} line {self.line}"


def blocks_of(page: Path) -> list[Block]:
    blocks = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language, reason = 0, None, None
    for number, line in enumerate(lines, 1):
        fence = re.match(r"\s*```(\w*)\s*$", line)
        if not fence:
            continue
        if language is None:
            start, language = number, fence.group(1)
            before = next((text for text in reversed(lines[: number - 1]) if text.strip()), "")
            found = NOT_RUN.fullmatch(before.strip())
            reason = found.group("reason") if found else None
        else:
            blocks.append(Block(page, start, language, "\n".join(lines[start : number - 1]) + "\n", reason))
            language = None
    assert language is None, f"{page.name} line {start}: the block has no end"
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def ppt_lines(text: str) -> list[list[str]]:
    """The `ppt` commands of a shell block as words, without assignments before and pipes or redirections behind."""
    commands = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a here-document's text is no command
            continue
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        end = next((i for i, word in enumerate(words) if re.match(r"^(\||&&|;|&|\d?[<>])", word)), len(words))
        if words[:1] == ["ppt"]:
            commands.append(words[1:end])
    return commands


def check_command(words: list[str]) -> None:
    """Find the subcommand and parse its options, running nothing."""
    import typer

    from launch.cli import app

    command: Any = typer.main.get_command(app)
    parent, words = None, list(words)
    while hasattr(command, "commands"):
        context = command.make_context("ppt", [], parent=parent, resilient_parsing=True)
        assert words and words[0] in command.commands, f"`ppt` has no command {' '.join(words[:1])!r} here"
        command, parent = command.commands[words.pop(0)], context
    context = command.make_context(command.name, [], parent=parent, resilient_parsing=True)
    context.resilient_parsing = False
    command.make_parser(context).parse_args(words)  # raises at unknown options and missing values


def environment() -> dict[str, str]:
    """As a reader's shell: the environment's commands first on the path, no network."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def run_block(block: Block, folder: Path) -> None:
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"{block.place}: not done after {SECONDS} s")
    if done.returncode != 0:
        pytest.fail(
            f"{block.place}: exit code {done.returncode}\n{block.text}\n{(done.stdout + done.stderr)[-3000:]}"
        )


def runnable(page: Path) -> list[Block]:
    return [b for b in BLOCKS if b.page == page and b.language in ("sh", "python") and b.not_run is None]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order_in_an_empty_folder(page: Path, tmp_path: Path) -> None:
    # Commands are typed in the repository's root: its started scripts and presets are where the pages say.
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    for block in runnable(page):
        run_block(block, tmp_path)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=lambda block: block.place)
def test_every_ppt_command_of_the_pages_exists_with_its_options(block: Block) -> None:
    for words in ppt_lines(block.text):
        try:
            check_command(words)
        except Exception as error:
            pytest.fail(f"{block.place}: ppt {shlex.join(words)}: {error}")


def test_a_block_that_is_not_run_says_why() -> None:
    silent = [block.place for block in BLOCKS if block.not_run is not None and len(block.not_run) < 10]
    assert not silent


def test_every_block_names_a_language_so_that_none_escapes_by_accident() -> None:
    assert not [block.place for block in BLOCKS if block.language not in LANGUAGES]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.place)
def test_yaml_of_the_pages_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    broken = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not broken


def test_the_architecture_page_names_every_module_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named: set[str] = set()
    for package in ("corpora", "pretrain", "finetune", "launch"):
        room = re.search(rf"### {package}: .*?```text\n(.*?)```", text, flags=re.S)
        assert room, f"docs/architecture.md has no room for {package}"
        named |= {f"{package}/{name}" for name in re.findall(r"[\w/]+\.py", room.group(1))}
    there = {
        str(path.relative_to(ROOT))
        for package in ("corpora", "pretrain", "finetune", "launch")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and "launch/pocket/" not in str(path)  # its page is pocket.md
    }
    assert (sorted(there - named), sorted(named - there)) == ([], [])


def test_unknown_commands_and_options_are_noticed() -> None:
    check_command(["report", "runs/x", "--out", "y"])
    for words in (["raport"], ["corpora", "make"], ["report", "runs/x", "--outt", "y"]):
        with pytest.raises(Exception, match=r"."):
            check_command(words)


def test_commands_are_found_behind_assignments_continuations_and_pipes() -> None:
    text = (
        "A=1 ppt fewshot c.yaml \\\n  'seeds=[0]' | tee log\necho ppt report\n# ppt nothing\nppt demo > log\n"
    )
    assert ppt_lines(text) == [["fewshot", "c.yaml", "seeds=[0]"], ["demo"]]
