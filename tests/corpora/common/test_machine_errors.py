"""Facts about refusals of the machine, as every library words them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from corpora.common.errors import MachineError
from corpora.common.files import machine_errors

LIMITED = """
import resource, sys
import numpy as np, torch
from safetensors.torch import save_file
from corpora.common.errors import MachineError
from corpora.common.files import machine_errors, write_bytes_atomic
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
out = sys.argv[1]
big = torch.zeros(5000)
for name, write in {
    "bytes": lambda: write_bytes_atomic(out + "/bytes", bytes(20000)),
    "tofile": lambda: np.zeros(5000).tofile(out + "/tofile"),
    "safetensors": lambda: save_file({"x": big}, out + "/safetensors"),
    "torch": lambda: torch.save(big, out + "/torch"),
}.items():
    try:
        with machine_errors(out + "/" + name):
            write()
        print(name, "written")
    except MachineError as error:
        print(name, "refused", str(error).count(chr(10)), out in str(error))
"""


def test_every_librarys_refusal_is_one_line_that_names_the_path(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        f"{name} refused 0 True" for name in ("bytes", "tofile", "safetensors", "torch")
    ], done.stdout + done.stderr


def test_other_faults_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), machine_errors(tmp_path):
        raise RuntimeError("shape mismatch")
    with pytest.raises(FileNotFoundError), machine_errors(tmp_path):
        (tmp_path / "absent").read_text()
    with pytest.raises(MachineError, match="permission denied"), machine_errors(tmp_path):
        raise PermissionError(13, "Permission denied")
