from __future__ import annotations

import json
from pathlib import Path

import pytest

from corpora.build import build
from corpora.build_settings import BuildSettings
from corpora.common.errors import UserError
from corpora.common.files import read_json, write_json
from corpora.labeller import train
from corpora.show import as_text, describe

NOUNS = ("boat", "rose", "bread", "train", "water")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text_file: Path, tokenizer_dir: Path) -> Path:
    work = tmp_path_factory.mktemp("show")
    rows = [{"text": f"the {noun} number {i}", "label": c} for i in range(20) for c, noun in enumerate(NOUNS)]
    (work / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(work / "reviews.jsonl", work / "labeller")
    values = {
        "text": [str(text_file)],
        "tokenizer": str(tokenizer_dir),
        "out": str(work / "build"),
        "labeller": str(work / "labeller"),
    }
    return build(BuildSettings.model_validate(values))


def test_each_format_shows_label_counts_and_examples_with_the_mask(
    folder: Path, pocket_docs: list[list[str]]
) -> None:
    text = as_text(describe(folder, n=2))
    assert f"store: {len(pocket_docs)} documents" in text and "from documents.txt" in text
    for block in text.split("\n\n")[1:]:
        name, *lines = block.strip().splitlines()
        manifest = read_json(folder / name / "manifest.json")
        for line, split in zip(lines, ("train", "validation"), strict=False):
            counts = manifest["labels"][split]
            words = ", ".join(f"{word} {counts[word]}" for word in manifest["label_words"])
            assert line == f"  {split}: {manifest['examples'][split]:,} examples ({words})"
        assert len(lines) == 2 + 2 * 2
        for head, body in zip(lines[2::2], lines[3::2], strict=True):
            assert head.split()[1] in manifest["label_words"]
            assert body.count("<X>") == 1
    assert [block.split("\n")[0] for block in text.split("\n\n")[1:]] == [
        "sentence_pair",
        "multiple_choice",
        "single_text",
        "unified",
    ]


def test_a_pair_is_shown_as_its_two_texts_in_full(folder: Path, pocket_docs: list[list[str]]) -> None:
    block = as_text(describe(folder, n=3)).split("\n\n")[1]
    known = {unit for document in pocket_docs for unit in document}
    for line in block.splitlines()[4::2]:
        assert set(line.strip().split(" <X> ")) <= known


def test_the_seed_chooses_the_examples(folder: Path) -> None:
    assert describe(folder, n=3, seed=1) == describe(folder, n=3, seed=1) != describe(folder, n=3, seed=2)
    assert as_text(describe(folder, n=100_000)).count("(row ") > 1000  # more than there are is all of them


def test_a_folder_that_is_no_build_or_not_finished_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no build"):
        describe(tmp_path)
    write_json(tmp_path / "manifest.json", {"kind": "build", "format_version": 1})
    with pytest.raises(UserError, match="not finished"):
        describe(tmp_path)
