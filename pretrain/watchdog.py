"""Which processes of a job are alive and how far each has come: a dead or hung one is named, and nobody waits for ever.

Each process of a job writes a line about itself into the run's folder once a second, from a thread of its own, and
reads those of others: the first process everybody's, the others the first one's. Files and not torch's store: the
store stands still with the process that holds it, and `ppt pretrain` can read files when all processes are dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

import psutil

from corpora.common.errors import MachineError
from corpora.common.progress import console

FOLDER = ".processes"  # in the run's folder: a file a process, named by its rank
STOP = "stop"  # a file there: all processes are to save and end
LENGTH = 1024  # bytes of a line, padded: written over in place it needs no new room on a full disk
EVERY = 1.0  # seconds between two lines
REPORT = 60.0  # seconds of silence, or half of the timeout, after which a process is named
STALE = (
    5 * EVERY
)  # seconds of silence of a process elsewhere that mean death once the connection to it is lost
LATE = 5 * EVERY  # seconds by which this thread may be late before it trusts its own clock no more
GRACE = 20.0  # seconds that the training thread has to notice by itself that another process is gone
AGAIN = "the same command goes on from the last checkpoint, or from the start where there is none"


class LostProcess(MachineError):
    """Another process of the job is gone.

    Attributes:
        speaker: number of the process that says so.
    """

    def __init__(self, reason: str, speaker: int = 0) -> None:
        super().__init__(reason)
        self.speaker = speaker


@dataclass(frozen=True)
class Line:
    """What a process writes about itself.

    Attributes:
        rank: which process.
        world: of how many.
        host: name of its machine.
        space: machine and namespace in which `pid` means something.
        pid: its number there.
        born: when it started, seconds since 1970: numbers are used again, numbers with times are not.
        beat: lines written.
        moves: things it began to do.
        step: updates made.
        doing: the last of those things, such as `training`.
        waits: whether it waits for the others.
    """

    rank: int
    world: int
    host: str
    space: str
    pid: int
    born: float
    beat: int = 0
    moves: int = 0
    step: int = 0
    doing: str = "starting"
    waits: bool = False

    def __str__(self) -> str:
        return f"process {self.rank} ({self.host}, pid {self.pid})"

    def alive(self) -> bool:
        """Whether this process, of the same space, is still there."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.born and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def read_lines(out: Path) -> dict[int, Line]:
    """The lines in a run's folder by rank, those that died in earlier starts left behind included."""
    ranks = sorted(int(path.name) for path in (out / FOLDER).glob("*") if path.name.isdigit())
    found = {rank: _read(out / FOLDER / str(rank)) for rank in ranks}
    return {rank: line for rank, line in found.items() if line is not None}


def nobody_spoke(out: Path, before: dict[int, Line]) -> bool:
    """After a job that died of a signal: whether the processes that would have said so, 0 or else 1, are dead too.

    Args:
        out: the run's folder.
        before: what `read_lines` gave before the job was started.
    """
    left = {rank: line for rank, line in read_lines(out).items() if before.get(rank) != line}
    return not left or (0 in left and (1 in left or left[0].world == 1))


def ask_to_stop(out: Path) -> None:
    """Ask all processes of the job in this folder, on whatever machine, to save and end."""
    with contextlib.suppress(OSError):
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        (out / FOLDER / STOP).touch()


def forget_stop(out: Path) -> None:
    """Take back what `ask_to_stop` asked of an earlier job."""
    with contextlib.suppress(OSError):
        (out / FOLDER / STOP).unlink()


