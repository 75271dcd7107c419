"""How the processes of a run begin: with the first one's settings, in one folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import os, sys
from corpora.common.errors import UserError
from finetune import meeting
from finetune.settings import FewshotSettings
from finetune.shares import Share

meeting.APPEARS_IN = 1.0
share = Share(int(os.environ["RANK"]), 2)
dtype = ("float32", "bfloat16")[share.rank]  # as two machines settle it
try:
    settings = meeting.meet(FewshotSettings(out="run", backbone="b", tasks=["t"], dtype=dtype), share)
    print(settings.dtype)
except UserError as error:
    print(error)
"""


def met(folders: tuple[Path, Path]) -> list[str]:
    """What two processes in two folders print; `out` is `run` in each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        own: dict[str, Any] = {
            "RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "PYTHONPATH": str(ROOT),
        }
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", CODE], cwd=folder, env={**os.environ, **own}, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    ended = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0] and not any(err for _, err in ended), ended
    return [out.strip() for out, _ in ended]


def test_what_a_machine_settles_is_the_first_processs_for_all(tmp_path: Path) -> None:
    assert met((tmp_path, tmp_path)) == ["float32", "float32"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_not_all_processes_see_is_refused_by_each_of_them(tmp_path: Path) -> None:
    one, other = met((tmp_path / "one", tmp_path / "other"))
    assert one == other and one.startswith(
        f"process 1 of 2, on {socket.gethostname()}, does not see run/.locks/"
    )
    assert one.endswith("out has to be one folder that all machines share")


def test_a_process_that_does_not_begin_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from corpora.common.errors import MachineError
    from finetune import meeting
    from finetune.settings import FewshotSettings
    from finetune.shares import Share

    monkeypatch.setattr(meeting, "PATIENCE", 0.6)
    monkeypatch.setattr(meeting, "SAY_AFTER", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    settings = FewshotSettings(out=str(tmp_path / "run"), backbone="b", tasks=("t",))
    with pytest.raises(MachineError, match="process 1 of 3 has not begun after"):
        meeting.meet(settings, Share(0, 3))
    assert capfd.readouterr().err.count("process 1 of 3 has not begun yet; the others wait") == 1
    assert not (tmp_path / "run").exists()
