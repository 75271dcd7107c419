from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from corpora import build as build_module
from corpora import parts as parts_module
from corpora.build import BuildSettings, LabelSettings, apply_labeller, build
from corpora.common.errors import MachineError, PPTError, UserError
from corpora.common.files import read_json
from corpora.formats import FORMATS
from corpora.labeller import train
from corpora.store import SentenceStore
from corpora.tokenizer import Tokenizer

SAID = ("terrible awful", "bad poor", "so so", "good nice", "great superb")
NOUNS = ("boat", "rose", "bread", "train", "water", "fish", "seed", "bee")


@pytest.fixture(scope="module")
def labeller_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labeller whose classes the made documents' words meet now and then."""
    folder = tmp_path_factory.mktemp("labeller")
    rows = [
        {
            "text": f"The {NOUNS[(i * 7 + label) % 8]} near the {NOUNS[i % 8]} was {SAID[label]}.",
            "label": label,
        }
        for i in range(20)
        for label in range(5)
    ]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(folder / "reviews.jsonl", folder / "labeller")
    return folder / "labeller"


@pytest.fixture
def settings_of(
    tmp_path: Path, text_file: Path, tokenizer_dir: Path, labeller_dir: Path
) -> Callable[..., BuildSettings]:
    def make(out: str, **changes: object) -> BuildSettings:
        values: dict[str, object] = {
            "text": [str(text_file)],
            "tokenizer": str(tokenizer_dir),
            "out": str(tmp_path / out),
            "labeller": str(labeller_dir),
            "validation": 0.2,
            "part_chars": 20_000,
        }
        return BuildSettings.model_validate(values | changes)

    return make


