"""How the processes of a few-shot run begin: with the settings of the first one, in one folder that all of them see."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from torch.distributed import TCPStore

from corpora.common.errors import MachineError, UserError
from corpora.common.files import write_text_atomic
from corpora.common.progress import say
from finetune.settings import FewshotSettings
from finetune.shares import LOCKS, Share

PATIENCE = (
    1800.0  # seconds that a process waits for another one to begin: libraries may come from a slow disk
)
SAY_AFTER = 60.0  # seconds until it says so
APPEARS_IN = 30.0  # seconds after which a file that one machine wrote is on the others too


def meet(settings: FewshotSettings, share: Share) -> FewshotSettings:
    """Wait until every process of the job is here; nothing is loaded before.

    Args:
        settings: as this process read them.
        share: this process.

    Returns:
        The settings of the first process: what is settled by the machine (`dtype`) names cells, and must be one for all.

    Raises:
        UserError: a process does not see the run's folder.
        MachineError: another one does not begin.
        DistError: another one is gone.
    """
    if share.world == 1:
        return settings
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = datetime.timedelta(seconds=PATIENCE)
    store = TCPStore(address, port, is_master=share.first, timeout=patience, wait_for_workers=False)
    if share.first:
        complaint = _invite(store, settings, share)
    else:
        settings, complaint = _join(store, share)
    if complaint:
        raise UserError(complaint)
    return settings


def _invite(store: TCPStore, settings: FewshotSettings, share: Share) -> str:
    """In the first process: what is wrong, of all processes; empty: nothing."""
    with _sign(Path(settings.out)) as sign:
        store.set("sign", str(sign))
        store.set("settings", settings.model_dump_json())
        answers = [_hear(store, f"answer {rank}", f"process {rank}", share) for rank in range(1, share.world)]
    complaint = next(filter(None, answers), "")
    store.set("complaint", complaint)
    for rank in range(1, share.world):  # the store goes with this process
        _hear(store, f"heard {rank}", f"process {rank}", share)
    return complaint


def _join(store: TCPStore, share: Share) -> tuple[FewshotSettings, str]:
    """In another process: the settings of the first one, and what is wrong."""
    sign = Path(_hear(store, "sign", "process 0", share))
    settings = FewshotSettings.model_validate_json(_hear(store, "settings", "process 0", share))
    answer = "" if _appears(sign) else (
        f"process {share.rank} of {share.world}, on {socket.gethostname()}, does not see {sign}, which the first process wrote; "
        "out has to be one folder that all machines share"
    )  # fmt: skip
    store.set(f"answer {share.rank}", answer)
    complaint = _hear(store, "complaint", "process 0", share)
    store.set(f"heard {share.rank}", "")
    return settings, complaint


@contextlib.contextmanager
def _sign(out: Path) -> Iterator[Path]:
    """A file in the run's folder for the others to see; a folder that was made for it goes with it."""
    sign = out / LOCKS / f"begun-{secrets.token_hex(8)}"
    write_text_atomic(sign, "")
    try:
        yield sign
    finally:
        sign.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            sign.parent.rmdir()
            out.rmdir()


def _appears(sign: Path) -> bool:
    began = time.monotonic()
    while not sign.exists():
        if time.monotonic() - began > APPEARS_IN:
            return False
        time.sleep(0.2)
    return True


def _hear(store: TCPStore, key: str, who: str, share: Share) -> str:
    """What another process says, once it does; signals are heeded meanwhile."""
    began, said = time.monotonic(), False
    while not store.check([key]):
        waited = time.monotonic() - began
        if waited > SAY_AFTER and not said:
            say(f"warning: {who} of {share.world} has not begun yet; the others wait")
            said = True
        if waited > PATIENCE:
            raise MachineError(
                f"{who} of {share.world} has not begun after {waited:.0f} s; see whether its machine runs it, then give the "
                "same command again"
            )
        time.sleep(0.1)
    return store.get(key).decode()
