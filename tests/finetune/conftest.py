"""Small tasks of every format on made sentences, and pre-trained prompts of the small random backbone."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from corpora.common.rng import generator

if TYPE_CHECKING:
    from finetune.settings import FewshotSettings

PROMPT_LEN = 4
CHOICE = "{options} ? The correct one is <X>"
TASKS: dict[str, dict[str, Any]] = {
    "mood": {
        "format": "single_text",
        "verbalizer": ["bad", "good"],
        "pattern": "{text} <X>",
        "hard": "{text} It was <X> .",
        "unified": f"{{text}} ? {CHOICE}",
    },
    "pair": {
        "format": "sentence_pair",
        "verbalizer": ["no", "maybe", "yes"],
        "pattern": "{one} <X> {two}",
        "hard": "{two} ? <X> . {one}",
        "unified": f"{{two}} ? {{one}} . {CHOICE}",
        "also": ["macro_f1"],
    },
    "quiz": {
        "format": "multiple_choice",
        "pattern": f"{{q}} ? {CHOICE}",
        "hard": f"{{q}} question: ? {CHOICE}",
        "max_options": 4,
    },
    "ten": {
        "format": "unified",
        "verbalizer": ["boat", "water", "rose", "seed", "bread", "soup", "train", "track", "river", "garden"],
        "unified": f"{{text}} ? {CHOICE}",
        "hard": f"{{text}} question: ? {CHOICE}",
    },
}


def made_rows(name: str, sentences: Sequence[str], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` rows of a made task; the texts of different seeds differ."""
    rng = generator(seed, "made task", name)
    rows = []
    for i in range(n):
        one, two, *others = (f"{sentences[j]} {i} {seed}" for j in rng.permutation(len(sentences))[:6])
        if name == "mood":
            label = i % 2
            rows.append({"text": f"{one} {('bad', 'good')[label]}", "label": label})
        elif name == "pair":
            rows.append({"one": one, "two": two, "label": ("no", "maybe", "yes")[i % 3]})
        elif name == "quiz":
            options = others[: 2 + i % 3]
            rows.append({"q": one, "options": options, "label": i % len(options)})
        else:
            rows.append({"text": one, "label": i % 10})
    return rows


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory, pocket_docs: list[list[str]]) -> dict[str, str]:
    """Task name -> its YAML file, with train.jsonl (60 rows; `ten`: 80) and test.jsonl (13 rows) beside it."""
    root = tmp_path_factory.mktemp("tasks")
    sentences = [sentence for document in pocket_docs[:20] for sentence in document]
    files = {}
    for name, values in TASKS.items():
        folder = root / name
        folder.mkdir()
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        for part, n, seed in (("train", 80 if name == "ten" else 60, 1), ("test", 13, 2)):
            rows = made_rows(name, sentences, n, seed)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
        files[name] = str(folder / f"{name}.yaml")
    return files


@pytest.fixture(scope="session")
def prompts_dir(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> Path:
    """A folder with a made `pre-trained` prompt of every format for the small backbone."""
    import torch

    from corpora.formats import FORMATS
    from pretrain.artifact import PromptInfo, save_prompt
    from pretrain.backbone import load_backbone

    backbone = load_backbone(str(backbone_dir))
    root = tmp_path_factory.mktemp("pretrained")
    for number, name in enumerate(FORMATS):
        noise = torch.from_numpy(
            generator(number, "made prompt").standard_normal((PROMPT_LEN, backbone.d_model))
        )
        info = PromptInfo(
            format=name,
            backbone=backbone.name,
            backbone_fingerprint=backbone.fingerprint,
            tokenizer_fingerprint=backbone.tokenizer().fingerprint,
            embedding_rms=backbone.embedding_rms,
            corpus_manifest=None,
            step=1,
            learning_rate=0.1,
            seed=number,
            dev_score=None,
            licence=None,
            task=None,
        )
        save_prompt(root / name, (noise * backbone.embedding_rms).float(), info)
    return root


@pytest.fixture
def small_run(tmp_path: Path, backbone_dir: Path, prompts_dir: Path, task_files: dict[str, str]) -> Any:
    """Makes settings of a run that takes seconds; keyword arguments change them."""

    from finetune.settings import FewshotSettings

    def make(**changes: Any) -> FewshotSettings:
        values: dict[str, Any] = {
            "out": str(tmp_path / "run"),
            "backbone": str(backbone_dir),
            "lm_backbone": str(backbone_dir),
            "prompts": str(prompts_dir),
            "tasks": [task_files["mood"]],
            "seeds": [0, 1],
            "shots": 12,
            "dev_shots": 12,
            "shots_per_label": 2,
            "epochs": 3,
            "batch_size": 8,
            "eval_every": 2,
            "learning_rates": [0.1, 1.0],
            "ft_learning_rates": [1e-3],
            "prompt_len": PROMPT_LEN,
            "device": "cpu",
            "dtype": "float32",
        }
        return FewshotSettings(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def ft_trials() -> Any:
    """Makes a trial of full tuning for each learning rate, of the first task and seed of some settings."""
    from finetune.methods import rows_for
    from finetune.workshop import Cell, Workshop

    def make(settings: FewshotSettings) -> list[Any]:
        workshop = Workshop(settings)
        name = settings.tasks[0]
        (row,) = rows_for(workshop.task(name), ("ft",))
        seed, shots = settings.seeds[0], settings.all_shots[0]
        return [workshop.trial(Cell(name, shots, row, seed, rate)) for rate in settings.rates("ft")]

    return make


@pytest.fixture
def as_its_owner() -> Callable[[], None]:
    """For `preexec_fn`: what folders forbid their owner is forbidden to the command, even where root runs the tests."""
    libc = ctypes.CDLL(None)
    drop_from_bounding_set, may_write_anywhere = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE

    def give_up() -> None:
        libc.prctl(drop_from_bounding_set, may_write_anywhere, 0, 0, 0)

    return give_up


MEASURED = ("seconds", "test_seconds", "peak_bytes")  # of a row; they differ from run to run


@pytest.fixture(scope="session")
def read_rows() -> Callable[[str | Path], list[dict[str, Any]]]:
    """Reads the rows of a run."""

    def read(out: str | Path) -> list[dict[str, Any]]:
        path = Path(out) / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


@pytest.fixture(scope="session")
def comparable(read_rows: Any) -> Callable[[str | Path], dict[str, dict[str, Any]]]:
    """Reads the rows of a run by cell, without what was measured."""

    def read(out: str | Path) -> dict[str, dict[str, Any]]:
        return {row["cell"]: {k: v for k, v in row.items() if k not in MEASURED} for row in read_rows(out)}

    return read
