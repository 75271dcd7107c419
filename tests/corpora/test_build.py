from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from corpora.build import build
from corpora.build_settings import BuildSettings, LabelSettings
from corpora.common.errors import UserError
from corpora.common.files import read_json, write_json
from corpora.formats import FORMATS
from corpora.label_training import train
from corpora.make_corpora import apply_labeller
from corpora.store import SentenceStore
from corpora.tokenizer import Tokenizer

Tree = Callable[[Path], dict[str, str]]  # every file of a folder and the hash of its bytes


def test_a_build_holds_store_tokenizer_labeller_and_every_format(
    settings_of: Callable[..., BuildSettings], tokenizer: Tokenizer, pocket_docs: list[list[str]]
) -> None:
    out = build(settings_of("build"))
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "manifest.json", "store", "tokenizer", "labeller", *FORMATS}
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
    tree: Tree,
) -> None:
    one = tree(build(settings_of("one")))
    assert tree(build(settings_of("two", workers=2))) == one
    assert tree(build(settings_of("again"))) == one
    assert tree(build(settings_of("again", workers=2))) == one  # nothing to do
    assert tree(build(settings_of("seed", seed=1))) != one


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
    settings_of: Callable[..., BuildSettings], tree: Tree, tmp_path: Path, text_file: Path
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
    lax = build(settings_of("strict", text=[str(path)]))  # parts that were made are not made again
    assert read_json(lax / "store" / "manifest.json")["dropped"] == manifest["dropped"]


def test_strict_refuses_a_finished_store_that_left_bad_records_out_with_the_line_that_reading_gives(
    settings_of: Callable[..., BuildSettings], tree: Tree, tmp_path: Path, pocket_docs: list[list[str]]
) -> None:
    lines = [json.dumps({"text": "\n".join(document)}) for document in pocket_docs]
    good, bad, worse = (tmp_path / name for name in ("z good.jsonl", "m bad.jsonl", "a.jsonl"))
    good.write_text("\n".join(lines))
    bad.write_text("\n".join([*lines[:11], "{broken", '{"text": ""}']))
    worse.write_text("5\n")
    shared = {"text": [str(good), str(bad), str(worse)], "formats": ["sentence_pair"], "labeller": None}
    with pytest.raises(UserError) as fresh:
        build(settings_of("fresh", strict=True, **shared))
    assert str(fresh.value) == f"{bad} line 12: not valid JSON; --strict allows no such record"
    out = build(settings_of("build", **shared))
    before = tree(out)
    with pytest.raises(UserError) as finished:
        build(settings_of("build", strict=True, **shared))
    assert (str(finished.value), finished.value.exit_code) == (str(fresh.value), 2)
    assert tree(out) == before
    build(settings_of("good", **shared | {"text": [str(good)]}))
    build(settings_of("good", strict=True, **shared | {"text": [str(good)]}))


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
    settings_of: Callable[..., BuildSettings], tree: Tree, labeller_dir: Path
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
    tree: Tree,
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


def test_labels_are_kept_by_what_was_asked_for_and_the_corpus_says_so(
    settings_of: Callable[..., BuildSettings], tmp_path: Path, tokenizer_dir: Path, labeller_dir: Path
) -> None:
    tokens = tmp_path / "tokens"
    train(labeller_dir.parent / "reviews.jsonl", tokens, tokenizer=tokenizer_dir)
    with pytest.raises(UserError, match="2 thresholds for the 5 classes"):
        build(settings_of("build", labeller=str(tokens), thresholds=[0.5, 0.5]))
    assert not (tmp_path / "build").exists()  # before the pass
    settings = {"labeller": str(tokens), "formats": ["single_text"]}
    out = build(settings_of("build", **settings, thresholds=[0.3] * 5, balance=False))
    about = read_json(out / "single_text" / "manifest.json")
    assert about["thresholds"] == [0.3] * 5 and about["keep"] is None
    assert about["labeller"]["reads"] == "tokens" and about["labeller"]["agreement"]["n_test"] == 5
    apply_labeller(out, str(tokens), LabelSettings(keep=0.5))
    about = read_json(out / "single_text" / "manifest.json")
    assert about["thresholds"] is None and about["keep"] == 0.5
    bare = build(settings_of("bare", **settings, keep=0.5, keep_text=False))  # token ids are enough
    assert read_json(bare / "single_text" / "manifest.json")["examples"] == about["examples"]
    other = read_json(tokens / "manifest.json")
    other["tokenizer"]["fingerprint"] = "f" * 64
    write_json(tokens / "manifest.json", other)
    with pytest.raises(UserError, match=r"reads token ids of .* .fingerprint ffffffffffff"):
        build(settings_of("other", **settings))
    assert not (tmp_path / "other").exists()
