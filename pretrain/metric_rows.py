"""What a run measured, on disk: metrics.jsonl, and the same numbers as TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corpora.common.errors import MachineError, UserError
from corpora.common.files import machine_errors
from corpora.common.progress import say


class MetricRows:
    """metrics.jsonl: one JSON row a line, cut back to the checkpoint when a run goes on; TensorBoard events beside it.

    What a full disk refuses is kept and written when there is room again; `sync` says whether there was. Events are written one at a time by this thread: TensorBoard's own writer meets a full disk in a thread of its
    own, whose traceback nobody can keep from the screen.

    Args:
        out: the run's folder.
        keep_bytes: length of metrics.jsonl that the checkpoint knows; what a killed run wrote after it goes.
        step: the checkpoint's step; TensorBoard hides what an earlier start wrote after it.
    """

    def __init__(self, out: Path, keep_bytes: int, step: int) -> None:
        self.path, self.events = out / "metrics.jsonl", _events_path(out / "tensorboard")
        self._kept = {self.path: bytearray(), self.events: bytearray()}  # not yet written
        self._refused = False
        with machine_errors(self.path):
            self.path.touch()
            size = self.path.stat().st_size
            if size < keep_bytes:
                raise UserError(
                    f"{self.path} has {size} bytes, its checkpoint counted {keep_bytes}; it was changed by hand: "
                    "choose another out"
                )
            os.truncate(self.path, keep_bytes)
            self._rows = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            with machine_errors(self.events):
                self.events.parent.mkdir(exist_ok=True)
                self._board = os.open(self.events, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
            try:
                self._event(step + 1 if step else 0, file_version="brain.Event:2")
                if step:
                    self._event(step + 1, session_log={"status": 1})  # START: purge from this step on
                self._flush()
            except BaseException:
                os.close(self._board)
                raise
        except BaseException:
            os.close(self._rows)
            raise

    def write(self, row: dict[str, Any], scalars: Mapping[str, float]) -> None:
        """Append a row.

        Args:
            row: as metrics.jsonl keeps it; it has a `step`.
            scalars: the same for TensorBoard, by tag.
        """
        self._kept[self.path] += (json.dumps(row) + "\n").encode()
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        self._event(row["step"], summary={"value": values})
        try:
            self._flush()
        except MachineError as error:
            if not self._refused:
                say(f"warning: {error}; rows wait in memory until there is room")
            self._refused = True

    def sync(self) -> int:
        """Put all rows on disk and say how many bytes metrics.jsonl has.

        Raises:
            MachineError: the disk is full; both files end with the last record that found room.
        """
        self._flush()
        self._refused = False
        with machine_errors(self.path):
            os.fsync(self._rows)
            return os.fstat(self._rows).st_size

    def close(self) -> None:
        """Close both files, after a last try to write what was refused."""
        with contextlib.suppress(MachineError):
            self._flush()
        os.close(self._rows)
        os.close(self._board)

    def _flush(self) -> None:
        for descriptor, path in ((self._rows, self.path), (self._board, self.events)):
            _append(descriptor, bytes(self._kept[path]), path)
            self._kept[path].clear()

    def _event(self, step: int, **fields: Any) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = _Record()
        RecordWriter(record).write(
            event_pb2.Event(wall_time=time.time(), step=step, **fields).SerializeToString()
        )
        self._kept[self.events] += record


class _Record(bytearray):
    """The file that TensorBoard's RecordWriter asks for."""

    def write(self, data: bytes) -> None:
        self.extend(data)


def _events_path(folder: Path) -> Path:
    """A name that TensorBoard knows, new for every start of a run."""
    return (
        folder / f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.0"
    )


def _append(descriptor: int, data: bytes, path: Path) -> None:
    """Append all of `data` or nothing: a full disk takes a part of a line without complaint."""
    with machine_errors(path):
        size = os.fstat(descriptor).st_size
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
