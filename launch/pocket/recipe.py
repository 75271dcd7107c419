"""Makes the shipped backbones: `python -m launch.pocket.recipe OUT` writes the world's text, then trains as backbone.yaml says.

OUT/world/          documents, pages (cloze records, easy ones first) and some of them as plain text
OUT/vocabulary/     a sentencepiece vocabulary
OUT/first/          what the first course of pages makes, from scratch
OUT/second/         the second course, from those weights
OUT/backbone/       the pocket backbone: the third course, from those
OUT/backbone_lm/    its LM-adapted copy
"""

from __future__ import annotations

import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError
from corpora.common.files import atomic_folder, dump_json, read_json, write_text_atomic
from corpora.common.progress import say
from corpora.common.settings import make_settings, read_yaml
from launch.pocket.pages import as_text, instructions, pages, write_pages, write_records
from launch.pocket.probes import probe_pages
from launch.pocket.world import HERE, words, write_documents

RECIPE = HERE / "backbone.yaml"
LOOK_WORDS = "The correct one is This was what right near with and the in but while"
SHIPPED = ("model.safetensors", "config.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")
COURSE_OF = {  # stage -> (course of its pages, stage whose weights it starts from)
    "first": ("first", None),
    "second": ("second", "first"),
    "backbone": ("third", "second"),
}
STAGES = ("world", "first", "second", "backbone", "lm_adapted")


def write_world(out: Path, recipe: dict[str, Any]) -> None:
    """Write the text that the backbone is trained on, unless it is there."""
    world, folder = recipe["world"], out / "world"
    if (folder / "pages.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder / "documents.jsonl", world["documents"], world["seed"])
    for course, n in world["pages"].items():
        write_pages(folder / f"{course}.jsonl", n, world["seed"], course)
    found = probe_pages(100)
    for name in world["probes"]:
        write_records(probe_file(folder, name), found[name])
    n = world["pages"]["first"]
    chosen = islice(pages(n, world["seed"]), 0, None, n // world["pages_as_text"])
    # sentencepiece makes a piece of what stands in two surroundings: every word on its own, with and without a full stop.
    write_text_atomic(
        folder / "words.txt",
        "\n".join(f"{word} {word}. {word}? {word} {word}" for word in every_word()) + "\n",
    )
    write_text_atomic(folder / "pages.txt", "\n\n".join(as_text(page) for page in chosen) + "\n")


def probe_file(folder: Path, name: str) -> Path:
    """Where the pages of a probe lie, which stand for an ability while a backbone is trained."""
    return folder / f"{name.replace(' ', '_')}.jsonl"


def every_word() -> list[str]:
    """Every word of the world, its questions and its looks."""
    lists = words()
    groups = [
        lists.places,
        *lists.topics.values(),
        lists.names,
        lists.verbs,
        *lists.of_things,
        *lists.of_people,
    ]
    groups += [lists.levels, ["no", "yes", *LOOK_WORDS.split()]]
    groups += [
        sentence.split() for look in instructions().values() for kind in look.values() for sentence in kind
    ]
    return sorted({word for group in groups for word in group})


def train_settings(out: Path, recipe: dict[str, Any], stage: str) -> Any:
    """The settings of one of the four `ppt backbone train` jobs."""
    from pretrain.backbone_settings import BackboneTrainSettings

    world = out / "world"
    documents = str(world / "documents.jsonl")
    probes = [str(probe_file(world, name)) for name in recipe["world"]["probes"]]
    if stage in COURSE_OF:
        course, before = COURSE_OF[stage]
        places: dict[str, Any] = {
            "out": str(out / stage),
            "text": [documents],
            "cloze": [str(world / f"{course}.jsonl")],
        }
        if before is None:
            places["tokenizer"] = str(out / "vocabulary")
        else:
            places |= {"init": str(out / before), "eval_cloze": probes}
    else:
        places = {
            "out": str(out / "backbone_lm"),
            "init": str(out / "backbone"),
            "text": [documents, str(world / "pages.txt")],
        }
    values = {**recipe[stage], **places}
    return make_settings(BackboneTrainSettings, values, f"{RECIPE} {stage}")


def make(out: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Run the recipe, or some of its stages; what is finished is not done again."""
    from pretrain.backbone_training import train_backbone
    from pretrain.vocabulary import train_vocabulary

    unknown = ", ".join(sorted(set(stages) - set(STAGES)))
    if unknown:
        raise UserError(f"no stage {unknown}; the stages are {', '.join(STAGES)}, and ship alone")
    recipe = read_yaml(RECIPE)
    if "world" in stages:
        say("writing the world's text")
        write_world(out, recipe)
        if not (out / "vocabulary").exists():
            text = [str(out / "world" / "words.txt")]
            train_vocabulary(text, recipe["world"]["vocabulary"], out / "vocabulary", "en")
    for stage in STAGES[1:]:
        if stage in stages:
            train_backbone(train_settings(out, recipe, stage))


def ship(out: Path, to: Path = HERE) -> None:
    """Copy what the package needs of a finished run; its manifests then name files relative to the run's folder."""
    for name in ("backbone", "backbone_lm"):
        manifest = dump_json(read_json(out / name / "manifest.json"))
        with atomic_folder(to / name, replace=True) as partial:
            for file in SHIPPED:
                if (out / name / file).exists():
                    shutil.copyfile(out / name / file, partial / file)
            write_text_atomic(partial / "manifest.json", manifest.replace(f"{out}/", ""))


if __name__ == "__main__":
    if sys.argv[2:] == ["ship"]:
        ship(Path(sys.argv[1]))
    else:
        make(Path(sys.argv[1]), tuple(sys.argv[2:]) or STAGES)
