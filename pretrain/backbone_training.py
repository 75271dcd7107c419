"""The job behind `ppt backbone train`: a T5-shaped backbone from scratch, or trained further from given weights."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from corpora.common.errors import MachineError, Stopped, UserError
from corpora.common.files import (
    PARTIAL,
    hash_file,
    hash_json,
    library_versions,
    machine_errors,
    read_json,
    write_manifest,
    write_text_atomic,
)
from corpora.common.progress import Progress, say
from corpora.common.rng import generator
from corpora.common.settings import save_settings
from corpora.tokenizer import Tokenizer
from pretrain.backbone_files import (
    checkpoint_folders,
    load_checkpoint,
    load_model,
    new_model,
    save_checkpoint,
    save_model,
)
from pretrain.backbone_settings import BackboneTrainSettings
from pretrain.optimizers import BackboneOptimizer, schedule
from pretrain.packed_t5 import decode, encode, head
from pretrain.training_data import (
    OBJECTIVES,
    ClozeSource,
    Mixture,
    MixtureState,
    Text,
    TextSource,
    TrainBatch,
    files_fingerprint,
    make_batch,
    open_store,
    read_cloze,
    read_text,
    split_documents,
    text_sources,
)

# Running sums behind a metrics row: loss and count of each objective, then of the encoder's guesses, then right answers and answers.
SUMS = 2 * len(OBJECTIVES) + 4
# Settings that may change between a run and its resumption.
FREE = {"out", "log_every", "save_every", "eval_every", "device", "processes", "save_dtype"}


def losses(
    model: Any, batch: TrainBatch, weights: Tensor, encoder_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sums of one batch.

    Args:
        model: a T5ForConditionalGeneration.
        batch: tokens end to end.
        weights: [objectives] weight of a target token of each.
        encoder_loss: weight of the encoder's guesses; 0 leaves them out.

    Returns:
        (weighted sum over target tokens, sum over the encoder's guesses, [SUMS] float64 sums for the metrics).
    """
    encoded = encode(model, batch.input_ids_N, batch.layout)
    decoded = decode(model, encoded, batch.decoder_ids_M, batch.layout)
    logits = head(model, decoded).float()
    loss_M = F.cross_entropy(logits, batch.target_ids_M, reduction="none")
    main = (loss_M * weights[batch.objective_M]).sum()
    guesses = main.new_zeros(())
    if encoder_loss > 0 and len(batch.sentinels_S):
        guess_logits = head(model, encoded[batch.sentinels_S]).float()
        guesses = F.cross_entropy(guess_logits, batch.sentinel_targets_S, reduction="sum")
    with torch.no_grad():
        sums = torch.zeros(SUMS, dtype=torch.float64, device=loss_M.device)
        sums[0 : 2 * len(OBJECTIVES) : 2].index_add_(0, batch.objective_M, loss_M.double())
        sums[1 : 2 * len(OBJECTIVES) : 2].index_add_(0, batch.objective_M, torch.ones_like(loss_M).double())
        if encoder_loss > 0:
            sums[-4], sums[-3] = guesses.double(), len(batch.sentinels_S)
        right = logits[batch.answers_A].argmax(-1) == batch.target_ids_M[batch.answers_A]
        sums[-2], sums[-1] = right.sum().double(), len(batch.answers_A)
    return main, guesses, sums


def describe(sums: list[float]) -> dict[str, float]:
    """Means of the metrics that were seen: `span`, `prefix`, `cloze`, `encoder` losses, `cloze_accuracy`."""
    found = {}
    for i, name in enumerate((*OBJECTIVES, "encoder", "cloze_accuracy")):
        if sums[2 * i + 1]:
            found[name] = sums[2 * i] / sums[2 * i + 1]
    return found


