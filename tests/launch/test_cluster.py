"""The cluster examples: what the schedulers and the launcher make of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import launch
from launch.launcher import split_arguments

CLUSTER = Path(launch.__file__).parent / "cluster"

# Stand-ins for Slurm's commands: `srun` runs the task once, as node 0; what they were asked is written down.
STUBS = {
    "scontrol": 'echo "scontrol $*" >>"$CALLS"\nif [[ $1 == show ]]; then printf "n1\\nn2\\n"; fi',
    "srun": 'while [[ $1 == -* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"',
    "ppt": 'echo "ppt $*" >>"$CALLS"\ncat hosts.4242 >>"$CALLS"\n$PPT_DOES',
}


def start_job(folder: Path, does: str) -> subprocess.Popen[bytes]:
    for name, text in STUBS.items():
        (folder / name).write_text("#!/usr/bin/env bash\n" + text + "\n")
        (folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "PPT_DOES": does,
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_GPUS_ON_NODE": "8",
    }
    command = ["bash", str(CLUSTER / "slurm.sh"), "my run.yaml", "steps=10"]
    return subprocess.Popen(command, cwd=folder, env=environment)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (75, True)])
def test_a_slurm_job_is_queued_again_after_exit_code_75_alone(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    assert start_job(tmp_path, f"exit {code}").wait(timeout=20) == code
    calls = (tmp_path / "calls").read_text()
    assert ("scontrol requeue 4242" in calls) == requeued
    assert not (tmp_path / "hosts.4242").exists()


def test_slurm_starts_the_documented_command_on_every_node(tmp_path: Path) -> None:
    start_job(tmp_path, "exit 0").wait(timeout=20)
    calls = (tmp_path / "calls").read_text()
    assert "ppt pretrain my run.yaml steps=10 --hostfile" in calls
    assert "--no_ssh --node_rank 0 --master_addr n1 --master_port 24242" in calls
    assert "n1 slots=8\nn2 slots=8\n" in calls


def test_a_slurm_job_passes_the_warning_on_and_waits_for_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "train").write_text(
        "#!/usr/bin/env bash\ntrap 'sleep 0.3; touch saved; exit 75' TERM\ntouch started\nwhile :; do sleep 0.05; done\n"
    )
    (tmp_path / "train").chmod(0o755)
    job = start_job(tmp_path, "exec ./train")
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 75
    assert (tmp_path / "saved").exists()
    assert "scontrol requeue 4242" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("first", [0, 1])
def test_the_tasks_of_an_array_build_the_shards_of_one_corpus_which_merge_to_the_same_bytes(
    tmp_path: Path, text_file: Path, tokenizer_dir: Path, first: int
) -> None:
    given = ["--text", str(text_file), "--tokenizer", str(tokenizer_dir), "--formats", "sentence_pair"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for task in (0, 1):
        array = {
            "SLURM_ARRAY_TASK_ID": first + task,
            "SLURM_ARRAY_TASK_MIN": first,
            "SLURM_ARRAY_TASK_COUNT": 2,
        }
        subprocess.run(
            ["bash", str(CLUSTER / "slurm_array.sh"), *given, "--out", str(tmp_path / "array")],
            env=environment | {key: str(value) for key, value in array.items()},
            check=True,
        )
    subprocess.run(["ppt", "corpora", "merge", str(tmp_path / "array")], env=environment, check=True)
    subprocess.run(
        ["ppt", "corpora", "build", *given, "--out", str(tmp_path / "whole")], env=environment, check=True
    )
    for name in ("store/manifest.json", "store/tokens.bin", "sentence_pair/manifest.json"):
        assert (tmp_path / "array" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_launcher_reads_the_hostfile() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(CLUSTER / "hostfile"))) == {"node1": 8, "node2": 8}


def test_a_kubernetes_pod_runs_ppt_with_flags_that_reach_the_launcher() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == service["spec"]["selector"]["job-name"]
    assert job["metadata"]["name"] == service["spec"]["selector"]["job-name"]
    rules = {rule["action"]: rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule}  # fmt: skip
    assert rules == {"FailJob": [2], "Ignore": [75]}
    script = pod["containers"][0]["args"][0]
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    started = next(line for line in script.replace("\\\n", " ").splitlines() if line.startswith("exec ppt"))
    overrides, flags = split_arguments(shlex.split(started)[4:])
    assert overrides == []
    assert flags[:3] == ["--hostfile", "hosts.$JOB_COMPLETION_INDEX", "--no_ssh"]
