"""The paper's tables as presets: each loads, and plans every cell it should on small sets in the layout of real ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import UserError
from corpora.common.rng import generator
from finetune.fewshot import run_fewshot
from finetune.plan import plan
from finetune.report import report
from finetune.settings import FewshotSettings
from finetune.task import Task, shipped_tasks
from finetune.workshop import Workshop
from launch.launcher import TABLES, fewshot_settings
from launch.pocket.tasks import ALL_TASKS, write_tasks

PROMPT_LEN = 4
N_TRAIN = 300
N_OF = {"cb": 250}  # as the real set
WORDS = ["the", "river", "old", "train", "bridge", "small", "garden", "found", "near", "bread", "water", "boat"]  # fmt: skip


def made_row(task: Task, i: int, part: str) -> dict[str, Any]:
    """A row in the columns that the task's local files have."""
    rng = generator(i, "made row", task.name, part)
    row: dict[str, Any] = {
        task.local.fields.get(name, name): " ".join(rng.choice(WORDS, 5)) + f" {part} {i}"
        for name in task.field_names()
    }
    if task.own_options:
        assert isinstance(task.local.options, str)
        row[task.local.options] = [f"{word} {i}" for word in WORDS[:4]]
        row[task.local.label] = i % 4
    else:
        row[task.local.label] = task.labels[i % len(task.labels)]
    return row


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every shipped task's set, small and made up, where `ppt fewshot` looks for it."""
    root = tmp_path_factory.mktemp("data")
    for name in shipped_tasks():
        task = Task.load(name)
        folder = root / task.language / (task.local.folder or name)
        folder.mkdir(parents=True)
        parts = {**dict.fromkeys(task.local.train, "train"), (task.local.test or ("test",))[0]: "test"}
        for stem, part in parts.items():
            n = N_OF.get(name, N_TRAIN) if stem == "train" else 12
            rows = [made_row(task, i, stem if part == "train" else part) for i in range(n)]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{stem}.jsonl").write_text(text, encoding="utf-8")
    return root