class Workers:
    """The processes of a data-parallel run; alone, everything is a no-op.

    Plain data parallel: every process holds all weights and the whole optimiser state and gradients are summed through
    DeepSpeed's communication layer. Muon needs whole gradient matrices, which ZeRO's flat partitions do not give.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.comm: Any = None
        if self.size > 1:
            import deepspeed

            deepspeed.init_distributed(
                dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False
            )
            self.comm = deepspeed.comm

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.comm is not None:
            self.comm.all_reduce(tensor)
        return tensor

    def sum_gradients(self, params: list[torch.nn.Parameter]) -> None:
        """Sum all gradients over processes, in one message."""
        if self.comm is None:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        flat = self.sum_(torch.cat([grad.reshape(-1) for grad in grads]))
        for param, piece in zip(params, flat.split([p.numel() for p in params]), strict=True):
            param.grad = piece.view_as(param)

    def wait(self) -> None:
        """Until every process is here."""
        if self.comm is not None:
            self.comm.barrier()


def pick_device(name: str) -> torch.device:
    """`auto` is the process's GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f'device is "{name}", but this machine has no CUDA device; set device=cpu')
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    return torch.device(name)


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


class Data:
    """Everything a run reads: training sources, held-out batches, and a fingerprint of all of it."""

    def __init__(self, settings: BackboneTrainSettings, tokenizer: Tokenizer, device: torch.device) -> None:
        self.settings, self.tokenizer, self.device = settings, tokenizer, device
        self.sources: dict[str, TextSource | ClozeSource] = {}
        self.held_out: dict[str, TextSource] = {}
        text: Text | None = None
        shares = settings.mixture.model_dump()
        self.shares = {name: share for name, share in shares.items() if share > 0}
        if settings.mixture.span + settings.mixture.prefix > 0:
            text = (
                open_store(settings.store, tokenizer)
                if settings.store
                else read_text(settings.text, tokenizer)
            )
            train, held = split_documents(len(text.doc_offsets) - 1)
            self.sources.update(self._objectives(text, train))
            self.held_out.update(self._objectives(text, held))
        if "cloze" in self.shares:
            self.sources["cloze"] = read_cloze(
                settings.cloze, tokenizer, settings.max_tokens, settings.shuffle_cloze
            )
        self.eval_cloze = {
            Path(path).stem: read_cloze([path], tokenizer, settings.max_tokens, False)
            for path in settings.eval_cloze
        }
        self.fingerprint = {
            "text": text.fingerprint if text else None,
            "cloze": files_fingerprint(settings.cloze if "cloze" in self.shares else []),
        }

    def _objectives(self, text: Text, docs: NDArray[np.int64]) -> dict[str, TextSource]:
        options = self.settings
        found = text_sources(
            text, docs, self.tokenizer, options.max_tokens, options.noise_density, options.mean_span
        )
        return {name: source for name, source in found.items() if name in self.shares}

    def batch(self, examples: list[Any]) -> TrainBatch:
        """Lay examples out for the model."""
        return make_batch(examples, self.tokenizer.size - 100, 0, self.device)

    def evaluations(self) -> Iterator[tuple[str, list[TrainBatch]]]:
        """Held-out sets by name, always the same examples with the same masks."""
        count = self.settings.eval_examples
        every: dict[str, TextSource | ClozeSource] = {**self.held_out, **self.eval_cloze}
        for name, source in every.items():
            text = isinstance(source, TextSource)
            kind = OBJECTIVES.index(name if text else "cloze")
            chosen = range(len(source))
            if text:
                rng = generator(self.settings.seed, "held-out", name)
                chosen = rng.permutation(len(source))[:count].tolist()
            drawn = [
                (kind, *source.example(i, generator(self.settings.seed, "held-out", name, i))) for i in chosen
            ]
            yield name, [self.batch(group) for group in _groups(drawn, self.settings.batch_tokens)]


