from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from corpora.build import build
from corpora.build_settings import BuildSettings
from corpora.card import write_card
from corpora.common.errors import UserError
from corpora.common.files import hash_file, read_json, write_json
from corpora.formats import FORMATS


@pytest.fixture(scope="module")
def carded(build_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "corpora"
    shutil.copytree(build_dir, folder)
    write_card(folder)
    return folder


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """The header's values and the Markdown below it."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_header_is_what_the_hub_reads(carded: Path) -> None:
    header, _ = read_card(carded)
    assert header["language"] == ["en"] and header["license"] == "unknown"
    assert header["task_categories"] == ["multiple-choice", "text-classification"]
    examples = sum(sum(read_json(carded / name / "manifest.json")["examples"].values()) for name in FORMATS)
    assert 1_000 < examples < 10_000 and header["size_categories"] == ["1K<n<10K"]
    assert [one["config_name"] for one in header["configs"]] == list(FORMATS)
    assert all((carded / one["data_files"][0]["path"]).is_file() for one in header["configs"])


def test_every_corpus_has_a_section_with_its_balance_and_an_example(carded: Path) -> None:
    _, text = read_card(carded)
    sections = dict(zip(*[iter(re.split(r"^## (.*)$", text, flags=re.M)[1:])] * 2, strict=True))
    for name in FORMATS:
        manifest = read_json(carded / name / "manifest.json")
        for word in manifest["label_words"]:
            row = rf"\| {word} +\| +{manifest['labels']['train'][word]:,} \|"
            assert re.search(row, sections[name])
        assert f"`{manifest['pattern']}`" in sections[name]
        example = re.search(r"```text\n(.*?)```", sections[name], flags=re.S)
        assert example and example[1].count("<X> = ") == 1
        for reason, count in manifest["dropped"].items():
            assert f"- {count:,} {reason}\n" in sections[name]
    assert re.search(
        r"- The labels of `single_text` are a classifier's guesses\. On \d+ reviews held out", text
    )


def test_hashes_and_sources_are_those_of_the_files(carded: Path, text_file: Path) -> None:
    _, text = read_card(carded)
    for path in ("manifest.json", "store/manifest.json", "unified/manifest.json", "unified/examples.parquet"):
        assert re.search(rf"\| {path} +\| {hash_file(carded / path)} \|", text)
    size = f"{text_file.stat().st_size:,}"
    assert re.search(rf"\| documents.txt \| {size} +\| {hash_file(text_file)} \|", text)


def test_settings_are_the_manifests_and_no_path_is_told(carded: Path) -> None:
    _, text = read_card(carded)
    for name, value in (("seed", "0"), ("balance", "true"), ("unit", "paragraphs"), ("validation", "0.05")):
        assert re.search(rf"\| {name} +\| {value} +\|", text)
    assert str(carded.parent) not in text


def test_the_lines_that_load_it_work_as_they_stand(carded: Path) -> None:
    _, text = read_card(carded)
    code = re.search(r"```python\n(.*?)```", text, flags=re.S)
    assert code
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=carded, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"<extra_id_0>.* -> (no|maybe|yes)\n", done.stdout)


def test_equal_builds_have_equal_cards_wherever_they_are_and_whoever_made_them(
    settings_of: Callable[..., BuildSettings], tmp_path: Path
) -> None:
    texts = []
    for out, workers in (("one", 1), ("two", 2)):
        folder = build(settings_of(out, workers=workers, formats=["sentence_pair", "single_text"]))
        write_card(folder)
        write_card(folder)  # once more changes nothing
        texts.append((folder / "README.md").read_bytes())
    assert texts[0] == texts[1]


def test_what_was_filtered_is_told_and_what_was_not_looked_for_is_a_limit(
    carded: Path, tmp_path: Path
) -> None:
    _, before = read_card(carded)
    assert (
        "Repeated documents were not looked for." in before
        and "was not compared with the test sets" in before
    )
    shutil.copytree(carded, tmp_path / "filtered")
    path = tmp_path / "filtered" / "store" / "manifest.json"
    there = read_json(path)
    counts = {
        "dropped": there["dropped"] | {"near duplicates": 12},
        "duplicates": {"counts": {"near duplicates": 12}, "examples": {}},
        "decontamination": {"documents": 3, "sets": {"sst2": {"rows": 9, "found": [1, 2, 5]}}},
    }
    write_json(path, there | counts)
    for name in FORMATS:  # drawn from this store
        manifest = tmp_path / "filtered" / name / "manifest.json"
        write_json(manifest, read_json(manifest) | {"store": hash_file(path)})
    write_card(tmp_path / "filtered")
    _, text = read_card(tmp_path / "filtered")
    assert re.search(r"\| near duplicates +\| 12 ", text) and "rows of sst2 found" in text
    assert "were not looked for" not in text and "was not compared" not in text


def test_a_folder_that_is_no_finished_build_gets_no_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no build"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()
