"""Tunes one process's prompts: cells wait for a place in the bank, and what is under way survives a kill."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from corpora.common.files import write_bytes_atomic
from corpora.common.progress import say
from finetune.choices import finish_choice
from finetune.plan import Choice
from finetune.results import ResultRow
from finetune.tune import Bank, Outcome, Place, Trial
from finetune.workshop import Workshop

SPOILT = (
    SafetensorError,
    KeyError,
    TypeError,
    ValueError,
    struct.error,
)  # what reading a broken checkpoint raises
VERSION = 1  # of the checkpoint; goes up when a reader of today could not go on from what is written


class Schedule:
    """Cells of several tasks, methods, seeds and rates on one backbone, `prompts_together` at a time.

    Cells wait in the order of the plan. A choice is scored on test when its last cell is done. Every
    `save_seconds`, and whenever a choice is done, everything that the rest depends on is written: a run that was
    killed makes up the same batches as one that was not, and ends with the same rows.
    """

    def __init__(self, workshop: Workshop, which: str, choices: Sequence[Choice], path: Path) -> None:
        """Take up the checkpoint of an earlier start, where there is one of the same bank.

        Args:
            workshop: of the run.
            which: the backbone.
            choices: what is to be done; those in the checkpoint alone are not wanted any more.
            path: of the checkpoint.
        """
        settings = workshop.settings
        self.workshop, self.which, self.path = workshop, which, path
        self.choices = list(choices)
        self.cells = {
            key["cell"]: (choice, number) for choice in choices for number, key in enumerate(choice.keys)
        }
        self.bank = Bank(
            workshop.net(which), workshop.options(which), settings.prompts_together, settings.prompt_len
        )
        self.names: list[str | None] = [None] * settings.prompts_together  # of the cells in the bank's places
        self.done: dict[str, Outcome] = {}  # of choices that are not done
        self.rows: list[ResultRow] = []  # of the choice finished last: perhaps not in results.jsonl yet
        self._take_up()
        under_way = {name for name in self.names if name} | set(self.done)
        self.waiting = deque(name for name in self.cells if name not in under_way)
        self._saved = time.monotonic()

    def run(self, advance: Callable[[int], None]) -> Iterator[list[ResultRow]]:
        """Tune everything.

        Args:
            advance: called with the number of steps done.

        Yields:
            Rows of each choice as it is done; what is on disk beside them is written.
        """
        yield from self._finish_complete()
        while self.waiting or self.bank.busy:
            self._fill()
            self.done |= self._round(advance)
            yield from self._finish_complete()
            busy = self.waiting or self.bank.busy
            if busy and time.monotonic() - self._saved >= self.workshop.settings.save_seconds:
                self._save()

    def steps_done(self) -> int:
        """Steps that an earlier start did."""
        whole = sum(self.cells[name][0].keys[self.cells[name][1]]["steps"] for name in self.done)
        return whole + sum(place.step for place in self.bank.places if place)

    def _fill(self) -> None:
        while self.waiting and self.bank.free:
            name = self.waiting.popleft()
            self.names[self.bank.put(self._trial(name))] = name

    def _round(self, advance: Callable[[int], None]) -> dict[str, Outcome]:
        finished = {}
        for k, outcome in self.bank.round(advance).items():
            name = self.names[k]
            assert name is not None
            self.names[k] = None
            finished[name] = outcome
        return finished

    def _finish_complete(self) -> Iterator[list[ResultRow]]:
        """Rows of the choices whose cells are all done."""
        for choice in [one for one in self.choices if all(key["cell"] in self.done for key in one.keys)]:
            yield self._finish(choice)

    def _trial(self, name: str) -> Trial:
        choice, number = self.cells[name]
        return self.workshop.trial(choice.cells[number])

    def _finish(self, choice: Choice) -> list[ResultRow]:
        """Rows of a choice, in the checkpoint before anyone sees them: a kill leaves them in one of the two places."""
        outcomes = [self.done.pop(key["cell"]) for key in choice.keys]
        self.rows = finish_choice(self.workshop, choice, outcomes)
        self.choices.remove(choice)
        self._save()
        task = choice.cells[0].task
        if all(other.cells[0].task != task for other in self.choices):
            self.workshop.forget_task(task)
        return self.rows

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on as if nothing had happened."""
        settings = self.workshop.settings
        return {
            "version": VERSION,
            "backbone": self.bank.backbone.fingerprint,
            "prompts_together": settings.prompts_together,
            "prompt_len": settings.prompt_len,
            "batch_tokens": self.bank.options.batch_tokens,
        }

    def _save(self) -> None:
        outcomes = dict(self.done)
        places: list[dict[str, Any] | None] = []
        for name, place in zip(self.names, self.bank.places, strict=True):
            if name is None or place is None:
                places.append(None)
                continue
            outcomes[name] = place.outcome
            places.append({"cell": name, "step": place.step, "scored": place.scored})
        state = {
            "identity": self._identity(),
            "places": places,
            "outcomes": {name: outcome.state() for name, outcome in outcomes.items()},
            "rows": self.rows,
        }
        tensors = {f"bank.{name}": tensor for name, tensor in self.bank.bank.state().items()}
        for name, outcome in outcomes.items():
            if isinstance(outcome.best, torch.Tensor):
                tensors[f"best.{name}"] = outcome.best
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes_atomic(self.path, save(held, {"state": json.dumps(state)}))
        self._saved = time.monotonic()

    def _take_up(self) -> None:
        """Put back what the checkpoint holds of the cells that are still to be done."""
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SPOILT as error:
            say(f"warning: {self.path} is spoilt ({error}); the cells that were under way begin again")
            return
        if self.workshop.settings.batch_tokens is None:
            # By the memory that was free when the run began; now it may be another number.
            tokens = state["identity"].get("batch_tokens", self.bank.options.batch_tokens)
            self.bank.options = replace(self.bank.options, batch_tokens=tokens)
        if state["identity"] != self._identity():
            changed = [k for k, v in self._identity().items() if state["identity"].get(k) != v]
            say(f"another {', '.join(changed)} than before: the cells that were under way begin again")
            return
        device = self.bank.bank.prompts_KPD.device
        best = {
            name.removeprefix("best."): t.to(device)
            for name, t in tensors.items()
            if name.startswith("best.")
        }
        outcomes = {
            name: Outcome.of_state(values, best.get(name))
            for name, values in state["outcomes"].items()
            if name in self.cells
        }
        bank = {name.removeprefix("bank."): t for name, t in tensors.items() if name.startswith("bank.")}
        self.bank.bank.load_state(bank)
        for k, place in enumerate(state["places"]):
            if place is not None and place["cell"] in outcomes:
                name = place["cell"]
                trial = self._trial(name)
                self.names[k] = name
                self.bank.places[k] = Place(trial, outcomes.pop(name), place["step"], place["scored"])
                self.bank.bank.learning_rates_K[k] = trial.learning_rate
        self.done = outcomes


def unwritten_rows(path: Path) -> list[ResultRow]:
    """Rows of the choice that a checkpoint's process finished last: a kill may have left them there alone.

    None where the checkpoint is missing or spoilt; `Schedule` says so.
    """
    if not path.exists():
        return []
    with contextlib.suppress(*SPOILT), safe_open(path, framework="pt") as file:
        return list(json.loads(file.metadata()["state"])["rows"])
    return []