def _groups(drawn: list[Any], tokens: int) -> Iterator[list[Any]]:
    drawn = sorted(drawn, key=lambda example: len(example[1]))
    while drawn:
        held, count = 0, 0
        while count < len(drawn) and (count == 0 or held + len(drawn[count][1]) <= 4 * tokens):
            held += len(drawn[count][1])
            count += 1
        yield drawn[:count]
        drawn = drawn[count:]


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
    out, device = Path(settings.out), pick_device(settings.device)
    workers = Workers(device)
    tokenizer = Tokenizer.load(settings.tokenizer or str(settings.init))
    model = (
        load_model(settings.init)
        if settings.init
        else new_model(settings.shape, tokenizer.size, settings.seed)
    )
    if model.config.vocab_size < tokenizer.size:
        raise UserError(
            f"{settings.init} has {model.config.vocab_size} embeddings, the tokenizer {tokenizer.size} ids; "
            "use the tokenizer that belongs to these weights"
        )
    model.to(device).eval()  # eval: no dropout
    data = Data(settings, tokenizer, device) if settings.steps else None
    made_of = {
        "settings": settings.model_dump(exclude=FREE),
        "data": data.fingerprint if data else None,
        "tokenizer": tokenizer.fingerprint,
        "init": _weights_hash(settings.init),
    }
    run_hash = hash_json(made_of)
    if _finished(out, run_hash):
        say(f"{out} is finished; nothing to do")
        return out
    if workers.rank == 0:
        with machine_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        save_settings(out / "config.yaml", settings)
    final = _loop(settings, model, data, workers, out, run_hash) if data else {}
    if workers.rank == 0:
        _write(settings, model, tokenizer, out, {**made_of, "run": run_hash, "final": final})
    workers.wait()
    return out


