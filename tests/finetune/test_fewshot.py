"""The few-shot job end to end on a random backbone of a few thousand weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from corpora.common.errors import UserError
from finetune.fewshot import run_fewshot
from finetune.methods import METHODS, rows_for
from finetune.plan import plan
from finetune.settings import FewshotSettings
from finetune.task import Task
from finetune.workshop import Workshop


@pytest.mark.defect(4)
def test_test_rows_are_scored_once_for_each_chosen_cell_and_never_while_tuning(
    small_run: Any, monkeypatch: pytest.MonkeyPatch, read_rows: Any
) -> None:
    """The released code scores test at every dev evaluation, for every rate."""
    import finetune.choices
    import finetune.full_tuning
    import finetune.full_weights
    import finetune.tune

    scored: dict[str, list[bytes]] = {"tuning": [], "end": []}

    def counting(when: str, real: Any) -> Any:
        def score(backbone: Any, sets: Any, *rest: Any, **options: Any) -> Any:
            scored[when] += [item.input_ids.tobytes() for one in sets for item in one.items]
            return real(backbone, sets, *rest, **options)

        return score

    for module, when in (
        (finetune.tune, "tuning"),
        (finetune.full_weights, "tuning"),
        (finetune.choices, "end"),
    ):
        monkeypatch.setattr(module, "score_sets", counting(when, module.score_sets))
    score_best = finetune.full_tuning.FullTuner.score_best

    def at_the_end(tuner: Any, *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(finetune.full_weights, "score_sets", finetune.choices.score_sets)
            return score_best(tuner, *arguments)

    monkeypatch.setattr(finetune.full_tuning.FullTuner, "score_best", at_the_end)
    settings = small_run(methods=["ft", "vanilla_pt", "ppt"], processes=1)
    rows = read_rows(run_fewshot(settings))
    chosen = [row for row in rows if row["chosen"]]
    assert len(chosen) == 3 * len(settings.seeds) < len(rows)
    assert len(scored["end"]) == sum(row["n_test"] for row in chosen)
    assert scored["tuning"] and not set(scored["tuning"]) & set(scored["end"])


@pytest.mark.defect(11)
def test_every_method_on_every_format_gives_chosen_rows_with_one_test_score(
    small_run: Any, task_files: dict[str, str], read_rows: Any
) -> None:
    grids = {name: [0.1] for name, method in METHODS.items() if method.trains == "prompt" and name != "ppt"}
    settings = small_run(tasks=list(task_files.values()), learning_rates_of=grids, epochs=2)
    out = run_fewshot(settings)
    rows = read_rows(out)
    expected = {(task, method) for task in task_files for method in METHODS} - {("ten", "unified_ppt")}
    assert {(row["task"], row["method"]) for row in rows} == expected
    for task, method in expected:
        for seed in settings.seeds:
            grid = [row for row in rows if (row["task"], row["method"], row["seed"]) == (task, method, seed)]
            assert len(grid) == len(settings.rates(method))
            chosen = [row for row in grid if row["chosen"]]
            assert len(chosen) == 1 and all(("test" in row) == row["chosen"] for row in grid)
            best = min(grid, key=lambda row: (-row["dev"], row["dev_loss"], row["learning_rate"]))
            assert chosen == [best]
            assert 0 <= best["test"] <= 1 and 0 <= best["test_vocabulary"] <= best["test"] + 1e-9
            assert ("test_f1" in best) == (task == "pair")
            assert 0.1 <= best["test_chance"] <= 0.5
            lines = (out / "predictions" / f"{best['cell']}.jsonl").read_text().splitlines()
            assert len(lines) == best["n_test"] == 13
            found = [json.loads(line) for line in lines]
            most = max(Counter(f["label"] for f in found).values())
            assert best["test_majority"] == pytest.approx(most / 13)
            assert best["test"] == pytest.approx(sum(f["label"] == f["prediction"] for f in found) / 13)
    for row in rows:
        curve = [
            json.loads(line) for line in (out / "curves" / f"{row['cell']}.jsonl").read_text().splitlines()
        ]
        assert curve[0]["step"] == 0 and curve[-1]["step"] == row["steps"]
        assert row["dev"] == max(point["dev"] for point in curve)
    ten = [row for row in rows if row["task"] == "ten"]
    assert {row["n_train"] for row in ten} == {20} and {row["n_dev"] for row in ten} == {20}
    assert {tuple(row["fills"]) for row in ten if row["method"] == "ppt"} == {("unified_ppt",)}
    assert {row["n_train"] for row in rows if row["task"] != "ten"} == {12}


def test_a_chosen_prompt_on_disk_is_the_one_that_was_scored_and_holds_its_task(
    small_run: Any, read_rows: Any
) -> None:
    from pretrain.artifact import load_prompt, prompt_fingerprint

    out = run_fewshot(small_run(methods=["ft", "hybrid_ppt"], seeds=[0]))
    rows = [row for row in read_rows(out) if row["chosen"]]
    row = next(row for row in rows if row["method"] == "hybrid_ppt")
    prompt_PD, info = load_prompt(out / "prompts" / row["cell"])
    assert prompt_fingerprint(prompt_PD) == row["prompt"]
    assert info.task["hard"] == row["hard_prompt"] and info.task["used_pattern"] == "hard"
    assert (info.step, info.seed, info.dev_score) == (row["step"], row["seed"], row["dev"])
    assert Task.model_validate(info.task).verbalizer == ("bad", "good")  # enough to predict with
    assert not any((out / "prompts" / r["cell"]).exists() for r in rows if r["method"] == "ft")


def test_a_run_started_again_skips_what_is_done_and_gives_the_same_rows(
    small_run: Any, read_rows: Any, comparable: Any
) -> None:
    settings = small_run(methods=["ft", "vanilla_pt", "lm_adaption", "ppt"], prompts_together=4)
    out = run_fewshot(settings)
    path = out / "results.jsonl"
    whole = comparable(out)
    before = path.read_bytes()
    run_fewshot(settings)
    assert path.read_bytes() == before
    kept = before.splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:5]) + kept[5][:30])  # as a kill leaves it
    run_fewshot(settings)
    again = comparable(out)
    assert list(again) == list(whole)  # in other company than before, so to rounding
    for cell, row in whole.items():
        assert (again[cell]["step"], again[cell]["chosen"]) == (row["step"], row["chosen"])
        assert again[cell]["dev_loss"] == pytest.approx(row["dev_loss"], abs=1e-4)


def test_a_wider_grid_runs_only_what_is_new_and_chooses_among_all(small_run: Any, read_rows: Any) -> None:
    out = run_fewshot(small_run(methods=["vanilla_pt"], learning_rates=[0.1]))
    old = {row["cell"] for row in read_rows(out)}
    wide = run_fewshot(small_run(methods=["vanilla_pt"], learning_rates=[0.1, 0.5, 2.0]))
    rows = read_rows(wide)
    assert wide == out and len(rows) == 6 and old < {row["cell"] for row in rows}
    for seed in (0, 1):
        grid = [row for row in rows if row["seed"] == seed]
        (chosen,) = (row for row in grid if row["chosen"])
        assert chosen["dev"] == max(row["dev"] for row in grid)
        assert all(("test" in row) == row["chosen"] for row in grid)


def test_rows_of_another_protocol_are_not_added_to_a_run(small_run: Any) -> None:
    settings = small_run(methods=["vanilla_pt"], seeds=[0], epochs=1)
    out = run_fewshot(settings)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r'rows of mood with "epochs" 1, now it is 2; give this run a folder of its own'
    ):
        run_fewshot(small_run(methods=["vanilla_pt"], seeds=[0], epochs=2))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def edited(task_files: dict[str, str], folder: Path, **changes: Any) -> str:
    """The task `mood` with other keys, under its own name."""
    folder.mkdir()
    for part in ("train", "test"):
        source = Path(task_files["mood"]).with_name(f"{part}.jsonl")
        (folder / f"{part}.jsonl").write_bytes(source.read_bytes())
    values = {**yaml.safe_load(Path(task_files["mood"]).read_text()), **changes}
    (folder / "mood.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "mood.yaml")


@pytest.mark.parametrize(("name", "value"), [("max_tokens", 24), ("shorten", ["text"])])
def test_a_task_whose_texts_are_cut_otherwise_has_other_cells_and_wants_a_folder_of_its_own(
    small_run: Any, task_files: dict[str, str], tmp_path: Path, name: str, value: Any
) -> None:
    changes = {"methods": ["vanilla_pt"], "seeds": [0], "learning_rates": [0.1], "epochs": 1}
    run_fewshot(small_run(**changes))
    other = small_run(**changes, tasks=[edited(task_files, tmp_path / "edited", **{name: value})])
    cells = {key["cell"] for settings in (small_run(**changes), other) for key in keys_of(settings)}
    assert len(cells) == 2
    with pytest.raises(UserError, match=f'rows of mood with "{name}" .*, now it is .*folder of its own'):
        run_fewshot(other)


def keys_of(settings: FewshotSettings) -> list[dict[str, Any]]:
    return [key for choice in plan(Workshop(settings)) for key in choice.keys]


def test_another_tokenizer_beside_the_same_weights_makes_other_cells(
    small_run: Any, backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run(methods=["vanilla_pt"], seeds=[0], learning_rates=[0.1])
    (key,) = keys_of(settings)
    workshop = Workshop(settings)
    assert key["tokenizer_fingerprint"] == workshop.tokenizer("main").fingerprint
    monkeypatch.setitem(vars(workshop.tokenizer("main")), "fingerprint", "other")
    (other,) = (key for choice in plan(workshop) for key in choice.keys)
    assert other["backbone_fingerprint"] == key["backbone_fingerprint"] and other["cell"] != key["cell"]


def test_what_one_task_has_otherwise_changes_its_own_cells_only(
    small_run: Any, task_files: dict[str, str]
) -> None:
    changes = {
        "tasks": [task_files["mood"], task_files["pair"]],
        "methods": ["ft", "vanilla_pt"],
        "seeds": [0],
    }
    of_task = {"mood": {"epochs": 4, "ft_epochs": 2, "eval_every": 3, "dev_shots": 6}}
    before, after = (
        {
            (key["task"], key["method"], key["learning_rate"]): key
            for key in keys_of(small_run(**changes, **more))
        }
        for more in ({}, {"of_task": of_task})
    )
    assert {place for place in before if before[place]["cell"] != after[place]["cell"]} == {
        place for place in before if place[0] == "mood"
    }
    for (task, method, _), key in after.items():
        found = {name: key["protocol"][name] for name in ("epochs", "eval_every", "dev_shots")}
        own = {"epochs": 2 if method == "ft" else 4, "eval_every": 3, "dev_shots": 6}
        assert found == (own if task == "mood" else {"epochs": 3, "eval_every": 2, "dev_shots": 12})


def test_a_run_goes_on_where_another_task_is_added_with_epochs_of_its_own_but_not_where_one_is_changed(
    small_run: Any, task_files: dict[str, str], read_rows: Any
) -> None:
    changes: dict[str, Any] = {
        "methods": ["ft", "vanilla_pt"], "seeds": [0], "learning_rates": [0.1], "epochs": 1, "of_task": {"mood": {"ft_epochs": 2}}
    }  # fmt: skip
    first = read_rows(run_fewshot(small_run(**changes)))
    both = {"tasks": [task_files["mood"], task_files["pair"]]}
    more = {**changes, **both, "of_task": {**changes["of_task"], "pair": {"epochs": 2, "dev_shots": 6}}}
    rows = read_rows(run_fewshot(small_run(**more)))
    assert len(rows) == 4 and rows[:2] == first
    for own, name in (({"epochs": 3}, "epochs"), ({"ft_epochs": 2, "dev_shots": 6}, "dev_shots")):
        with pytest.raises(UserError, match=f'rows of mood with "{name}"'):
            run_fewshot(small_run(**{**more, "of_task": {**more["of_task"], "mood": own}}))


@pytest.mark.defect(11)
def test_a_curve_over_numbers_of_examples_has_a_row_for_each(small_run: Any, read_rows: Any) -> None:
    out = run_fewshot(small_run(methods=["vanilla_pt"], seeds=[0], learning_rates=[0.1], shots=[4, 8, 16]))
    rows = read_rows(out)
    assert [row["shots"] for row in rows] == [4, 8, 16] and {row["n_dev"] for row in rows} == {12}
    assert [row["steps"] for row in rows] == [3, 3, 6]
    curve = [4, 100, 200]  # dev takes 12 of 60 rows: what asks for more than 48 is one and the same run
    out = run_fewshot(
        small_run(methods=["vanilla_pt"], seeds=[0], learning_rates=[0.1], shots=curve, allow_fewer=True)
    )
    assert [row["shots"] for row in read_rows(out)] == [4, 8, 16, 48]


def test_prompts_are_tuned_on_weights_of_eight_bits_and_full_tuning_is_not(
    small_run: Any, read_rows: Any
) -> None:
    changes = {"methods": ["ft", "vanilla_pt"], "seeds": [0], "learning_rates": [0.1], "weights": "int8"}
    settings = small_run(**changes)
    held = Workshop(settings).net("main").model.encoder.block[0].layer[0].SelfAttention.q
    assert any(buffer.dtype == torch.uint8 for buffer in (*held.buffers(), *held.parameters()))
    rows = read_rows(run_fewshot(settings))
    assert {row["method"] for row in rows} == {"ft", "vanilla_pt"}
    assert {row["protocol"]["weights"] for row in rows} == {"int8"}


def test_unified_ppt_is_not_run_twice_where_it_is_the_same_run(task_files: dict[str, str]) -> None:
    ten, mood = Task.load(task_files["ten"]), Task.load(task_files["mood"])
    rows = {row.method: row for row in rows_for(ten, tuple(METHODS))}
    assert "unified_ppt" not in rows and rows["ppt"].fills == ("unified_ppt",)
    assert rows["ppt"].group == rows["hybrid_ppt"].group == "unified" and rows["vanilla_pt"].group is None
    assert rows_for(ten, ("unified_ppt",))[0].method == "unified_ppt"
    rows = {row.method: row for row in rows_for(mood, tuple(METHODS))}
    assert rows["ppt"].group == "single_text" and rows["unified_ppt"].group == "unified"
    assert {name: row.pattern for name, row in rows.items()} == {
        "ft": "hard", "vanilla_pt": "plain", "hybrid_pt": "hard", "lm_adaption": "plain", "ppt": "plain",
        "hybrid_ppt": "hard", "unified_ppt": "unified",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": [0.1, 0.0]}, "a learning rate of vanilla_pt is 0; nothing would train"),
        ({"methods": ["ptp"]}, 'no method "ptp"; did you mean "ppt"'),
        ({"seeds": []}, "expected one or more"),
        ({"init": "norml"}, 'did you mean "normal"'),
        (
            {"learning_rates_of": {"ppt": [0.3, 0.1, 0.3]}},
            "learning_rates_of.*the learning rates of ppt hold something twice",
        ),
        ({"learning_rates_of": {"ppt": []}}, "learning_rates_of.*expected one learning rate or more of ppt"),
        ({"learning_rates_of": {"ptp": [0.3]}}, 'learning_rates_of.*no method "ptp"; did you mean "ppt"'),
        ({"device": "gpu"}, "device"),
        (
            {"device": "cuda:1", "processes": 2},
            "device cuda:1 is one GPU and processes is 2; .*write device: cuda,",
        ),
    ],
)
def test_impossible_settings_are_refused_at_the_start(
    small_run: Any, changes: dict[str, Any], message: str
) -> None:
    from corpora.common.settings import make_settings

    values = {**small_run(methods=["vanilla_pt"]).model_dump(), **changes}
    with pytest.raises(UserError, match=message):
        make_settings(FewshotSettings, values, "config.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": None}, "the setting prompts is not given"),
        ({"prompts": "nowhere"}, "nowhere/single_text does not exist; found none"),
        ({"lm_backbone": None}, "lm_adaption needs lm_backbone"),
        ({"shots": 500}, "60 rows to draw from, 512 asked for"),
        ({"prompt_len": 5}, "has 4 tokens and prompt_len is 5"),
        ({"tasks": ["nosuch"]}, 'no task "nosuch" ships'),
        ({"backbone": "nowhere"}, "nowhere"),
        ({"device": "cuda:7"}, "device is cuda:7 and torch sees .*; leave device out, or say device: cpu"),
        (
            {"tasks": ["sst2"], "data": "nowhere"},
            "no data for task sst2: looked for nowhere/sst2/train.jsonl",
        ),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_run_behind(
    small_run: Any, changes: dict[str, Any], message: str
) -> None:
    settings = small_run(**changes)
    with pytest.raises(UserError, match=message) as caught:
        run_fewshot(settings)
    assert "\n" not in str(caught.value) and not Path(settings.out).exists()


def test_a_prompt_of_another_backbone_is_refused_by_both_names(
    small_run: Any, backbone_dir: Path, tmp_path: Path
) -> None:
    import shutil

    from transformers import T5ForConditionalGeneration

    other = tmp_path / "other"
    shutil.copytree(backbone_dir, other)
    model = T5ForConditionalGeneration.from_pretrained(backbone_dir)
    with torch.no_grad():
        model.shared.weight.mul_(1.5)
    model.save_pretrained(other)
    with pytest.raises(UserError) as caught:
        run_fewshot(small_run(backbone=str(other), methods=["ppt"]))
    assert "other" in str(caught.value) and "tiny" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["bad", "бад"], "бад"), (["good", "good "], "same ids"), (["good", "good"], "twice")],
)
def test_label_words_that_cannot_be_told_apart_or_spelt_are_refused(
    small_run: Any, task_files: dict[str, str], tmp_path: Path, words: list[str], message: str
) -> None:
    values = yaml.safe_load(Path(task_files["mood"]).read_text())
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({**values, "verbalizer": words}))
    with pytest.raises(UserError, match=message) as caught:
        plan(Workshop(small_run(tasks=[str(path)], data={"odd": str(Path(task_files["mood"]).parent)})))
    assert "odd" in str(caught.value)
