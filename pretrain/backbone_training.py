"""The job behind `ppt backbone train`: a T5-shaped backbone from scratch, or trained further from given weights."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corpora.common.errors import MachineError, Stopped, UserError
from corpora.common.files import (
    PARTIAL,
    hash_json,
    library_versions,
    machine_errors,
    read_json,
    write_manifest,
)
from corpora.common.progress import Progress, say
from corpora.common.settings import save_settings
from corpora.tokenizer import Tokenizer
from pretrain.backbone import load_backbone
from pretrain.backbone_data import Data
from pretrain.backbone_files import (
    load_checkpoint,
    new_model,
    save_checkpoint,
    save_model,
)
from pretrain.backbone_metrics import SUMS, Metrics, describe, evaluate, losses
from pretrain.backbone_settings import BackboneTrainSettings
from pretrain.checkpoint import last_checkpoint, last_good, run_lock
from pretrain.distributed import Processes, start_processes
from pretrain.optimizers import BackboneOptimizer, schedule
from pretrain.training_data import OBJECTIVES, Mixture, MixtureState

# Settings that may change between a run and its resumption.
FREE = {"out", "log_every", "save_every", "eval_every", "device", "processes", "save_dtype"}
NAMED, SHOWN = 5, 12  # examples that a message about a loss names, and tokens that it shows of each


@contextlib.contextmanager
def stop_signal() -> Iterator[list[bool]]:
    """A flag that SIGTERM or Ctrl-C sets; the loop then saves and ends at the next step."""
    asked: list[bool] = [False]

    def ask(*_: object) -> None:
        asked[0] = True

    old: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # signals belong to the main thread; elsewhere there is no flag
        old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def join_processes(device: str) -> Processes:
    """This process among those that the DeepSpeed launcher started, or alone without DeepSpeed (which takes seconds to import).

    Several processes are plain data parallel: each holds all weights and the whole optimiser state, and gradients are summed
    through DeepSpeed's communication. Muon needs whole gradient matrices, which ZeRO's flat partitions do not give.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return start_processes(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f'device is "{device}", but this machine has no CUDA device; set device=cpu')
    return Processes(0, 1, torch.device(device))


def sum_gradients(processes: Processes, params: list[torch.nn.Parameter], loss: Tensor) -> Tensor:
    """Sum all gradients over processes, and the loss beside them, in one message.

    Args:
        processes: of the job.
        params: their gradients are replaced by the sums.
        loss: [] this process's share.

    Returns:
        [] the loss of all processes.
    """
    if processes.world == 1:
        return loss
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = processes.sum(torch.cat([*(grad.reshape(-1) for grad in grads), loss.reshape(1)]))
    *pieces, total = flat.split([*(p.numel() for p in params), 1])
    for param, piece in zip(params, pieces, strict=True):
        param.grad = piece.view_as(param)
    return total[0]


def train_backbone(settings: BackboneTrainSettings) -> Path:
    """Train a backbone, or go on with a run that was stopped.

    Args:
        settings: the run; with `steps: 0` the starting weights are written as they are.

    Returns:
        The folder: loads with `T5ForConditionalGeneration.from_pretrained` and `Tokenizer.load`.

    Raises:
        UserError: settings, files or weights do not fit together.
        Stopped: SIGTERM came; a checkpoint is written and the same command goes on.
    """
    processes = join_processes(settings.device)
    if not processes.first:
        return _train(settings, processes)
    with run_lock(Path(settings.out)):
        return _train(settings, processes)