class Watchdog:
    """This process's line and its eye on the others; a context around the job.

    A job of one process is not watched: nobody waits for it.

    Attributes:
        stop_asked: whether somebody called `ask_to_stop`.
    """

    def __init__(self, out: Path, timeout: float) -> None:
        """Make it; the context starts it.

        Args:
            out: the run's folder, the same for all processes of the job.
            timeout: seconds of silence, or of standing still while this process waits, after which the job ends.
        """
        self.folder, self.timeout, self.report = out / FOLDER, timeout, min(REPORT, timeout / 2)
        self.stop_asked = False
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        space = socket.gethostname()
        with contextlib.suppress(OSError):
            space += os.readlink("/proc/self/ns/pid")
        me = psutil.Process()
        self._line = Line(rank, world, socket.gethostname(), space, me.pid, me.create_time())
        peers = (range(world) if rank == 0 else range(1)) if world > 1 else ()
        self._peers = [peer for peer in peers if peer != rank]
        self._before = {peer: _read(self.folder / str(peer)) for peer in self._peers}
        self._seen: dict[int, Line] = {}
        self._heard: dict[int, float] = {}  # when a peer's line last changed, by this process's clock
        self._moved: dict[int, float] = {}  # when a peer last began something
        self._my_move = self._began = time.monotonic()
        self._said: set[str] = set()
        self._training = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def host(self) -> str:
        """Name of this process's machine."""
        return self._line.host

    def at(self, step: int, doing: str, waits: bool = False) -> None:
        """Note what this process begins to do; nothing is written here.

        Args:
            step: updates made.
            doing: in words, such as `training`.
            waits: whether it is to wait for the others.
        """
        line = self._line
        self._line = replace(line, moves=line.moves + 1, step=step, doing=doing, waits=waits)
        self._my_move = time.monotonic()

    def __enter__(self) -> Watchdog:
        if self._peers:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._training = False
        try:
            if self._peers and isinstance(error, LostProcess):
                raise self._explained(error) from error
        finally:
            if self._peers:
                self._over.set()
                self._thread.join()
                self._leave()

    def _leave(self) -> None:
        """Take the line away: what is left behind is of processes that died."""
        with contextlib.suppress(OSError):
            (self.folder / str(self._line.rank)).unlink(missing_ok=True)
            self.folder.rmdir()  # by the last to leave

    def _watch(self) -> None:
        last = time.monotonic()
        beats = 0
        while not self._over.wait(EVERY if beats else 0):
            beats += 1
            written = self._write(beats)
            now = time.monotonic()
            self._look(now)
            self.stop_asked = self.stop_asked or (self.folder / STOP).exists()
            if not written or now - last > EVERY + LATE:
                # A disk that refuses lines, or that stood still, as this process may have: silence means nothing.
                self._heard, self._moved = dict.fromkeys(self._seen, now), dict.fromkeys(self._seen, now)
                self._my_move = now
            elif self._training:
                self._judge(now)
            last = now

    def _write(self, beat: int) -> bool:
        text = json.dumps(asdict(replace(self._line, beat=beat))).ljust(LENGTH - 1) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / str(self._line.rank), os.O_CREAT | os.O_WRONLY, 0o666)
            try:
                return os.pwrite(descriptor, text.encode(), 0) >= LENGTH
            finally:
                os.close(descriptor)
        except OSError:
            return False

    def _look(self, now: float) -> None:
        for peer in self._peers:
            line, seen = _read(self.folder / str(peer)), self._seen.get(peer) or self._before[peer]
            if line is None or line == seen:
                continue
            self._heard[peer] = now
            if peer not in self._seen or line.moves != self._seen[peer].moves:
                self._moved[peer] = now
            self._seen[peer] = line

    def _judge(self, now: float) -> None:
        speaks = self._line.rank == 0
        unseen = [str(peer) for peer in self._peers if peer not in self._seen]
        if speaks and unseen and now - self._began > self.report:
            self._say_once(
                f"process {', '.join(unseen)} of {self._line.world} has not begun yet; the others wait"
            )
        for peer, line in self._seen.items():
            speaks = self._line.rank == (1 if peer == 0 else 0)
            timeout = self.timeout + (0 if speaks else GRACE)  # first the one that says why
            silent, still = now - self._heard[peer], now - max(self._moved[peer], self._my_move)
            if not (self.folder / str(peer)).exists():
                if silent > GRACE:  # it has said why it ended
                    self._end(None)
            elif self._dead(line):
                if silent > GRACE:
                    self._end(f"{line} is gone since step {line.step}; {AGAIN}" if speaks else None)
            elif silent > self.report:
                what = f"{line} has not been heard of for {silent:.0f} s (last at step {line.step}, {line.doing})"
                if speaks:
                    self._say_once(f"{what}; the others wait", f"{peer} silent at {line.beat}")
                if silent > timeout:
                    self._end(f"{what}; {AGAIN}" if speaks else None, line)
            elif self._line.waits and not line.waits and still > self.report:
                what = f"{line} has been {line.doing} at step {line.step} for {still:.0f} s"
                if speaks:
                    self._say_once(f"{what}; the others wait", f"{peer} still at {line.moves}")
                if still > timeout:
                    self._end(f"{what}; {AGAIN}" if speaks else None, line)

    def _dead(self, line: Line) -> bool:
        return line.space == self._line.space and not line.alive()

    def _say_once(self, text: str, key: str = "") -> None:
        if (key or text) not in self._said:
            self._said.add(key or text)
            console().print(f"warning: {text}", markup=False)

    def _end(self, reason: str | None, culprit: Line | None = None) -> None:
        """End this process where the training thread cannot: it hangs in a call that never returns."""
        if reason is not None:
            style = "bold red" if console().is_terminal else None
            console().show_cursor(True)
            console().print(f"ppt: {reason}", style=style, markup=False)
        if culprit is not None and culprit.space == self._line.space and culprit.alive():
            os.kill(culprit.pid, signal.SIGKILL)  # it would not hear the launcher's SIGTERM
        self._leave()
        os._exit(MachineError.exit_code)

    def _explained(self, error: LostProcess) -> LostProcess:
        """Say which process is gone, after a collective has failed because one is."""
        until = time.monotonic() + STALE + 2 * EVERY
        while time.monotonic() < until:
            now = time.monotonic()
            gone = [
                line
                for peer, line in sorted(self._seen.items())
                if (self.folder / str(peer)).exists()
                and (self._dead(line) or now - self._heard[peer] > STALE)
            ]
            if gone:
                who = " and ".join(f"{line} is gone since step {line.step}" for line in gone)
                speaker = 0 if self._line.rank == 0 else 1
                return LostProcess(f"{who}; {AGAIN}", speaker)
            time.sleep(0.1)
        ended = [peer for peer in self._seen if not (self.folder / str(peer)).exists()]
        return LostProcess(str(error), ended[0] if ended else 0)  # one that ended in order says why itself


def _read(path: Path) -> Line | None:
    try:
        return Line(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or met while it was written
        return None
