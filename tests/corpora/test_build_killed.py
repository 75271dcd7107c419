from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corpora import build as build_module
from corpora import parts as parts_module
from corpora.build import build
from corpora.build_folder import alone
from corpora.build_settings import BuildSettings
from corpora.common.errors import MachineError, PPTError
from corpora.common.processes import Pool
from corpora.common.rng import generator

Tree = Callable[[Path], dict[str, str]]  # every file of a folder and the hash of its bytes
BUILD = """
import sys
from corpora.build import build
from corpora.build_settings import BuildSettings
build(BuildSettings.model_validate_json(sys.argv[1]))
"""


def started(settings: BuildSettings) -> subprocess.Popen[bytes]:
    """A build in a process and a process group of its own."""
    command = [sys.executable, "-c", BUILD, settings.model_dump_json()]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def test_a_build_killed_at_any_rename_and_started_again_ends_with_the_same_bytes(
    settings_of: Callable[..., BuildSettings],
    tree: Tree,
    died: Callable[[Callable[[], object], int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tree(build(settings_of("whole", part_bytes=9_000)))
    killed = settings_of("killed", part_bytes=9_000)
    made: list[str] = []
    real = parts_module.PartMaker.make

    for replace in range(200):
        if died(lambda: build(killed), replace) == 0:
            break
        seen = {path.name for path in (Path(killed.out) / "shards" / "0").glob("[0-9]*.safetensors")}

        def watching(
            self: object, number: int, source: object, piece: object, path: Path, seen: set[str] = seen
        ) -> object:
            made.append(path.name)
            assert path.name not in seen, "a finished part was made again"
            return real(self, number, source, piece, path)  # type: ignore[arg-type]

        monkeypatch.setattr(parts_module.PartMaker, "make", watching)
        if replace % 3 == 0:  # else go on dying, each time a little later
            again = settings_of("killed", part_bytes=9_000)
            build(again)
            assert tree(Path(again.out)) == whole
            shutil.rmtree(again.out)
        monkeypatch.setattr(parts_module.PartMaker, "make", real)
    assert replace > 20
    assert tree(Path(killed.out)) == whole


def test_a_build_with_workers_killed_from_outside_leaves_no_worker_and_goes_on(
    settings_of: Callable[..., BuildSettings],
    tree: Tree,
) -> None:
    settings = settings_of("killed", workers=2, part_bytes=2_000, labeller=None, formats=["sentence_pair"])
    child = started(settings)
    parts, deadline = Path(settings.out) / "shards" / "0", time.monotonic() + 100
    while not list(parts.glob("[0-9]*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL, "the build was done before it could be killed"
    while time.monotonic() < deadline:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("workers outlived the build")
    whole = settings_of("whole", part_bytes=2_000, labeller=None, formats=["sentence_pair"])
    assert tree(build(settings.model_copy(update={"workers": 1}))) == tree(build(whole))


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_ends_a_build_with_its_workers_and_a_second_one_does_not_hang_it(
    tmp_path: Path, text_file: Path, tokenizer_dir: Path, times: int
) -> None:
    (tmp_path / "long.txt").write_text((text_file.read_text() + "\n\n") * 150)
    out = tmp_path / "build"
    command = [sys.executable, "-c", "from launch.cli import main; main()", "corpora", "build"]
    command += ["--text", str(tmp_path / "long.txt"), "--tokenizer", str(tokenizer_dir), "--out", str(out)]
    child = subprocess.Popen(
        [*command, "--workers", "2", "--unit", "sentences"], start_new_session=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (out / "shards" / "0").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(times):
        os.killpg(child.pid, signal.SIGINT)
        time.sleep(0.05)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 75 or (times == 2 and child.returncode == -signal.SIGINT)
    assert b"the same command goes on" in said and b"Traceback" not in said
    with pytest.raises(ProcessLookupError):
        for _ in range(200):  # what was ended is gone as soon as the system has seen to it
            os.killpg(child.pid, 0)
            time.sleep(0.05)


def test_a_full_disk_fails_with_one_line_leaves_nothing_half_written_and_goes_on_later(
    settings_of: Callable[..., BuildSettings], tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tree(build(settings_of("whole")))
    real = os.fsync
    for fail_at in (3, 12, 30):
        settings, calls = settings_of(f"full{fail_at}"), 0

        def full(descriptor: int, fail_at: int = fail_at) -> None:
            nonlocal calls
            calls += 1
            if calls >= fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(MachineError, match="no space left on device") as error:
            build(settings)
        assert "\n" not in str(error.value) and error.value.exit_code == 1
        assert not list(Path(settings.out).rglob("*.partial"))
        monkeypatch.setattr(os, "fsync", real)
        assert tree(build(settings)) == whole


def test_a_file_size_limit_stands_for_a_full_disk(settings_of: Callable[..., BuildSettings]) -> None:
    """A real refusal by the system, in the middle of a write."""
    import resource

    settings = settings_of("limited", labeller=None, formats=["sentence_pair"], part_bytes=10_000_000)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            build(settings)
        except PPTError as error:
            os.write(writer, f"{error.exit_code} {error}".encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        message = file.read()
    os.waitpid(child, 0)
    assert message.startswith("1 cannot write") and "file too large" in message
    assert not list(Path(settings.out).rglob("*.partial"))


def test_a_folder_that_may_not_be_written_fails_with_one_line(
    settings_of: Callable[..., BuildSettings],
    tmp_path: Path,
    text_file: Path,
    tokenizer_dir: Path,
    without_rights: Callable[[Callable[[], object]], tuple[int, str]],
) -> None:
    (tmp_path / "closed").mkdir(mode=0o755)
    for path in (text_file.parent, tokenizer_dir, tokenizer_dir.parent):
        path.chmod(0o755)
    code, message = without_rights(lambda: build(settings_of("closed/build", labeller=None)))
    assert (code, message.count("\n")) == (1, 0) and "permission denied" in message
    assert not list((tmp_path / "closed").iterdir())


def test_two_builds_at_once_in_one_folder_are_refused(settings_of: Callable[..., BuildSettings]) -> None:
    settings = settings_of("build", labeller=None, formats=["sentence_pair"])
    out = build(settings)
    with alone(out), pytest.raises(MachineError, match="another build is at work"):
        build(settings)


def test_a_dead_worker_is_one_line_and_the_build_goes_on_later(
    settings_of: Callable[..., BuildSettings], tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("build", workers=2)
    monkeypatch.setattr(build_module, "make_parts", _die_in_a_worker)
    with pytest.raises(MachineError, match="a worker process was ended from outside"):
        build(settings)
    monkeypatch.undo()
    assert tree(build(settings)) == tree(build(settings_of("whole")))


def _die_in_a_worker(sources: object, folder: object, maker: object, pool: Pool) -> None:
    list(pool.each(_die, [()]))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(20))
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(
    settings_of: Callable[..., BuildSettings], tree: Tree, seed: int
) -> None:
    rng = generator(seed, "torture")
    settings = settings_of("killed", workers=2, part_bytes=3_000)
    done = set()  # parts that were there when a build was killed
    for _ in range(5):
        child = started(settings)
        time.sleep(float(rng.uniform(0.3, 3)))
        child.kill()
        child.wait()
        for part in (Path(settings.out) / "shards" / "0").glob("[0-9]*.safetensors"):
            done.add((part.name, part.stat().st_ino))
    parts = Path(settings.out) / "shards" / "0"
    if parts.exists():  # what was finished before the last kill is still the same folder, not one made again
        assert {name for name, _ in done} == {name for name, _ in done if (parts / name).exists()}
        assert all((parts / name).stat().st_ino == inode for name, inode in done)
    assert tree(build(settings)) == tree(build(settings_of("whole", part_bytes=3_000)))