def _weights_hash(init: str | None) -> str | None:
    """Identity of the starting weights; None where they are random or come from a hub."""
    file = Path(init, "model.safetensors") if init else None
    return hash_file(file) if file and file.exists() else None


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
    with machine_errors(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tokenizer.save(partial)
        save_model(model, partial, settings.save_dtype)
        for file in sorted(partial.iterdir()):
            os.replace(file, out / file.name)
        partial.rmdir()
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
    settings: BackboneTrainSettings, model: Any, data: Data, workers: Workers, out: Path, run_hash: str
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
    found = checkpoint_folders(out)
    if found:
        tensors, state, kept = load_checkpoint(found[-1], model, run_hash)
        optimizer.load_state(tensors)
        sums.copy_(torch.tensor(kept, dtype=torch.float64))
        say(f"going on from step {state.step} ({found[-1]})")
    weights = torch.tensor([getattr(settings.loss_weights, name) for name in OBJECTIVES], device=data.device)
    steps = Mixture(data.sources, data.shares, settings.batch_tokens, settings.seed).iterate(state)
    metrics = Metrics(out, state.step, workers.rank == 0)
    evaluation: dict[str, Any] = {}
    with stop_signal() as asked, Progress("backbone", settings.steps, "steps") as progress, metrics:
        progress.start_at(state.step)
        while state.step < settings.steps:
            examples, state = next(steps)
            mine = examples[workers.rank :: workers.size]
            sums += _step(settings, model, data, optimizer, workers, mine, weights, state.step - 1, asked)
            progress.advance()
            last = state.step == settings.steps
            if state.step % settings.log_every == 0 or last:
                row = describe(workers.sum_(sums.clone()).tolist())
                sums.zero_()
                metrics.write(state.step, "train", row)
                progress.note("  ".join(f"{name} {value:.3f}" for name, value in row.items()))
                if not all(math.isfinite(value) for value in row.values()):
                    raise MachineError(_not_finite(state.step, settings, out))
            if state.step % settings.eval_every == 0 or last:
                evaluation = evaluate(settings, model, data, weights)
                metrics.write(state.step, "held-out", evaluation)
            if (state.step % settings.save_every == 0 or asked[0]) and not last:
                kept = workers.sum_(sums.clone()).tolist()
                if workers.rank == 0:
                    save_checkpoint(out, model, optimizer.state(), state, kept, run_hash)
                if workers.rank > 0:
                    sums.zero_()  # the first process holds the sum of all from here on, as after a resume
                else:
                    sums.copy_(torch.tensor(kept, dtype=torch.float64))
                workers.wait()
                if asked[0]:
                    raise Stopped(f"stopped at step {state.step}; the same command goes on from there")
    return evaluation


def _step(
    settings: BackboneTrainSettings,
    model: Any,
    data: Data,
    optimizer: BackboneOptimizer,
    workers: Workers,
    examples: list[Any],
    weights: Tensor,
    step: int,
    asked: list[bool],
) -> Tensor:
    """One update from this process's examples; returns their metric sums."""
    batch = data.batch(examples) if examples else None
    counts = torch.zeros(3, device=data.device)
    if batch is not None:
        counts[0] = weights[batch.objective_M].sum()
        counts[1] = len(batch.sentinels_S)
    counts[2] = float(asked[0])
    workers.sum_(counts)  # loss is a mean over the target tokens of all processes
    if workers.size > 1:
        asked[0] = bool(counts[2] > 0)
    sums = torch.zeros(SUMS, dtype=torch.float64, device=data.device)
    if batch is not None:
        with torch.autocast(data.device.type, dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            main, guesses, sums = losses(model, batch, weights, settings.encoder_loss)
        loss = main / counts[0].clamp(min=1e-9) + settings.encoder_loss * guesses / counts[1].clamp(min=1)
        loss.backward()
    workers.sum_gradients(optimizer.params)
    if settings.clip > 0:
        with_grad = [p for p in optimizer.params if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(with_grad, settings.clip, foreach=True)
    factor = schedule(step, settings.steps, settings.warmup, settings.schedule, settings.final_share)
    optimizer.step(factor)
    optimizer.zero_grad()
    return sums


@torch.no_grad()
def evaluate(settings: BackboneTrainSettings, model: Any, data: Data, weights: Tensor) -> dict[str, float]:
    """Held-out loss of each text objective; loss and accuracy of each cloze file (arg max over the vocabulary)."""
    found: dict[str, float] = {}
    for name, batches in data.evaluations():
        total = torch.zeros(SUMS, dtype=torch.float64)
        for batch in batches:
            with torch.autocast(data.device.type, dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16"):
                total += losses(model, batch, weights, 0.0)[2].cpu()
        for key, value in describe(total.tolist()).items():
            found[name if key == name else f"{name}/{key.removeprefix('cloze_')}"] = value
    return found


def _not_finite(step: int, settings: BackboneTrainSettings, out: Path) -> str:
    found = checkpoint_folders(out)
    good = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
    return (
        f"the loss is not finite at step {step}; {good}; lower learning_rate (now {settings.learning_rate})"
    )


class Metrics:
    """`metrics.jsonl` and TensorBoard events; rows after the step resumed from are dropped."""

    def __init__(self, out: Path, step: int, active: bool) -> None:
        self.path, self.step, self.active = out / "metrics.jsonl", step, active
        self.folder = out / "tensorboard"

    def __enter__(self) -> Metrics:
        if not self.active:
            return self
        from torch.utils.tensorboard import SummaryWriter

        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        write_text_atomic(self.path, "".join(line + "\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(self.folder), purge_step=self.step + 1)
        return self

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One row."""
        if not self.active or not values:
            return
        rounded = {name: float(np.round(value, 6)) for name, value in values.items()}
        with machine_errors(self.path):
            self.file.write(json.dumps({"step": step, "split": split, **rounded}) + "\n")
            self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)
        if split == "held-out":
            say(f"step {step} held-out: " + "  ".join(f"{n} {v:.3f}" for n, v in rounded.items()))

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.file.close()
            self.board.close()