def _train(settings: BackboneTrainSettings, processes: Processes) -> Path:
    out = Path(settings.out)
    tokenizer = Tokenizer.load(settings.tokenizer or str(settings.init))
    init = load_backbone(settings.init) if settings.init else None
    model = (
        init.model.requires_grad_(True) if init else new_model(settings.shape, tokenizer.size, settings.seed)
    )
    if model.config.vocab_size < tokenizer.size:
        raise UserError(
            f"{settings.init} has {model.config.vocab_size} embeddings, the tokenizer {tokenizer.size} ids; "
            "use the tokenizer that belongs to these weights"
        )
    model.to(processes.device).eval()  # eval: no dropout
    data = Data(settings, tokenizer, processes.device) if settings.steps else None
    made_of = {
        "settings": settings.model_dump(exclude=FREE),
        "data": data.fingerprint if data else None,
        "tokenizer": tokenizer.fingerprint,
        "init": init.fingerprint if init else None,
    }
    run_hash = hash_json(made_of)
    if _finished(out, run_hash):
        say(f"{out} is finished; nothing to do")
        return out
    if processes.first:
        save_settings(out / "config.yaml", settings)
    final = _loop(settings, model, data, processes, out, run_hash) if data else {}
    if processes.first:
        _write(settings, model, tokenizer, out, {**made_of, "run": run_hash, "final": final})
    processes.wait()
    return out


def _finished(out: Path, run_hash: str) -> bool:
    if not (out / "manifest.json").exists():
        return False
    found = read_json(out / "manifest.json")
    if found.get("run") != run_hash:
        raise UserError(
            f"{out} holds a {found.get('kind')} of other settings or data; choose another out folder"
        )
    return True


