"""Starts the `deepspeed` launcher as a child, passes signals on and its exit code back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from corpora.common.errors import MachineError, Stopped, UserError, nearest
from corpora.common.progress import say
from corpora.common.settings import Settings, load_settings
from pretrain.devices import has_gpu
from pretrain.settings import PretrainSettings, check_inputs, check_same_run, finished
from pretrain.watchdog import AGAIN, ask_to_stop, forget_stop, nobody_spoke, read_lines

if TYPE_CHECKING:
    from finetune.settings import FewshotSettings

LAUNCH = Path(__file__).parent
PRESETS = LAUNCH / "presets"
TABLES = PRESETS / "fewshot"  # the paper's tables as settings of `ppt fewshot`
INSIDE = "launch:"  # begins a path in a preset that lies in this package, wherever that is installed


def config_path(config: str | Path, presets: Path = PRESETS) -> Path:
    """A settings file by its path or, for those in a folder of presets, by its name.

    Raises:
        UserError: neither exists.
    """
    path = Path(config)
    if path.exists() or path.suffix:
        return path  # reading it reports what is missing
    preset = presets / f"{path}.yaml"
    if path.parent == Path(".") and preset.exists():
        return preset
    names = [found.stem for found in presets.glob("*.yaml")]
    raise UserError(f"{config} is neither a file nor a preset{nearest(str(config), names)}")


def zero_config_path(stage: int) -> Path:
    """The DeepSpeed JSON of a ZeRO stage."""
    return LAUNCH / "zero" / f"zero{stage}.json"


def split_arguments(
    arguments: list[str], kind: type[Settings] = PretrainSettings
) -> tuple[list[str], list[str]]:
    """Part settings from flags of the launcher.

    Args:
        arguments: `key=value` settings and flags such as `--hostfile hosts` or `--num_gpus=2`, in any order.
        kind: whose settings.

    Returns:
        The settings and the flags, each in the order given.

    Raises:
        UserError: a setting is written as a flag.
    """
    for argument in arguments:
        name, _, value = argument.lstrip("-").replace("-", "_").partition("=")
        if argument.startswith("--") and name in kind.model_fields:
            raise UserError(
                f"{argument} is a setting and no flag of the launcher; write {name}={value or '...'}"
            )
    overrides: list[str] = []
    flags: list[str] = []
    for position, argument in enumerate(arguments):
        after_flag = (
            position > 0 and arguments[position - 1].startswith("-") and "=" not in arguments[position - 1]
        )
        if argument.startswith("-") or (after_flag and "=" not in argument):
            flags.append(argument)
        else:
            overrides.append(argument)
    return overrides, flags


def launch_pretraining(config: str | Path, arguments: list[str]) -> int:
    """What `ppt pretrain` does: check the settings, then start `launch/pretrain_prompts.py` under DeepSpeed.

    Args:
        config: a settings file or the name of a preset.
        arguments: `key=value` settings and flags of the launcher.

    Returns:
        The job's exit code: 0, 1, 2, or 75 when it was stopped and can go on.

    Raises:
        UserError: the settings are wrong.
    """
    overrides, flags = split_arguments(arguments)
    path = config_path(config)
    settings = load_settings(PretrainSettings, path, overrides)
    check_inputs(settings)
    check_same_run(settings)
    if finished(settings) is not None:
        return 0
    return start_launcher(
        LAUNCH / "pretrain_prompts.py",
        [str(path), *overrides],
        processes=settings.processes,
        cpu=settings.device == "cpu",
        log=settings.launcher_log,
        flags=flags,
        out=settings.out,
    )


def launch_backbone_training(config: str | Path, overrides: list[str]) -> int:
    """What `ppt backbone train` does: in this process, or under the launcher where there are several.

    Returns:
        The job's exit code.
    """
    from pretrain.backbone_settings import BackboneTrainSettings

    path = config_path(config)
    settings = load_settings(BackboneTrainSettings, path, overrides)
    if settings.processes == 1:
        from pretrain.backbone_training import train_backbone

        train_backbone(settings)
        return 0
    return start_launcher(
        LAUNCH / "train_backbone.py",
        [str(path), *overrides],
        processes=settings.processes,
        cpu=settings.device == "cpu",
        log="critical",
        flags=[],
    )


def fewshot_settings(config: str | Path, overrides: list[str] | None = None) -> FewshotSettings:
    """Settings of a few-shot run.

    Args:
        config: a YAML file, or the name of a preset in `launch/presets/fewshot`.
        overrides: `key=value` settings, which go before the file's.

    Raises:
        UserError: neither exists, or a setting is wrong.
    """
    from finetune.settings import FewshotSettings

    def inside(path: str) -> str:
        return str(LAUNCH / path.removeprefix(INSIDE)) if path.startswith(INSIDE) else path

    path = config_path(config, TABLES)
    try:
        settings = load_settings(FewshotSettings, path, overrides)
    except UserError as error:
        if path.parent == TABLES and str(error).endswith('key "backbone" is missing'):
            raise UserError(
                f"{path.stem} needs a backbone: write backbone=FOLDER_OR_HUB_NAME behind it, and prompts=, lm_backbone= "
                "and data= as its methods ask (docs/tables.md)"
            ) from error
        raise
    changes = {
        "backbone": inside(settings.backbone),
        "lm_backbone": settings.lm_backbone and inside(settings.lm_backbone),
        "tasks": tuple(map(inside, settings.tasks)),
    }
    return settings.model_copy(update=changes)


def launch_fewshot(config: str | Path, arguments: list[str]) -> int:
    """What `ppt fewshot` does: in this process, or under the launcher where there are several.

    Args:
        config: a settings file or the name of a preset.
        arguments: `key=value` settings and flags of the launcher.

    Returns:
        The job's exit code: 0, 1, 2, or 75 when it was stopped and can go on.

    Raises:
        UserError: the settings are wrong; and, in this process, whatever ends the run.
    """
    from finetune.settings import FewshotSettings

    overrides, flags = split_arguments(arguments, FewshotSettings)
    path = config_path(config, TABLES)
    settings = fewshot_settings(path, overrides)
    if not flags and (settings.processes or _devices(settings.device)) == 1:
        from finetune.fewshot import run_fewshot
        from pretrain.distributed import end_processes

        try:
            run_fewshot(settings)
        finally:
            end_processes()
        return 0
    return start_launcher(
        LAUNCH / "tune_fewshot.py",
        [str(path), *overrides],
        processes=settings.processes,
        cpu=settings.device == "cpu",
        log="critical",
        flags=flags,
    )


def _devices(device: str | None) -> int:
    """How many processes the launcher would start by itself: one a GPU, or one where the device is named or is no GPU."""
    if device == "cpu" or ":" in (device or "") or not has_gpu():
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def start_launcher(
    script: Path,
    arguments: list[str],
    *,
    processes: int | None,
    cpu: bool,
    log: str,
    flags: list[str],
    out: Path | None = None,
) -> int:
    """Run a script under the `deepspeed` launcher and wait for it.

    Args:
        script: what every process runs.
        arguments: the script's arguments.
        processes: on this machine; None: one a GPU, or one where there is none.
        cpu: leave GPUs alone.
        log: level of the launcher's own log.
        flags: flags for the launcher; those that choose machines or processes take the place of `processes`.
        out: the run's folder, where a watchdog keeps the processes' lines; None: there is none.

    Returns:
        The exit code of the script's first process that failed, 0 when none did, 1 when it died of a signal, 75
        after SIGTERM or SIGINT when the script could not say so itself (training goes on from its last checkpoint
        either way).

    Raises:
        MachineError: the launcher is not installed beside this Python.
    """
    environment = dict(os.environ)
    no_gpu = cpu or not has_gpu()
    if no_gpu:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    chosen = {flag.partition("=")[0] for flag in flags}
    command = [_deepspeed(), "--log_level", log]
    if not chosen & {
        "--num_gpus",
        "--num_accelerators",
        "--include",
        "--exclude",
        "--hostfile",
        "-H",
        "-i",
        "-e",
    }:
        if processes is None and no_gpu:
            processes = 1
        if processes is not None:
            command += ["--num_gpus", str(processes)]
    if not chosen & {"--master_port", "--hostfile", "-H"}:
        command += ["--master_port", str(_free_port())]
    if no_gpu and processes is not None and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    command += [*flags, str(script), *arguments]
    # In a session of its own: Ctrl-C then reaches this process alone, which passes it on in the way below.
    elsewhere = bool(chosen & {"--hostfile", "-H"}) and "--no_ssh" not in chosen
    before = read_lines(out) if out else {}
    if out and elsewhere:
        forget_stop(out)
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    with _pass_signals_on(child, script, out if elsewhere else None) as stopped:
        code = child.wait()
    if out and elsewhere:
        forget_stop(out)
    if code in (0, 1, 2, Stopped.exit_code):
        return code
    if stopped():
        return Stopped.exit_code
    if out is None or nobody_spoke(out, before):
        say(f"ppt: the job was ended by {_signal(code)}; {AGAIN}")
    return 1


def _signal(code: int) -> str:
    """What ended a process, from the exit code that the launcher made of it: 256 less the signal's number."""
    try:
        name = signal.Signals(-code if code < 0 else 256 - code).name
    except ValueError:
        return f"exit code {code}"
    return f"signal {name}" + (" (perhaps out of memory)" if name == "SIGKILL" else "")


def _deepspeed() -> str:
    path = Path(sys.executable).parent / "deepspeed"
    if not path.exists():
        raise MachineError(
            f"the deepspeed launcher is not beside {sys.executable}; install the package deepspeed"
        )
    return str(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _pass_signals_on(
    child: subprocess.Popen[bytes], script: Path, shared: Path | None
) -> Iterator[Callable[[], bool]]:
    """Send SIGTERM, SIGINT and SIGHUP to the training processes themselves, as SIGTERM.

    The launcher would die of the first and leave them running, and would answer 1 where they say 75.

    Args:
        child: the launcher.
        script: what the training processes run.
        shared: the run's folder, where the processes run on other machines: they are asked through it.

    Yields:
        A function that says whether a signal came.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        workers = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(child.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    command = process.cmdline()
                    if str(script) in command and "deepspeed.launcher.launch" not in command:
                        workers.append(process)
        for process in workers:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
        if shared is not None:
            ask_to_stop(shared)
        elif not workers:  # nothing is training yet
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)

    before = {
        number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
