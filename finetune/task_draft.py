"""A task that is to be written, and who settles its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

UNEVEN = 3  # times as many rows of the commonest label as of the rarest: macro F1 is reported too


class Choose(Protocol):
    """Settles one part of a task: what a flag says, else what a person answers, else the guess."""

    def __call__(
        self,
        part: str,
        question: str,
        guess: str | None,
        among: Sequence[str] = (),
        otherwise: str = "",
        check: Callable[[str], object] | None = None,
    ) -> str:
        """Settle a part.

        Args:
            part: the flag's name.
            question: for a person; empty: nobody is asked.
            guess: what is taken where nobody says otherwise; None: there is none.
            among: valid answers (a comma separates several); empty: any text.
            otherwise: the error where there is neither flag nor person nor guess.
            check: raises a UserError at an answer that does not fit; a person is asked again.

        Raises:
            UserError: see `otherwise` and `check`; or a flag names nothing of `among`.
        """
        ...


@dataclass
class Draft:
    """A task that is to be written."""

    format: str = ""
    language: str = "en"
    label: str = ""  # column
    labels: tuple[str, ...] = ()  # as the data names them
    words: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # training rows of each label
    numbering: tuple[str, ...] = ()  # what label numbers mean
    unlabelled: tuple[str | None, ...] = ()  # None: JSON's null
    fields: dict[str, str] = field(default_factory=dict)  # pattern field -> column
    asking: tuple[str, ...] = ()  # fields whose texts end with a question mark, so that no pattern adds one
    options: str | tuple[str, ...] = ""  # column of lists, or one column each
    max_options: int = 0
    first_option: Literal[0, 1] = 0
    shorten: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # columns that the task does not read

    @property
    def uneven(self) -> bool:
        """Whether labels have very different numbers of rows."""
        return bool(self.counts) and max(self.counts.values()) >= UNEVEN * min(self.counts.values())


def split(answer: str) -> list[str]:
    """Parts of a comma-separated answer."""
    return [part.strip() for part in answer.split(",") if part.strip()]
