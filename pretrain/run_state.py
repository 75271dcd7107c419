"""What changes while a pre-training run goes on, beside the prompts themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pretrain.checkpoint import Checkpoint
from pretrain.evaluation import Score
from pretrain.groups import Group
from pretrain.prompts import PromptBank
from pretrain.settings import PretrainSettings


@dataclass
class GroupState:
    """How a prompt group stands.

    Attributes:
        active: whether it still learns; false after an early stop.
        waited: evaluations since its held-out loss last fell.
        best_step: step of the prompt to keep; -1 before the first evaluation.
        best_loss: its held-out loss.
        best_accuracy: its held-out accuracy.
        sums: since the last row of metrics: label loss, right answers, training loss, gradient norm, examples, steps.
    """

    active: bool = True
    waited: int = 0
    best_step: int = -1
    best_loss: float = float("inf")
    best_accuracy: float = 0.0
    sums: list[float] = field(default_factory=lambda: [0.0] * 6)

    def add(self, step_sums: torch.Tensor) -> None:
        """Count one step: label loss, right answers, training loss, examples, gradient norm."""
        loss, right, target_loss, examples, norm = step_sums.tolist()
        new = [loss, right, target_loss, norm, examples, 1.0]
        self.sums = [old + one for old, one in zip(self.sums, new, strict=True)]

    def take_sums(self) -> list[float]:
        """The sums, which start anew."""
        sums, self.sums = self.sums, [0.0] * 6
        return sums


@dataclass
class RunState:
    """Everything a checkpoint holds beside the prompts and the optimiser's moments.

    Examples are a function of the seed and the step, and so is the learning rate; nothing else is random.

    Attributes:
        step: updates made.
        evaluated: step of the last evaluation; -1 before the first.
        groups: by name.
        best_KPD: [K, P, D] prompts to keep.
        skipped: updates left out in a row up to here, their loss or gradient being no number.
        fingerprints: backbone, tokenizer and corpora that the run was begun with.
    """

    step: int
    evaluated: int
    groups: dict[str, GroupState]
    best_KPD: torch.Tensor
    fingerprints: dict[str, str]
    skipped: int = 0

    @staticmethod
    def fresh(groups: Sequence[Group], prompts_KPD: torch.Tensor, fingerprints: dict[str, str]) -> RunState:
        """The state before the first update."""
        states = {group.name: GroupState() for group in groups}
        return RunState(0, -1, states, prompts_KPD.detach().clone(), fingerprints)

    @staticmethod
    def restore(checkpoint: Checkpoint, bank: PromptBank) -> RunState:
        """Put a checkpoint's prompts and moments into `bank` and give the state beside them."""
        prefix = "bank."
        bank.load_state(
            {
                name.removeprefix(prefix): t
                for name, t in checkpoint.tensors.items()
                if name.startswith(prefix)
            }
        )
        saved = checkpoint.state
        groups = {
            name: GroupState(
                **{
                    **values,
                    "best_loss": float("inf") if values["best_loss"] is None else values["best_loss"],
                }
            )
            for name, values in saved["groups"].items()
        }
        best = checkpoint.tensors["best"].to(bank.prompts_KPD.device)
        return RunState(
            checkpoint.step, saved["evaluated"], groups, best, saved["fingerprints"], saved["skipped"]
        )

    def checkpoint(self, bank: PromptBank, metrics_bytes: int) -> Checkpoint:
        """What to write down so that `restore` gives this state again, bit for bit."""
        tensors = {f"bank.{name}": tensor for name, tensor in bank.state().items()}
        groups: dict[str, Any] = {name: asdict(group) for name, group in self.groups.items()}
        for values in groups.values():
            if values["best_step"] < 0:
                values["best_loss"] = None  # JSON knows no infinity
        state = {
            "evaluated": self.evaluated,
            "groups": groups,
            "fingerprints": self.fingerprints,
            "metrics_bytes": metrics_bytes,
            "skipped": self.skipped,
        }
        return Checkpoint(self.step, {**tensors, "best": self.best_KPD}, state)

    def judge(
        self,
        groups: Sequence[Group],
        scores: dict[str, Score],
        prompts_KPD: torch.Tensor,
        settings: PretrainSettings,
    ) -> list[str]:
        """Note an evaluation: keep the better prompts, stop the groups that no longer improve.

        A prompt is kept for a lower held-out loss (equal ones: the earlier step stays), or, where the settings ask
        for a step, at that step.

        Returns:
            Names of groups that stop here.
        """
        stopped = []
        for group in groups:
            state, score = self.groups[group.name], scores[group.name]
            lower = score.loss < state.best_loss
            if lower if settings.export_step is None else self.step == settings.export_step:
                state.best_step, state.best_loss, state.best_accuracy = self.step, score.loss, score.accuracy
                self.best_KPD[group.index] = prompts_KPD.detach()[group.index]
            state.waited = 0 if lower else state.waited + 1
            if settings.patience and state.waited >= settings.patience:
                state.active = False
                stopped.append(group.name)
        self.evaluated = self.step
        return stopped