def _write(
    settings: BackboneTrainSettings, model: Any, tokenizer: Tokenizer, out: Path, fields: dict[str, Any]
) -> None:
    """Put the finished backbone into the run's folder, the manifest last: with it the run counts as finished."""
    partial = out / f"final{PARTIAL}"
    try:
        with machine_errors(out):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            tokenizer.save(partial)
            save_model(model, partial, settings.save_dtype)
            for file in sorted(partial.iterdir()):
                os.replace(file, out / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    fields = {
        **fields,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "parameters": sum(p.numel() for p in model.parameters()),
        "save_dtype": settings.save_dtype,
        "versions": library_versions("torch", "transformers"),
    }
    fields.pop("tokenizer")
    write_manifest(out, "backbone", fields)
    say(f"{out}: {fields['parameters']:,} weights written")


def _loop(
    settings: BackboneTrainSettings, model: Any, data: Data, processes: Processes, out: Path, run_hash: str
) -> dict[str, Any]:
    """Evaluate, save, step, log; returns the last evaluation."""
    optimizer = BackboneOptimizer(
        model,
        settings.optimizer,
        settings.learning_rate,
        settings.embedding_learning_rate,
        settings.position_bias_learning_rate,
        settings.weight_decay,
    )
    state, sums = MixtureState(), torch.zeros(SUMS, dtype=torch.float64, device=data.device)
    found = last_checkpoint(out)
    if found:
        tensors, state, kept = load_checkpoint(found, model, run_hash)
        optimizer.load_state(tensors)
        sums.copy_(torch.tensor(kept, dtype=torch.float64))
        say(f"going on from step {state.step} ({found})")
    weights = torch.tensor([getattr(settings.loss_weights, name) for name in OBJECTIVES], device=data.device)
    steps = Mixture(data.sources, data.shares, settings.batch_tokens, settings.seed).iterate(state)
    metrics = Metrics(out, state.step, processes.first)
    evaluation: dict[str, Any] = {}
    with stop_signal() as asked, Progress("backbone", settings.steps, "steps") as progress, metrics:
        progress.skip(state.step)
        while state.step < settings.steps:
            examples, state = next(steps)
            mine = examples[processes.rank :: processes.world]
            sums += _step(settings, model, data, optimizer, processes, mine, weights, state.step - 1, asked)
            progress.advance()
            last = state.step == settings.steps
            save = (state.step % settings.save_every == 0 or asked[0]) and not last
            if save or last:
                _check_weights(model, state.step, settings)
            if state.step % settings.log_every == 0 or last:
                row = describe(processes.sum(sums.clone()).tolist())
                sums.zero_()
                metrics.write(state.step, "train", row)
                progress.note("  ".join(f"{name} {value:.3f}" for name, value in row.items()))
            if state.step % settings.eval_every == 0 or last:
                evaluation = evaluate(model, data, weights)
                metrics.write(state.step, "held-out", evaluation)
            if save:
                kept = processes.sum(sums.clone()).tolist()
                metrics.sync()
                if processes.first:
                    save_checkpoint(out, model, optimizer.state(), state, kept, run_hash)
                if not processes.first:
                    sums.zero_()  # the first process holds the sum of all from here on, as after a resume
                else:
                    sums.copy_(torch.tensor(kept, dtype=torch.float64))
                processes.wait()
                if asked[0]:
                    raise Stopped(f"stopped at step {state.step}; the same command goes on from there")
        metrics.sync()
    return evaluation


def _step(
    settings: BackboneTrainSettings,
    model: Any,
    data: Data,
    optimizer: BackboneOptimizer,
    processes: Processes,
    examples: list[Any],
    weights: Tensor,
    step: int,
    asked: list[bool],
) -> Tensor:
    """One update from this process's examples; returns their metric sums.

    Raises:
        MachineError: the loss or a gradient is not finite, on every process alike; nothing was updated.
    """
    batch = data.batch(examples) if examples else None
    counts = torch.zeros(3, device=data.device)
    if batch is not None:
        counts[0] = weights[batch.objective_M].sum()
        counts[1] = len(batch.sentinels_S)
    counts[2] = float(asked[0])
    processes.sum(counts)  # loss is a mean over the target tokens of all processes
    if processes.world > 1:
        asked[0] = bool(counts[2] > 0)
    sums = torch.zeros(SUMS, dtype=torch.float64, device=data.device)
    loss = torch.zeros((), device=data.device)
    if batch is not None:
        with torch.autocast(data.device.type, dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            main, guesses, sums = losses(model, batch, weights, settings.encoder_loss)
        loss = main / counts[0].clamp(min=1e-9) + settings.encoder_loss * guesses / counts[1].clamp(min=1)
        loss.backward()
    loss = sum_gradients(processes, optimizer.params, loss.detach())
    with_grad = [p for p in optimizer.params if p.grad is not None]
    largest = settings.clip if settings.clip > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(with_grad, largest, foreach=True)
    if not bool(torch.isfinite(loss + norm)):
        raise MachineError(_not_finite(step + 1, settings, model, data, processes, examples, weights))
    factor = schedule(step, settings.steps, settings.warmup, settings.schedule, settings.final_share)
    optimizer.step(factor)
    optimizer.zero_grad()
    return sums


def _check_weights(model: Any, step: int, settings: BackboneTrainSettings) -> None:
    """Refuse to write weights that an update from finite gradients has blown up."""
    bad = [name for name, param in model.named_parameters() if not bool(torch.isfinite(param).all())]
    if bad:
        raise MachineError(f"step {step}: {bad[0]} holds weights that are not finite; {_remedy(settings)}")


def _not_finite(
    step: int,
    settings: BackboneTrainSettings,
    model: Any,
    data: Data,
    processes: Processes,
    examples: list[Any],
    weights: Tensor,
) -> str:
    """Say which step and which examples have a loss that is no number; every process must call it."""
    mine = []
    for place, example in enumerate(examples):
        with torch.no_grad():
            main, guesses, _ = losses(model, data.batch([example]), weights, settings.encoder_loss)
        if not bool(torch.isfinite(main + guesses)):
            number = processes.rank + place * processes.world
            start = data.tokenizer.decode(example[1][:SHOWN].tolist())
            mine.append((number, f'{OBJECTIVES[example[0]]} example {number} "{start} ..."'))
    bad = sorted(pair for some in processes.gather(mine) for pair in some)
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        what = f"the loss is not finite ({', '.join(text for _, text in bad[:NAMED])}{more})"
    else:
        what = "the loss of each example is finite but a gradient is not"
    return f"step {step}: {what}; {_remedy(settings)}"


def _remedy(settings: BackboneTrainSettings) -> str:
    return f"{last_good(Path(settings.out))}; lower learning_rate (now {settings.learning_rate})"
