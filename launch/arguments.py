"""What every command shares: apps, argument types, results on standard output."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Annotated, Any, Literal

import typer

Language = Literal["en", "zh", "auto"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def new_app(text: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def print_result(value: Any, as_json: bool, text: str) -> None:
    """Results go to standard output, as text or as JSON."""
    try:
        sys.stdout.write(
            json.dumps(value, ensure_ascii=False, indent=1) + "\n" if as_json else text.rstrip() + "\n"
        )
        sys.stdout.flush()
    except OSError as error:
        # What stays in the buffer would be refused once more at exit, in Python's words and with exit code 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def split_names(names: str) -> list[str]:
    """Names out of a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()]


def terminal_columns() -> int | None:
    """Columns of the terminal that results go to; None where they go to a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def in_colour() -> bool:
    """Whether results are coloured: on a terminal that can, unless NO_COLOR (no-color.org) says no."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def given(**options: Any) -> dict[str, Any]:
    """Options that a command line names; the others keep the defaults of the settings."""
    return {name: value for name, value in options.items() if value is not None and value is not False}