def tree(folder: Path) -> dict[str, str]:
    """Every file's path and hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build_and_die(settings: BuildSettings, replace: int) -> int:
    """Build in a child process that is killed just before (even) or after (odd) one of its renames.

    Returns:
        How the child ended: the signal, or 0 when it was done before.
    """
    child = os.fork()
    if child == 0:
        real, count = os.replace, 0

        def killing(*args: object) -> None:
            nonlocal count
            if count == replace // 2 and replace % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args)  # type: ignore[arg-type]
            if count == replace // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        os.replace = killing  # type: ignore[assignment]
        try:
            build(settings)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_build_holds_store_tokenizer_labeller_and_every_format(
    settings_of: Callable[..., BuildSettings], tokenizer: Tokenizer, pocket_docs: list[list[str]]
) -> None:
    out = build(settings_of("build"))
    names = {path.name for path in out.iterdir()}
    assert names == {"manifest.json", "store", "tokenizer", "labeller", *FORMATS}
    store = SentenceStore.open(out / "store")
    assert [store.text(i) for i in range(store.n_units)] == [unit for doc in pocket_docs for unit in doc]
    assert Tokenizer.load(out / "tokenizer").fingerprint == tokenizer.fingerprint
    for name in FORMATS:
        table = pq.read_table(out / name / "examples.parquet")
        assert table.schema.names[:4] == ["query", "options", "label", "split"]
        assert set(table["split"].to_pylist()) == {"train", "validation"}
        splits = zip(table["query"].to_pylist(), table["split"].to_pylist(), strict=True)
        held_out = {store.doc_of_unit[query] for query, split in splits if split == "validation"}
        for row in table.to_pylist():
            for unit in [row["query"], *row["options"]]:
                assert (store.doc_of_unit[unit] in held_out) == (row["split"] == "validation")


@pytest.mark.defect(6)
def test_any_number_of_workers_and_a_second_build_give_the_same_bytes(
    settings_of: Callable[..., BuildSettings],
) -> None:
    one = tree(build(settings_of("one")))
    assert tree(build(settings_of("two", workers=2))) == one
    assert tree(build(settings_of("again"))) == one
    assert tree(build(settings_of("again", workers=2))) == one  # nothing to do
    assert tree(build(settings_of("seed", seed=1))) != one


def test_a_build_killed_at_any_rename_and_started_again_ends_with_the_same_bytes(
    settings_of: Callable[..., BuildSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tree(build(settings_of("whole")))
    killed = settings_of("killed")
    made: list[str] = []
    real = parts_module.PartMaker.make

    for replace in range(200):
        if build_and_die(killed, replace) == 0:
            break
        seen = {path.name for path in (Path(killed.out) / "parts").glob("[0-9]*[0-9]")}

        def watching(
            self: object, tokenizer: object, texts: object, path: Path, seen: set[str] = seen
        ) -> None:
            made.append(path.name)
            assert path.name not in seen, "a finished part was made again"
            real(self, tokenizer, texts, path)  # type: ignore[arg-type]

        monkeypatch.setattr(parts_module.PartMaker, "make", watching)
        if replace % 3 == 0:  # else go on dying, each time a little later
            again = settings_of("killed")
            build(again)
            assert tree(Path(again.out)) == whole
            shutil.rmtree(again.out)
        monkeypatch.setattr(parts_module.PartMaker, "make", real)
    assert replace > 20
    assert tree(Path(killed.out)) == whole


def test_a_build_with_workers_killed_from_outside_leaves_no_worker_and_goes_on(
    settings_of: Callable[..., BuildSettings],
) -> None:
    settings = settings_of("killed", workers=2, part_chars=2_000, labeller=None, formats=["sentence_pair"])
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            build(settings)
        finally:
            os._exit(0)
    parts, deadline = Path(settings.out) / "parts", time.monotonic() + 100
    while not list(parts.glob("[0-9]*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the build was done before it could be killed"
    while time.monotonic() < deadline:
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("workers outlived the build")
    whole = settings_of("whole", part_chars=2_000, labeller=None, formats=["sentence_pair"])
    assert tree(build(settings.model_copy(update={"workers": 1}))) == tree(build(whole))


def test_other_settings_in_the_same_folder_are_an_error_that_names_both_sides(
    settings_of: Callable[..., BuildSettings], tmp_path: Path, text_file: Path
) -> None:
    build(settings_of("build", formats=["sentence_pair"], labeller=None))
    same = {"formats": ["sentence_pair"], "labeller": None}
    with pytest.raises(UserError, match='built with unit "paragraphs", this command says "sentences"'):
        build(settings_of("build", unit="sentences", **same))
    with pytest.raises(UserError, match="built with seed 0, this command says 3"):
        build(settings_of("build", seed=3, **same))
    other = tmp_path / text_file.name
    other.write_text(text_file.read_text() + "\nmore\n")
    with pytest.raises(UserError, match=r"built with text .*, this command says"):
        build(settings_of("build", text=[str(other)], **same))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(thesis.doc\)"):
        build(settings_of("full", **same))


def test_the_same_text_elsewhere_goes_on_and_no_path_enters_a_build(
    settings_of: Callable[..., BuildSettings], tmp_path: Path, text_file: Path
) -> None:
    first = tree(build(settings_of("build")))
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / text_file.name
    moved.write_bytes(text_file.read_bytes())
    assert tree(build(settings_of("build", text=[str(moved)]))) == first
    for path in (tmp_path / "build").rglob("*.json"):
        assert str(tmp_path) not in path.read_text() and str(text_file.parent) not in path.read_text()


def test_bad_records_are_counted_in_the_manifest_with_their_place_and_the_build_goes_on(
    settings_of: Callable[..., BuildSettings],
    tmp_path: Path,
    pocket_docs: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [json.dumps({"text": "\n".join(document)}) for document in pocket_docs]
    lines[2:2] = ["{broken", '{"text": " "}', '{"body": "x"}']
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    out = build(settings_of("build", text=[str(path)], formats=["sentence_pair"]))
    manifest = read_json(out / "store" / "manifest.json")
    assert manifest["documents"] == len(pocket_docs)
    assert manifest["dropped"] == {"not valid JSON": 1, "empty document": 1, 'no field "text"': 1}
    assert manifest["dropped_places"]["not valid JSON"] == ["a.jsonl line 3"]
    assert "1 record dropped: empty document (a.jsonl line 4)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"a\.jsonl line 3: not valid JSON"):
        build(settings_of("strict", text=[str(path)], strict=True))
    assert not (tmp_path / "strict").exists()


def test_text_without_a_document_is_an_error_that_says_why_and_leaves_nothing(
    settings_of: Callable[..., BuildSettings], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n' * 3)
    with pytest.raises(UserError, match=r'no text in .*: 3 records dropped: no field "text"'):
        build(settings_of("build", text=[str(path)]))
    assert not (tmp_path / "build").exists()


def test_without_a_labeller_single_text_is_left_out_and_a_line_says_so(
    settings_of: Callable[..., BuildSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    out = build(settings_of("build", labeller=None))
    assert "single_text is left out" in capsys.readouterr().err
    assert not (out / "single_text").exists() and (out / "unified").exists()
    with pytest.raises(UserError, match="nothing to build"):
        build(settings_of("other", labeller=None, formats=["single_text"]))
    with pytest.raises(UserError, match="keep_text"):
        build(settings_of("other", keep_text=False))


def test_a_labeller_applied_later_gives_what_it_gives_in_the_build(
    settings_of: Callable[..., BuildSettings], labeller_dir: Path
) -> None:
    out = build(settings_of("later", labeller=None))
    apply_labeller(out, str(labeller_dir))
    together = build(settings_of("together"))
    assert tree(out / "single_text") == tree(together / "single_text")
    assert tree(out / "labeller") == tree(together / "labeller")
    apply_labeller(out, str(labeller_dir), LabelSettings(keep=1.0, balance=False))
    assert tree(out / "single_text") != tree(together / "single_text")
    apply_labeller(out, str(labeller_dir))
    assert tree(out / "single_text") == tree(together / "single_text")
    bare = build(settings_of("bare", labeller=None, keep_text=False, formats=["sentence_pair"]))
    with pytest.raises(UserError, match="built without text"):
        apply_labeller(bare, str(labeller_dir))


def test_a_full_disk_fails_with_one_line_leaves_nothing_half_written_and_goes_on_later(
    settings_of: Callable[..., BuildSettings], monkeypatch: pytest.MonkeyPatch
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

    settings = settings_of("limited", labeller=None, formats=["sentence_pair"], part_chars=10_000_000)
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
    with build_module._alone(out), pytest.raises(MachineError, match="another build is at work"):
        build(settings)


def test_a_dead_worker_is_one_line_and_the_build_goes_on_later(
    settings_of: Callable[..., BuildSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("build", workers=2)
    monkeypatch.setattr(parts_module, "_start", _die)
    with pytest.raises(MachineError, match="a worker process was ended from outside"):
        build(settings)
    monkeypatch.undo()
    assert tree(build(settings)) == tree(build(settings_of("whole")))


def _die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_text_that_the_tokenizer_does_not_know_or_another_language_is_a_warning(
    settings_of: Callable[..., BuildSettings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "zh.txt"
    lines = [f"第{i}天，她在河边看见一只船。" for i in range(60)]
    path.write_text("\n\n".join("\n".join(lines[k : k + 6]) for k in range(0, 60, 6)), encoding="utf-8")
    out = build(settings_of("build", text=[str(path)], formats=["sentence_pair", "single_text"]))
    said = capsys.readouterr().err
    assert "of the tokens are <unk>; this tokenizer was made for other text" in said
    assert "warning: the labeller was trained on en, the text is zh" in said
    assert read_json(out / "store" / "manifest.json")["language"] == "zh"
    assert read_json(out / "sentence_pair" / "manifest.json")["language"] == "zh"


def test_a_finished_store_that_was_damaged_is_an_error_and_nothing_is_removed(
    settings_of: Callable[..., BuildSettings],
) -> None:
    out = build(settings_of("build", labeller=None, formats=["sentence_pair"]))
    (out / "store" / "tokens.bin").write_bytes(b"12")
    before = tree(out)
    with pytest.raises(UserError, match=r"tokens\.bin has 2 bytes"):
        build(settings_of("build", labeller=None, formats=["sentence_pair"]))
    assert tree(out) == before


@pytest.mark.defect(13)
def test_each_format_runs_its_own_draw_from_raw_text_to_what_training_reads(
    settings_of: Callable[..., BuildSettings],
) -> None:
    from corpora.task_corpus import TaskCorpus

    out = build(settings_of("build"))
    for name, counts in {
        "sentence_pair": {1},
        "multiple_choice": {6},
        "single_text": {0},
        "unified": set(range(2, 17)),
    }.items():
        table = pq.read_table(out / name / "examples.parquet")
        options = {len(row) for row in table["options"].to_pylist()}
        assert options <= counts and (name != "unified" or len(options) > 5)
        corpus = TaskCorpus.open(out, name)
        tokenizer = Tokenizer.load(out / "tokenizer")
        rows = corpus.rows("train")
        example = corpus.render(int(rows[0]), tokenizer, 100)
        assert (example.input_ids == tokenizer.sentinel(0)).sum() == 1
        assert 0 <= example.label < len(corpus.label_words)
