"""The pre-training job: a frozen backbone in a DeepSpeed engine, the prompts of all groups learning at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from corpora.common.errors import MachineError, Stopped, UserError
from corpora.common.files import write_json
from corpora.common.progress import Progress, say
from corpora.common.rng import generator
from corpora.common.settings import save_settings
from corpora.tokenizer import Tokenizer
from pretrain.artifact import PromptInfo, save_prompt
from pretrain.backbone import Backbone, load_backbone
from pretrain.checkpoint import (
    checkpoint_path,
    drop_spoilt,
    job_lock,
    last_good,
    load_checkpoint,
    save_checkpoint,
    sound_step,
)
from pretrain.distributed import Processes, start_processes
from pretrain.evaluation import Score, evaluate
from pretrain.forward import ForwardOptions, deepspeed_module
from pretrain.groups import Batcher, Group, open_groups
from pretrain.metrics import Metrics
from pretrain.offload import swap_removed
from pretrain.pace import Pace
from pretrain.plan_run import filled_in
from pretrain.prompts import PromptBank, check_prompts_train, init_prompt
from pretrain.run_state import RunState
from pretrain.settings import PretrainSettings, check_inputs, check_same_run, finished, learning_rate_scale
from pretrain.step import train_step
from pretrain.watchdog import Watchdog

REMEDY = "try a lower learning_rate, or dtype float32"
# Updates left out in a row before the run ends all the same: a bad example spoils one, prompts gone bad spoil all.
MOST_SKIPPED = 10
CHECK_AFTER = 3  # updates after which prompts must have moved (peft 2642: "my soft prompt does not train")


def pretrain(
    settings: PretrainSettings,
    deepspeed_config: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    watchdog: Watchdog | None = None,
    began: float | None = None,
) -> dict[str, Any]:
    """Pre-train the prompt groups of a run, from its start or from its last checkpoint.

    Every process of the job calls this. The same settings give the same bytes on the same number of processes,
    however often the job was killed; another number changes rounding only.

    Args:
        settings: the run.
        deepspeed_config: as in `launch/zero`; None: ZeRO 0.
        should_stop: asked after each update and within evaluations; when it says yes on any process, all write a
            checkpoint and stop.
        watchdog: hears what this process does; None where nobody watches.
        began: when this start began, by `time.monotonic()`, for the time limit; None: now.

    Returns:
        For each format the step, held-out loss and accuracy of the prompt that was saved.

    Raises:
        UserError: settings, corpora or backbone do not fit each other, or `out` holds another run.
        MachineError: the disk is full, another process died, or a loss is not finite.
        Stopped: asked to; the same command goes on.
    """
    began = time.monotonic() if began is None else began
    watchdog = watchdog or Watchdog(settings.out, settings.process_timeout)
    out = settings.out
    check_inputs(settings)
    check_same_run(settings)
    if (done := finished(settings)) is not None:
        return done
    settings = filled_in(settings)
    processes = start_processes(
        settings.device, settings.tensor_parallel or 1, timeout=3 * settings.process_timeout
    )
    pace = Pace(settings, processes, should_stop, watchdog, began)

    with contextlib.ExitStack() as stack:
        stack.enter_context(job_lock(out, processes))  # before anything is loaded, written or removed
        local_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        stack.enter_context(swap_removed(settings.offload or "none", settings.nvme_path, out, local_first))
        watchdog.at(0, "loading")
        job = _prepare(settings, deepspeed_config, processes)
        bank, state = job.bank, job.state
        metrics = stack.enter_context(Metrics(out, job.metrics_bytes, state.step, processes.first))
        bar = stack.enter_context(Progress("pre-training", settings.steps, "steps"))
        bar.skip(state.step)
        while True:
            step = state.step
            active = [group for group in job.groups if state.groups[group.name].active]
            last = step == settings.steps or not active

            # Evaluate.
            due = step % settings.eval_every == 0 or step == settings.export_step or last
            if due and state.evaluated < step and active:
                pace.at(step, "evaluating")
                scores = evaluate(
                    job.net, bank.prompts_KPD, active, settings, job.batcher, processes,
                    lambda: pace.stops(state.step),
                )  # fmt: skip
                if scores is None:
                    _stop(job, metrics, processes, pace)
                pace.gained()
                _check_scores(scores, step, settings)
                for name in state.judge(active, scores, bank.prompts_KPD, settings):
                    say(
                        f"{name} stops at step {step}: no lower held-out loss in {settings.patience} evaluations"
                    )
                metrics.validation(step, scores)
                bar.note(_note(scores))
                continue  # a group may have stopped

            # Save.
            if last or (step % settings.save_every == 0 and step > 0):
                _save(job, metrics, processes, pace, needed=last)
            if last:
                break

            # Step.
            update = train_step(job.net, bank, job.batcher, active, step, settings, processes, pace)
            if update.spoilt:
                _leave_out(update.spoilt, state, metrics, settings)
            else:
                state.skipped = 0
            state.step += 1
            pace.gained()
            if state.step == CHECK_AFTER:
                check_prompts_train(job.start_KPD, bank, settings.formats)

            # Log.
            for group in active:
                if not update.spoilt:
                    state.groups[group.name].add(update.sums_KS[group.index])
            if state.step % settings.log_every == 0 or state.step == settings.steps:
                scale = learning_rate_scale(settings, step)
                metrics.training(state, active, settings, settings.learning_rate * scale)
            bar.advance()
            if update.stop and state.step < settings.steps:
                _stop(job, metrics, processes, pace)
        return _finish(job, settings, processes)


@dataclass
class _Job:
    """What a run is made of."""

    settings: PretrainSettings
    backbone: Backbone
    tokenizer: Tokenizer
    groups: list[Group]
    bank: PromptBank
    net: torch.nn.Module
    batcher: Batcher
    state: RunState
    metrics_bytes: int
    start_KPD: torch.Tensor


def _prepare(
    settings: PretrainSettings, deepspeed_config: dict[str, Any] | None, processes: Processes
) -> _Job:
    """Load the backbone, the corpora and the last checkpoint.

    The prompts are made from the loaded backbone, and everything is in place before DeepSpeed's engine is built
    (the released code did both too late: identical rows, and an optimiser with stale weights).
    """
    backbone = load_backbone(
        settings.backbone,
        dtype=settings.dtype,
        device=processes.device,
        weights=settings.weights,
        processes=processes,
        deepspeed_config=deepspeed_config,
    )
    tokenizer = backbone.tokenizer()
    backbone.check_tokenizer(tokenizer)
    groups = open_groups(settings, tokenizer)
    prompts = [
        init_prompt(
            settings.init, backbone, tokenizer, settings.prompt_len,
            generator(settings.seed, "pretrain prompt", group.name), words=group.verbalizer.words,
        )
        for group in groups
    ]  # fmt: skip
    bank = PromptBank(
        torch.stack([torch.as_tensor(prompt) for prompt in prompts]).to(processes.device),
        learning_rates_K=[settings.learning_rate] * len(groups),
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        eps=settings.eps,
        embedding_rms=backbone.embedding_rms,
    )
    fingerprints = {
        "backbone": backbone.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        **{group.name: group.corpus.manifest_hash for group in groups},
    }
    start_KPD = bank.prompts_KPD.detach().clone()
    steps = processes.gather(sound_step(settings.out))
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes see different checkpoints in {settings.out} (steps {steps}); it must be shared"
        )
    if steps[0] is None:
        state, metrics_bytes = RunState.fresh(groups, bank.prompts_KPD, fingerprints), 0
    else:
        checkpoint = load_checkpoint(settings.out, steps[0])
        state, metrics_bytes = RunState.restore(checkpoint, bank), int(checkpoint.state["metrics_bytes"])
        _check_fingerprints(state.fingerprints, fingerprints, settings)
        say(f"going on from step {state.step} ({checkpoint_path(settings.out, state.step)})")
    options = ForwardOptions.of(settings, processes.device)
    net = deepspeed_module(backbone, deepspeed_config, processes, options)
    _say_what_runs(settings, backbone, groups, deepspeed_config, processes)
    processes.wait()  # all have read the checkpoint; from here the first process writes
    if processes.first:
        drop_spoilt(settings.out, state.step)
        save_settings(settings.out / "config.yaml", settings)
    batcher = Batcher(groups, settings, tokenizer, backbone.start_id, processes.device)
    return _Job(settings, backbone, tokenizer, groups, bank, net, batcher, state, metrics_bytes, start_KPD)


def _save(job: _Job, metrics: Metrics, processes: Processes, pace: Pace, needed: bool) -> str:
    """Write a checkpoint from the first process; the others wait until it is on disk.

    Args:
        job: what to save.
        metrics: put on disk with it.
        processes: of the job; every one of them calls this.
        pace: hears how long it takes.
        needed: whether the run ends here; else a full disk is no reason to end it, and the next save tries again.

    Raises:
        MachineError: it cannot be written and is needed.
    """
    step = job.state.step
    pace.at(step, "saving", waits=not processes.first)
    path = checkpoint_path(job.settings.out, step)
    if processes.first and not path.exists():
        try:
            save_checkpoint(job.settings.out, job.state.checkpoint(job.bank, metrics.sync()))
        except MachineError as error:
            what = f"step {step}: no checkpoint: {error}; {last_good(job.settings.out)}"
            if needed:
                raise MachineError(f"{what}; make room, the same command goes on from there") from error
            say(f"warning: {what}; the run goes on and tries again at its next checkpoint")
    processes.wait()
    pace.saved()
    return str(path)


def _stop(job: _Job, metrics: Metrics, processes: Processes, pace: Pace) -> NoReturn:
    """Save and end, to be gone on with.

    Raises:
        Stopped: the run is saved.
    """
    pace.check_limit()
    path = _save(job, metrics, processes, pace, needed=True)
    raise Stopped(f"stopped after step {job.state.step}; the same command goes on from {path}")


def _leave_out(
    spoilt: dict[str, list[int]], state: RunState, metrics: Metrics, settings: PretrainSettings
) -> None:
    """Count and write down an update that was left out.

    Raises:
        MachineError: the settings say to stop, or too many were left out in a row.
    """
    state.skipped += 1
    where = "; ".join(
        f"{name} examples {', '.join(map(str, rows))}" if rows else f"gradient or logged sum of {name}"
        for name, rows in spoilt.items()
    )
    what = f"step {state.step + 1}: not finite ({where})"
    good = last_good(settings.out)
    if settings.on_nonfinite == "stop":
        raise MachineError(f"{what}; {good}; {REMEDY}, or leave such updates out with on_nonfinite=skip")
    metrics.skipped(state.step + 1, spoilt, state.skipped)
    if state.skipped >= MOST_SKIPPED:
        raise MachineError(f"{what}, as the {MOST_SKIPPED} updates up to it, all left out; {good}; {REMEDY}")
    say(f"warning: {what}; the update is left out")


def _finish(job: _Job, settings: PretrainSettings, processes: Processes) -> dict[str, Any]:
    """Save the prompts to keep and mark the run as finished."""
    summary: dict[str, Any] = {}
    for group in job.groups:
        state = job.state.groups[group.name]
        summary[group.name] = {
            "step": state.best_step, "loss": state.best_loss, "accuracy": state.best_accuracy,
        }  # fmt: skip
        if state.best_step == 0 and settings.export_step is None:
            say(
                f"warning: {group.name} was best before it learnt anything; try another learning_rate or more steps"
            )
        if processes.first:
            info = PromptInfo(
                format=group.name,
                backbone=job.backbone.name,
                backbone_fingerprint=job.backbone.fingerprint,
                tokenizer_fingerprint=job.tokenizer.fingerprint,
                embedding_rms=job.backbone.embedding_rms,
                corpus_manifest=group.corpus.manifest_hash,
                step=state.best_step,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                dev_score=state.best_accuracy,
            )
            save_prompt(settings.out / "prompts" / group.name, job.state.best_KPD[group.index].cpu(), info)
        say(
            f"{group.name}: held-out loss {state.best_loss:.4f}, accuracy {state.best_accuracy:.4f} "
            f"at step {state.best_step} -> {settings.out / 'prompts' / group.name}"
        )
    if processes.first:
        write_json(settings.out / "finished.json", summary)
    processes.wait()
    return summary


def _check_fingerprints(before: dict[str, str], now: dict[str, str], settings: PretrainSettings) -> None:
    for what in now:
        if before.get(what) != now[what]:
            name = {"backbone": f"backbone {settings.backbone}", "tokenizer": "the backbone's tokenizer"}.get(
                what, f"corpus {settings.corpora / what}"
            )
            raise UserError(
                f"{settings.out} was begun with another {name} (fingerprint {str(before.get(what))[:12]}, "
                f"now {now[what][:12]}); bring the first back or choose another out"
            )


def _check_scores(scores: dict[str, Score], step: int, settings: PretrainSettings) -> None:
    for name, score in scores.items():
        if not score.loss < float("inf"):
            raise MachineError(
                f"step {step}: the held-out loss of {name} is {score.loss}; {last_good(settings.out)}; {REMEDY}"
            )


def _note(scores: dict[str, Score]) -> str:
    return "held-out " + ", ".join(
        f"{name} {score.loss:.3f} ({score.accuracy:.0%})" for name, score in scores.items()
    )


def _say_what_runs(
    settings: PretrainSettings,
    backbone: Backbone,
    groups: Sequence[Group],
    config: dict[str, Any] | None,
    processes: Processes,
) -> None:
    stage = int((config or {}).get("zero_optimization", {}).get("stage", 0))
    held = "" if backbone.weights == "full" else f", weights {backbone.weights}"
    say(
        f"{backbone.name}: {len(groups)} prompts of {settings.prompt_len} x {backbone.d_model}, "
        f"{settings.dtype}{held}, ZeRO {stage}, {processes.world} process{'es' if processes.world > 1 else ''} "
        f"on {processes.device.type}"
        + (f", {processes.tensor_parallel} share each layer" if processes.tensor_parallel > 1 else "")
        + (f", backbone offloaded to {settings.offload}" if settings.offload not in (None, "none") else "")
    )
    if stage in (1, 2):
        say(
            f"ZeRO {stage} shards what an optimiser of DeepSpeed trains; the backbone is frozen: the same as ZeRO 0 here"
        )
    for group in groups:
        say(f"{group.name}: {len(group.train_rows)} examples, judged on {len(group.held_rows)}")
