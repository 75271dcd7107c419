"""The shipped pocket backbones: size, origin, abilities."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.common.files import read_json
from corpora.common.settings import read_yaml
from corpora.tokenizer import Tokenizer
from launch.pocket.demo import BACKBONE, LM_BACKBONE
from launch.pocket.probes import probe
from launch.pocket.recipe import RECIPE, every_word, train_settings

MOST_BYTES = 8_000_000


@pytest.mark.parametrize(("folder", "stage"), [(BACKBONE, "backbone"), (LM_BACKBONE, "lm_adapted")])
def test_the_shipped_weights_are_small_and_made_by_the_committed_recipe(folder: Path, stage: str) -> None:
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    made = read_json(folder / "manifest.json")["settings"]
    asked = train_settings(Path("out"), read_yaml(RECIPE), stage).model_dump(mode="json")
    for name in (
        "shape",
        "mixture",
        "loss_weights",
        "steps",
        "batch_tokens",
        "learning_rate",
        "seed",
        "save_dtype",
    ):
        assert made[name] == asked[name], name


@pytest.mark.parametrize("folder", [BACKBONE, LM_BACKBONE])
def test_every_word_of_the_world_is_one_piece(folder: Path) -> None:
    tokenizer = Tokenizer.load(str(folder))
    assert [
        word for word, ids in zip(every_word(), tokenizer.encode(every_word()), strict=True) if len(ids) != 1
    ] == []


def test_the_backbone_holds_the_abilities_and_leaves_a_prompt_room() -> None:
    found = probe(BACKBONE, n=30)
    chance = {"pair": 0.5, "choice2": 0.5, "choice4": 0.25, "choice6": 0.17, "words": 0.2, "single": 0.2}
    for look, by_chance in chance.items():
        told = [with_it for name, (with_it, _) in found.items() if name.startswith(look + " ")]
        assert sum(told) / len(told) > by_chance + 0.2, look
    bare = [without for _, without in found.values()]
    told = [with_it for with_it, _ in found.values()]
    assert sum(told) / len(told) > sum(bare) / len(bare) + 0.05
