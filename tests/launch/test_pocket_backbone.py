"""The shipped pocket backbones: size, origin, abilities."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.common.errors import UserError
from corpora.common.files import read_json
from corpora.common.settings import read_yaml
from corpora.tokenizer import Tokenizer
from launch.pocket.demo import BACKBONE, LM_BACKBONE
from launch.pocket.probes import probe
from launch.pocket.recipe import RECIPE, every_word, make, train_settings

MOST_BYTES = 8_000_000


@pytest.mark.parametrize(("folder", "stage"), [(BACKBONE, "backbone"), (LM_BACKBONE, "lm_adapted")])
def test_the_shipped_weights_are_small_and_made_by_the_committed_recipe(folder: Path, stage: str) -> None:
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    manifest = read_json(folder / "manifest.json")
    made = manifest["settings"]
    asked = train_settings(Path("out"), read_yaml(RECIPE), stage).model_dump(mode="json")
    paths = {
        "text",
        "cloze",
        "eval_cloze",
        "tokenizer",
        "init",
    }  # relative to the run's folder in what is shipped
    assert {name: asked[name] for name in made if name not in paths} == {
        name: value for name, value in made.items() if name not in paths
    }
    assert manifest["save_dtype"] == asked["save_dtype"] == "bfloat16"
    assert "/tmp" not in str(manifest)


@pytest.mark.parametrize("folder", [BACKBONE, LM_BACKBONE])
def test_every_word_of_the_world_is_one_piece(folder: Path) -> None:
    tokenizer = Tokenizer.load(str(folder))
    assert [
        word for word, ids in zip(every_word(), tokenizer.encode(every_word()), strict=True) if len(ids) != 1
    ] == []


LEAST = {  # what docs/pocket.md says it knows, less the noise of 30 pages; the rest is near chance and is not promised
    "pair person": 0.9, "pair persons": 0.9, "pair apart": 0.85, "pair together": 0.5, "pair feeling": 0.9,
    "choice2 mover": 0.9, "choice2 mate": 0.9, "choice4 mover": 0.6, "choice4 mate": 0.6, "choice6 mate": 0.55,
    "choice4 stranger": 0.9, "choice2 repeat": 0.8, "words thing": 0.9, "words who": 0.7,
    "single thing": 0.9, "single human": 0.9, "single about": 0.9, "single who": 0.9,
}  # fmt: skip


def test_the_backbone_holds_its_abilities_and_leaves_a_prompt_room() -> None:
    found = probe(BACKBONE, n=30, names=tuple(LEAST))
    assert {name: told for name, (told, _) in found.items() if told < LEAST[name]} == {}
    gaps = [told - bare for told, bare in found.values()]
    assert sum(gaps) / len(gaps) > 0.2


def test_the_recipe_refuses_a_stage_that_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no stage shp; the stages are world, first, second, backbone, lm_adapted"
    ):
        make(tmp_path, ("shp",))
    assert not list(tmp_path.iterdir())
