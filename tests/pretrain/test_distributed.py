"""The processes of a job: what is said when one of them is gone."""

from __future__ import annotations

import pytest
import torch

from corpora.common.errors import MachineError
from pretrain.distributed import lost_process


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:19\nmore"),
        torch.distributed.DistError("watchdog"),
    ],
)
def test_a_collective_that_fails_of_a_lost_process_is_one_line_and_exit_1(error: RuntimeError) -> None:
    with pytest.raises(MachineError, match="lost another process of the job") as caught, lost_process():
        raise error
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert caught.value.__cause__ is error and str(error).splitlines()[0] in str(caught.value)


def test_other_faults_of_a_process_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), lost_process():
        raise RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError), lost_process():
        raise RuntimeError
