"""The processes of a job: who shares what with whom, and what is said when one of them is gone."""

from __future__ import annotations

import pytest
import torch

from corpora.common.errors import MachineError, UserError
from pretrain.distributed import Processes, form_groups, lost_process


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


def test_neighbours_share_layers_and_each_group_of_them_takes_its_share_of_the_examples() -> None:
    six = [Processes(rank, 6, torch.device("cpu"), tensor_parallel=2) for rank in range(6)]
    assert [one.tensor_rank for one in six] == [0, 1, 0, 1, 0, 1]
    assert [one.data_rank for one in six] == [0, 0, 1, 1, 2, 2]
    assert {one.data_world for one in six} == {3}
    plain = Processes(2, 6, torch.device("cpu"))
    assert (plain.tensor_rank, plain.data_rank, plain.data_world) == (0, 2, 6)


def test_processes_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(
        UserError, match="tensor_parallel is 2 and the job has 3 processes; expected a multiple of 2"
    ):
        form_groups(0, 3, torch.device("cpu"), 2)
