"""The cluster examples on two nodes that are this machine twice: real launchers, real training, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import launch
from corpora.common.settings import load_settings
from pretrain.checkpoint import checkpoint_path, saved_steps
from pretrain.settings import PretrainSettings

CLUSTER = Path(launch.__file__).parent / "cluster"
BIN = Path(sys.executable).parent
STEPS = 60
FORMATS = ("sentence_pair", "unified")
SMALL = [f"formats=[{','.join(FORMATS)}]", "prompt_len=2", f"steps={STEPS}"]
NewJob = Callable[..., Any]

# Slurm: a task a node, as `srun` starts them; the signal goes to all, the worst exit code comes back.
SLURM = {
    "scontrol": 'echo "scontrol $*" >>"$CALLS"\nif [[ $1 == show ]]; then printf "127.0.0.1\\nlocalhost\\n"; fi',
    "srun": """while [[ $1 == -* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks[node]=$!; done
trap 'kill -TERM "${tasks[@]}"' TERM
worst=0
for task in "${tasks[@]}"; do
    wait "$task"; code=$?
    while kill -0 "$task" 2>/dev/null; do wait "$task"; code=$?; done
    ((code > worst)) && worst=$code
done
exit "$worst"
""",
}
# ssh and pdsh to machines that are this one. What they start is nobody's child here, as on another machine.
SSH = {
    "ssh": """while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
shift
[[ $* == "hostname -I" ]] && echo 127.0.0.1 || bash -c "$*" """,
    "pdsh": """while [[ $1 == -* ]]; do [[ $1 == -w ]] && hosts=$2; [[ $1 == -S ]] || shift; shift; done
folder=$(mktemp -d)
node=0
for host in ${hosts//,/ }; do
    command="$*"
    (setsid bash -c "${command//%n/$node}; echo \\$? >$folder/$node.partial; mv $folder/$node.partial $folder/$node" &)
    node=$((node + 1))
done
worst=0
for ((i = 0; i < node; i++)); do
    until [[ -e $folder/$i ]]; do sleep 0.1; done
    (($(<"$folder/$i") > worst)) && worst=$(<"$folder/$i")
done
exit "$worst"
""",
}


def stand_ins(folder: Path, scripts: dict[str, str]) -> dict[str, str]:
    """Put commands before those of the machine; gives the environment that finds them, and the real `ppt`."""
    (folder / "bin").mkdir(parents=True)
    for name, text in scripts.items():
        (folder / "bin" / name).write_text("#!/usr/bin/env bash\n" + text + "\n")
        (folder / "bin" / name).chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder / "bin"), str(BIN), os.environ["PATH"]])}


def free_port() -> int:
    """Below the range from which the system takes ports by itself."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    """The run on one process."""
    from pretrain.engine import pretrain

    run = load_settings(PretrainSettings, config, [*SMALL, f"out={config.parent / 'alone'}"])
    pretrain(run)
    return run.out


@pytest.fixture(scope="module")
def in_order(config: Path, new_job: NewJob) -> Path:
    """The run on two Kubernetes pods: what the container runs, with the pods' names put right for this machine."""
    _, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    out = config.parent / "kubernetes"
    folder = config.parent / "data"
    folder.mkdir()
    values = {
        **yaml.safe_load(config.read_text()),
        "out": str(out),
        "prompt_len": 2,
        "formats": list(FORMATS),
    }
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(values))
    script = container["args"][0].replace("ppt-pretrain-%s.ppt-pretrain slots=8", "127.0.0.1%s slots=1")
    script = script.replace("ppt-pretrain-0.ppt-pretrain", "127.0.0.10").replace("29500", str(free_port()))
    assert "ppt-pretrain" not in script
    pods = []
    for index in "01":
        env = {"JOB_COMPLETION_INDEX": index, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        pods.append(new_job([*container["command"], script], out, env=env, cwd=folder))
    for pod in pods:
        code, text = pod.wait()
        assert code == 0, text
    return out


def test_two_kubernetes_pods_learn_the_prompts_of_one_process(in_order: Path, alone: Path) -> None:
    rows = [
        [
            (row["step"], row["loss"])
            for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        ]
        for out in (in_order, alone)
    ]
    torch.testing.assert_close(torch.tensor(rows[0]), torch.tensor(rows[1]), rtol=2e-3, atol=2e-3)
    one, other = (load_file(checkpoint_path(out, STEPS) / "state.safetensors") for out in (in_order, alone))
    assert (one["bank.prompts"] - other["bank.prompts"]).norm() < 0.01 * other["bank.prompts"].norm()


def same_bytes(one: Path, other: Path) -> None:
    for file in (
        "metrics.jsonl",
        "finished.json",
        *(f"prompts/{name}/prompt.safetensors" for name in FORMATS),
    ):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_a_slurm_job_on_two_nodes_is_stopped_queued_again_and_ends_with_the_same_bytes(
    config: Path, new_job: NewJob, in_order: Path
) -> None:
    out = config.parent / "slurm"
    folder = config.parent / "submitted"
    env = stand_ins(folder, SLURM)
    env |= {"CALLS": str(folder / "calls"), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "1"}
    env["SLURM_JOB_ID"] = str(free_port() - 20000)
    command = ["bash", str(CLUSTER / "slurm.sh"), str(config), *SMALL, f"out={out}"]
    job = new_job(command, out, env=env, cwd=folder)
    job.wait_for_checkpoint(after=0)
    job.process.send_signal(signal.SIGTERM)  # Slurm's warning, to the script alone
    code, text = job.wait()
    assert code == 75, text
    assert "the same command goes on from" in text
    assert f"scontrol requeue {env['SLURM_JOB_ID']}" in (folder / "calls").read_text()
    assert 0 < saved_steps(out)[-1] < STEPS

    (folder / "calls").unlink()
    code, text = new_job(
        command, out, env=env, cwd=folder
    ).wait()  # what Slurm does with a job that is queued again
    assert code == 0, text
    assert "going on from step" in text and "2 processes" in text
    assert "requeue" not in (folder / "calls").read_text()
    same_bytes(in_order, out)


@pytest.mark.torture
def test_a_hostfile_starts_both_machines_over_ssh_and_a_stop_reaches_them(
    config: Path, new_job: NewJob, in_order: Path
) -> None:
    out = config.parent / "ssh"
    folder = config.parent / "login"
    env = stand_ins(folder, SSH)
    (folder / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    command = ["ppt", "pretrain", str(config), *SMALL, f"out={out}", "--hostfile", "hosts", "--master_port"]
    job = new_job([str(BIN / "ppt"), *command[1:], str(free_port())], out, env=env, cwd=folder)
    job.wait_for_checkpoint(after=0)
    workers = [process for process in job.processes() if "pretrain_prompts.py" in " ".join(process.cmdline())
               and "--local_rank" in " ".join(process.cmdline())]  # fmt: skip
    assert workers == []  # no signal of ppt's can reach them
    job.process.send_signal(signal.SIGTERM)
    code, text = job.wait()
    assert code == 75, text
    assert "the same command goes on from" in text
    code, text = new_job([str(BIN / "ppt"), *command[1:], str(free_port())], out, env=env, cwd=folder).wait()
    assert code == 0, text
    same_bytes(in_order, out)