def write_backbone(folder: Path, text: str) -> None:
    """A random T5 of width 16 with a vocabulary that spells every character of a text."""
    import sentencepiece
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from corpora.tokenizer import REQUIRED_PIECES, Tokenizer

    folder.mkdir()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "made"), vocab_size=600, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, required_chars="".join(REQUIRED_PIECES), character_coverage=1.0,
        hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    tokenizer = Tokenizer.load(folder / "made.model")
    tokenizer.save(folder)
    config = T5Config(
        vocab_size=tokenizer.size, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        T5ForConditionalGeneration(config).save_pretrained(folder)


def write_prompts(folder: Path, backbone: Path, prompt_len: int) -> None:
    """Made `pre-trained` prompts of every format."""
    import torch

    from corpora.formats import FORMATS
    from pretrain.artifact import PromptInfo, save_prompt
    from pretrain.backbone import load_backbone

    loaded = load_backbone(str(backbone))
    for number, name in enumerate(FORMATS):
        noise = generator(number, "made prompt").standard_normal((prompt_len, loaded.d_model))
        info = PromptInfo(
            format=name, backbone=loaded.name, backbone_fingerprint=loaded.fingerprint,
            tokenizer_fingerprint=loaded.tokenizer().fingerprint, embedding_rms=loaded.embedding_rms,
            corpus_manifest=None, step=1, learning_rate=0.1, seed=number, dev_score=None, licence=None, task=None,
        )  # fmt: skip
        save_prompt(folder / name, torch.from_numpy(noise * loaded.embedding_rms).float(), info)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Callable[..., FewshotSettings]:
    """Settings of a preset as one command gives them, on the made sets and a random backbone."""
    root = tmp_path_factory.mktemp("presets")
    tasks = [Task.load(name) for name in shipped_tasks()]
    texts = [" ".join(WORDS * 20)]
    for task in tasks:
        worded = [task, *(task.worded(wording.name) for wording in task.wordings)]
        texts += [" ".join([*one.verbalizer, *one.patterns().values()]) for one in worded]
    write_backbone(root / "backbone", "\n".join(texts) + "\n")
    write_prompts(root / "prompts", root / "backbone", PROMPT_LEN)

    def make(name: str, *overrides: str) -> FewshotSettings:
        given = {
            "backbone": root / "backbone", "lm_backbone": root / "backbone", "prompts": root / "prompts", "data": data,
            "prompt_len": PROMPT_LEN, "device": "cpu", "out": root / name,
        }  # fmt: skip
        set_here = {override.partition("=")[0] for override in overrides}
        lines = [f"{key}={value}" for key, value in given.items() if key not in set_here]
        return fewshot_settings(name, [*lines, *overrides])

    return make


SEEDS_AND_RATES = 5 * 4
CELLS = {
    "main_table": 7 * 7 * SEEDS_AND_RATES,
    "main_table_zh": 7 * 7 * SEEDS_AND_RATES,
    "many_labels": 2 * 3 * SEEDS_AND_RATES,  # Unified PPT is PPT's run
    "full_data": 7 * 3 * SEEDS_AND_RATES,
    "sample_efficiency": 2 * 3 * 4 * SEEDS_AND_RATES,
    "pilot_verbalizers": 4 * SEEDS_AND_RATES,
    "pilot_hard_prompts": (5 + 1) * SEEDS_AND_RATES,  # Vanilla PT has no hard prompt
    "pilot_initialisations": 2 * 3 * SEEDS_AND_RATES,
    "pocket_table": (6 * 7 + 2 * 6) * SEEDS_AND_RATES,
}


def test_every_preset_of_a_table_is_counted_here() -> None:
    assert sorted(path.stem for path in TABLES.glob("*.yaml")) == sorted(CELLS)


@pytest.mark.parametrize("name", sorted(set(CELLS) - {"pocket_table"}))
def test_a_preset_plans_every_cell_of_its_table(preset: Callable[..., FewshotSettings], name: str) -> None:
    settings = preset(name)
    keys = [key for job in plan(Workshop(settings)) for key in job.keys]
    assert len({key["cell"] for key in keys}) == len(keys) == CELLS[name]
    assert settings.allow_fewer and settings.skip_missing and settings.seeds == (0, 1, 2, 3, 4)
    assert {key["task"] for key in keys} == set(settings.tasks)
    if name == "sample_efficiency":
        sizes = {
            task: sorted({key["n_train"] for key in keys if key["task"] == task}) for task in settings.tasks
        }
        assert sizes == {"race_m": [32, 64, 128, 256], "cb": [32, 64, 128, 218]}
        assert {key["n_dev"] for key in keys} == {32}
    if name == "full_data":
        steps = {(key["task"], key["method"]): key["steps"] for key in keys}
        assert steps["cb", "ppt"] == 30 * 14 and steps["cb", "ft"] == 20 * 14  # 218 rows in batches of 16
        assert steps["rte", "ft"] * 2 == steps["rte", "vanilla_pt"]
        halves = {(key["n_train"], key["n_dev"]) for key in keys if key["task"] != "cb"}
        assert halves == {(150, 150), (156, 156)}  # fewer than 2 x 256 rows each; BoolQ has 312
    if name.startswith("main_table"):
        assert {key["method"] for key in keys} == set(settings.methods) and len(settings.methods) == 7
        assert {(key["n_train"], key["n_dev"]) for key in keys} == {(32, 32)}
    if name == "many_labels":
        assert {(key["task"], key["n_train"], key["n_dev"]) for key in keys} == {
            ("tnews", 120, 120), ("yahoo_answers", 80, 80),
        }  # fmt: skip


def test_the_table_of_the_pocket_world_plans_every_cell(tmp_path: Path) -> None:
    settings = fewshot_settings("pocket_table")
    assert all(Path(task).exists() for task in settings.tasks)
    write_tasks(tmp_path / "data", ALL_TASKS, 7, "test", 200, 6)
    write_prompts(tmp_path / "prompts", Path(settings.backbone), 16)
    settings = fewshot_settings(
        "pocket_table", [f"data={tmp_path / 'data'}", f"prompts={tmp_path / 'prompts'}"]
    )
    keys = [key for job in plan(Workshop(settings)) for key in job.keys]
    assert len({key["cell"] for key in keys}) == len(keys) == CELLS["pocket_table"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("pilot_verbalizers", {f"Hybrid PT (wording {w})" for w in ("first", "great terrible", "senseless", "swapped")}),
        ("many_labels", {"FT", "Vanilla PT", "PPT", "Unified PPT"}),
    ],
)  # fmt: skip
def test_a_preset_runs_from_its_name_to_its_table(
    preset: Callable[..., FewshotSettings], tmp_path: Path, name: str, lines: set[str]
) -> None:
    few = (
        "epochs=1",
        "seeds=[0]",
        "learning_rates=[0.3]",
        "ft_learning_rates=[1e-3]",
        f"out={tmp_path / 'run'}",
    )
    made = report([run_fewshot(preset(name, *few))], tmp_path / "report")
    assert made.table is not None
    assert {line[0].text for line in made.table.body} == lines
    assert not any("missing" in entry.text for line in made.table.body for entry in line)


def test_a_preset_goes_on_without_the_sets_that_are_not_there(
    preset: Callable[..., FewshotSettings], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for name in ("sst2", "cb"):
        (tmp_path / "data" / name).symlink_to(data / "en" / name)
    workshop = Workshop(preset("main_table", f"data={tmp_path / 'data'}"))
    assert {key["task"] for job in plan(workshop) for key in job.keys} == {"sst2", "cb"}
    assert set(workshop.left_out) == {"sst5", "race_m", "race_h", "boolq", "rte"}


def test_presets_of_tables_and_of_backbones_are_told_apart() -> None:
    with pytest.raises(
        UserError, match='main_tabel is neither a file nor a preset; did you mean "main_table"'
    ):
        fewshot_settings("main_tabel")
    with pytest.raises(UserError, match="t5-xxl is neither a file nor a preset"):
        fewshot_settings("t5-xxl")
    with pytest.raises(UserError, match="main_table needs a backbone: write backbone=FOLDER_OR_HUB_NAME"):
        fewshot_settings("main_table")


def test_the_words_of_every_shipped_wording_differ_from_the_tasks_own() -> None:
    for name in shipped_tasks():
        task = Task.load(name)
        worded = [task, *(task.worded(wording.name) for wording in task.wordings)]
        texts = [(one.pattern, one.hard, one.verbalizer) for one in worded]
        assert all(one != other for one, other in itertools.combinations(texts, 2)), name
