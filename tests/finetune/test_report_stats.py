"""Comparisons against scipy's own tests and worked examples, and that nothing is claimed where the figures do not carry it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from corpora.common.blocks import markdown_table
from corpora.common.rng import generator
from finetune.report import report
from finetune.report_stats import (
    ALPHA,
    Comparison,
    as_records,
    compare,
    comparisons_table,
    holm,
    paired,
    points,
    told_apart,
)
from finetune.report_tables import Places, main_shots, main_table, places_of

METHODS = ("ft", "vanilla_pt", "hybrid_pt", "lm_adaption", "ppt", "hybrid_ppt", "unified_ppt")
CLAIMS = re.compile(
    r"better|worse|superior|inferior|outperform|beat|improve|significan|winner", re.IGNORECASE
)


def made_row(task: str, method: str, seed: int, test: float, **changes: Any) -> dict[str, Any]:
    init = "feed" if method.endswith("ppt") else None if method == "ft" else "normal"
    row = {
        "task": task, "method": method, "seed": seed, "shots": 32, "learning_rate": 0.3, "dev": 0.5, "init": init,
        "chosen": True, "test": test, "backbone_fingerprint": "lm" if method == "lm_adaption" else "main", **changes,
    }  # fmt: skip
    return {"cell": "-".join(str(row[name]) for name in ("task", "method", "seed", "shots", "init")), **row}


def made_places(scores: dict[str, dict[str, list[float]]]) -> Places:
    """Task -> method -> a score for each seed, as places of a report."""
    return places_of(
        [
            made_row(task, method, seed, score)
            for task, methods in scores.items()
            for method, some in methods.items()
            for seed, score in enumerate(some)
        ]
    )


def made_comparisons(scores: dict[str, dict[str, list[float]]]) -> list[Comparison]:
    return compare(made_places(scores), dict.fromkeys(scores, 32))


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_worked_example() -> None:
    judged = paired([[0.01, 0.02, 0.03]])  # mean 2, deviation 1, t = 2 sqrt(3), two degrees of freedom
    assert judged.mean == pytest.approx(0.02) and judged.error == pytest.approx(0.01 / np.sqrt(3))
    assert judged.p == pytest.approx(
        1 - 2 * np.sqrt(3) / np.sqrt(2 + 12)
    )  # the t distribution's closed form at df 2
    interval = judged.interval()
    assert interval is not None
    assert interval == pytest.approx(
        (0.02 - 4.302653 * 0.01 / np.sqrt(3), 0.02 + 4.302653 * 0.01 / np.sqrt(3))
    )


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_one_task_is_scipys_paired_t_test(n: int) -> None:
    rng = generator(n, "paired")
    a, b = rng.uniform(0.3, 0.9, size=(2, n))
    judged, expected = paired([list(a - b)]), stats.ttest_rel(a, b)
    assert judged.p == pytest.approx(expected.pvalue, rel=1e-9)
    for level in (0.95, 0.999):
        assert judged.interval(level) == pytest.approx(tuple(expected.confidence_interval(level)), rel=1e-9)


def test_two_tasks_are_welchs_test_of_their_mean_differences() -> None:
    rng = generator(0, "strata")
    one, two = rng.normal(0.05, 0.02, size=5), rng.normal(0.10, 0.15, size=4)
    judged, expected = paired([list(one), list(two)]), stats.ttest_ind(one, -two, equal_var=False)
    assert judged.mean == pytest.approx((one.mean() + two.mean()) / 2)
    assert judged.p == pytest.approx(expected.pvalue, rel=1e-9) and judged.df == pytest.approx(expected.df)
    low, high = expected.confidence_interval(0.95)
    assert judged.interval() == pytest.approx((low / 2, high / 2), rel=1e-9)


def test_intervals_over_tasks_cover_the_truth_as_often_as_they_say() -> None:
    rng = generator(1, "coverage")
    truth, spread, hit, n = np.array([0.05, -0.02, 0.2]), np.array([0.01, 0.05, 0.1]), 0, 2000
    for _ in range(n):
        draws = truth[:, None] + spread[:, None] * rng.standard_normal((3, 5))
        interval = paired([list(some) for some in draws]).interval()
        assert interval is not None
        hit += interval[0] <= truth.mean() <= interval[1]
    assert 0.93 < hit / n < 0.98  # 95 %; 2000 draws give 0.5 % either way


def test_one_difference_of_a_task_is_refused() -> None:
    with pytest.raises(ValueError, match="two differences"):
        paired([[0.1, 0.2], [0.3]])


def test_holm_of_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 which may not fall below 0.06.
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert [p for p, _ in corrected] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [level for _, level in corrected] == pytest.approx(
        [1 - 0.05 / 3, 0.95, 1 - 0.05 / 2, 1 - 0.05 / 4]
    )
    assert holm([0.6, 0.7])[0][0] == 1.0 and holm([]) == []


def noise(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Scores of runs that differ in nothing but luck: bell-shaped; one in three learns nothing; near the top of the scale."""
    if kind == "bell":
        return rng.normal(0.7, 0.1, shape)
    if kind == "fails":
        return np.where(rng.random(shape) < 1 / 3, rng.normal(0.5, 0.03, shape), rng.normal(0.9, 0.03, shape))
    return rng.binomial(200, 0.985, shape) / 200


@pytest.mark.parametrize("kind", ["bell", "fails", "top"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_noise_is_called_a_difference_in_one_family_of_twenty_at_most(kind: str, tasks: int) -> None:
    rng = generator(tasks, "families", kind)
    false, n = 0, 300
    for _ in range(n):
        baselines, variants = noise(kind, rng, (4, tasks, 5)), noise(kind, rng, (3, tasks, 5))
        p_values = [paired((one - other).tolist()).p for one in variants for other in baselines]
        false += min(p for p, _ in holm(p_values)) < ALPHA
    assert false / n < 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)


@pytest.mark.parametrize("shift", [0.0, 0.02, -0.25])
def test_differences_that_do_not_vary_prove_nothing_and_give_no_figure(shift: float) -> None:
    base = [0.5, 0.61, 0.7, 0.55]
    found = made_comparisons({"sst2": {"vanilla_pt": base, "ppt": [x + shift for x in base]}})
    (record,) = as_records(found)
    assert record["difference"] == pytest.approx(shift) and record["result"] == "not told apart"
    assert [record[name] for name in ("low", "high", "p", "p_corrected")] == [None] * 4
    table = markdown_table(comparisons_table(found))
    assert "nan" not in table and "0.000" not in table and "inf" not in table


def test_a_task_whose_differences_do_not_vary_is_no_proof_together_with_others_either() -> None:
    base, small = np.array([0.4, 0.41, 0.42, 0.43, 0.44]), np.array([0.004, -0.005, 0.001, 0.003, -0.003])
    found = made_comparisons(
        {"a": {"vanilla_pt": list(base), "ppt": list(base + 0.5)}, "b": {"vanilla_pt": list(base), "ppt": list(base + small)}}
    )  # fmt: skip
    assert [one.task for one in found] == [None, "a", "b"]
    assert {one.verdict for one in found} == {"not told apart"}
    assert as_records(found)[0]["difference"] == pytest.approx(0.25) and as_records(found)[0]["p"] is None


def test_equal_scores_on_a_task_leave_the_evidence_to_the_others() -> None:
    judged, alone = paired([[0.01, 0.02, 0.03], [0.0, 0.0, 0.0]]), paired([[0.01, 0.02, 0.03]])
    assert judged.mean == pytest.approx(alone.mean / 2) and judged.error == pytest.approx(alone.error / 2)
    assert judged.p == pytest.approx(alone.p)


def test_ppts_variants_are_compared_with_what_they_claim_to_improve_on_and_other_pairs_only_listed() -> None:
    rng = generator(3, "all methods")
    found = made_comparisons(
        {task: {method: list(rng.uniform(0.4, 0.9, 5)) for method in METHODS} for task in ("sst2", "cb")}
    )
    assert len(found) == 3 * 21  # over both tasks, and each of them
    for task in (None, "sst2", "cb"):
        planned = {(one.one.method, one.other.method) for one in found if one.task == task and one.planned}
        assert planned == {(ours, theirs) for ours in METHODS[4:] for theirs in METHODS[:4]}
    assert all(one.draws == (10 if one.task is None else 5) for one in found)


def test_all_pairs_are_planned_where_nothing_was_pretrained() -> None:
    rows = [
        made_row("sst2", "vanilla_pt", seed, 0.5 + 0.01 * seed * k, init=init)
        for k, init in enumerate(("normal", "vocabulary", "label_words"))
        for seed in range(3)
    ]
    found = compare(places_of(rows), {"sst2": 32})
    assert len(found) == 3 and all(one.planned for one in found)


def test_prompts_of_two_backbones_are_no_planned_pair_but_full_tuning_of_any_size_is() -> None:
    rows = [
        made_row("sst2", method, seed, 0.1 * seed, backbone=name, backbone_fingerprint=name)
        for method in ("ppt", "vanilla_pt", "ft")
        for name in ("small", "large")
        for seed in range(3)
    ]
    planned = {
        (one.one.label, one.other.label) for one in compare(places_of(rows), {"sst2": 32}) if one.planned
    }
    assert ("PPT (large)", "FT (small)") in planned and ("PPT (large)", "Vanilla PT (large)") in planned
    assert ("PPT (large)", "Vanilla PT (small)") not in planned


def test_only_seeds_that_both_methods_have_are_paired() -> None:
    rows = [made_row("sst2", "ppt", seed, 0.8 + 0.01 * seed) for seed in (0, 1, 2, 3)]
    rows += [made_row("sst2", "vanilla_pt", seed, 0.5) for seed in (2, 3, 4)]
    (found,) = compare(places_of(rows), {"sst2": 32})
    assert found.differences == {"sst2": {2: pytest.approx(0.32), 3: pytest.approx(0.33)}}
    lonely = [row for row in rows if row["seed"] in (0, 1, 2, 4)]
    (found,) = compare(places_of(lonely), {"sst2": 32})
    assert found.paired is None and found.winner is None and "fewer than two seeds" in found.verdict


def test_a_place_that_another_run_fills_is_compared_once() -> None:
    rows = [made_row("topics", "vanilla_pt", seed, 0.5 + 0.1 * seed) for seed in range(3)]
    rows += [made_row("topics", "ppt", seed, 0.8, fills=["unified_ppt"]) for seed in range(3)]
    assert [one.one.method for one in compare(places_of(rows), {"topics": 32})] == ["ppt"]


def expected_claims(family: list[Comparison], scores: dict[str, dict[str, list[float]]]) -> int:
    """How many of a family's comparisons hold, from scipy's test and Holm's rule as it is stated: step down, stop at the first that fails."""
    p_values = []
    for one in family:
        a, b = (np.array(scores[str(one.task)][line.method]) for line in (one.one, one.other))
        varies = np.ptp(a - b) > 1e-9
        p_values.append(stats.ttest_rel(a, b).pvalue if varies else 1.0)
    claims = 0
    for rank, p in enumerate(sorted(p_values)):
        if p >= ALPHA / (len(p_values) - rank):
            break
        claims += 1
    return claims


scores_of_a_method = st.tuples(
    st.floats(0.2, 0.9), st.sampled_from([0.0, 0.005, 0.05]), st.integers(0, 10**6)
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(scores_of_a_method, min_size=7, max_size=7), min_size=1, max_size=3),
    st.integers(2, 6),
)
def test_better_is_said_where_the_corrected_p_says_so_and_nowhere_else(
    drawn: list[list[tuple[float, float, int]]], n_seeds: int
) -> None:
    scores = {
        f"task{number}": {
            method: list(np.round(mean + spread * generator(seed, method).standard_normal(n_seeds), 3))
            for method, (mean, spread, seed) in zip(METHODS, methods, strict=True)
        }
        for number, methods in enumerate(drawn)
    }
    found = made_comparisons(scores)
    for one in found:
        assert one.paired is not None and one.corrected is not None and one.level is not None
        assert one.corrected >= one.paired.p
        assert ("better" in one.verdict) == (one.corrected < ALPHA)
        if one.winner is None:
            assert one.verdict == "not told apart"
            continue
        interval = one.paired.interval(one.level)
        assert interval is not None and (interval[0] > 0 or interval[1] < 0)
        assert one.winner == (one.one if one.paired.mean > 0 else one.other)
    for together in (True, False):
        family = [one for one in found if one.planned and (one.task is None) == together]
        table = markdown_table(comparisons_table(family))
        assert table.count("better") == sum(one.winner is not None for one in family)
        if not together:
            assert table.count("better") == expected_claims(family, scores)


def noisy_rows(gap: float) -> list[dict[str, Any]]:
    """Two tasks, five seeds; PPT lies `gap` above the other two."""
    rng = generator(4, "noise")
    return [
        made_row(task, method, seed, float(0.5 + gap * (method == "ppt") + 0.02 * rng.standard_normal()))
        for task in ("sst2", "cb")
        for method in ("vanilla_pt", "hybrid_pt", "ppt")
        for seed in range(5)
    ]


@pytest.mark.parametrize("gap", [0.0, 0.3])
def test_a_whole_report_makes_the_claims_that_hold_and_no_other(tmp_path: Path, gap: float) -> None:
    made = report([write_run(tmp_path / "run", noisy_rows(gap))], tmp_path / "out")
    texts = {name: (tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("report.md", "report.html", "comparisons.csv")}  # fmt: skip
    claims = {name: CLAIMS.findall(text) for name, text in texts.items()}
    table = made.text.split("## Test accuracy")[1].split("##")[0]
    if gap:  # two baselines, both tasks together and each of them
        assert claims == {name: ["better"] * 6 for name in texts}
        assert made.text.count("PPT better") == 6 and "↓" in table and "only entries with ↓" in table
    else:
        assert claims == {name: [] for name in texts} and "not told apart" in made.text
        assert "↓" not in table and "no entry is told apart from it" in table
    assert (tmp_path / "out" / "differences.png").exists()
    records = json.loads((tmp_path / "out" / "report.json").read_text())["comparisons"]
    assert len(records) == 9 and set(records[0]["differences"]["cb"]) == {"0", "1", "2", "3", "4"}


def test_marks_of_the_main_table_are_what_the_comparisons_say() -> None:
    places = places_of(noisy_rows(0.3))
    shots = main_shots(noisy_rows(0.3))
    apart = told_apart(compare(places, shots), places)
    table = main_table(places, shots, 5, apart=apart)
    marked = {(line[0].text, line[i + 1].text.endswith("↓")) for line in table.body for i in range(2)}
    assert marked == {("Vanilla PT", True), ("Hybrid PT", True), ("PPT", False)}


def test_a_mark_rests_on_a_pair_that_comparisons_lists(tmp_path: Path) -> None:
    rng = generator(5, "marks")
    means = {
        "vanilla_pt": 0.3,
        "ppt": 0.6,
        "hybrid_ppt": 0.9,
    }  # the highest and the middle one are no planned pair
    rows = [
        made_row("sst2", method, seed, float(mean + 0.01 * rng.standard_normal()))
        for method, mean in means.items()
        for seed in range(5)
    ]
    made = report([write_run(tmp_path / "run", rows)], tmp_path / "out")
    assert made.table is not None
    assert [line[0].text for line in made.table.body if "↓" in line[1].text] == ["Vanilla PT"]
    listed = made.text.split("## Comparisons")[1].split("\n## ")[0]
    assert "Hybrid PPT − Vanilla PT" in listed and "Hybrid PPT − PPT" not in listed
    (other,) = [one for one in compare(places_of(rows), {"sst2": 32}) if not one.planned]
    assert other.winner is not None  # in comparisons.csv, corrected for all pairs, and no mark


def test_the_correction_counts_the_pairs_that_have_seeds_in_common(tmp_path: Path) -> None:
    rows = [row for row in noisy_rows(0.3) if row["method"] != "hybrid_pt" or row["seed"] == 0]
    made = report([write_run(tmp_path / "run", rows)], tmp_path / "out")
    assert "corrected for the 1 comparison of this table with two seeds in common" in made.text
    found = compare(places_of(rows), main_shots(rows))
    judged, lonely = (one for one in found if one.planned and one.task is None)
    assert lonely.paired is None and judged.paired is not None and judged.corrected == judged.paired.p


def test_one_seed_compares_nothing_and_says_so(tmp_path: Path) -> None:
    rows = [row for row in noisy_rows(0.3) if row["seed"] == 0]
    text = report([write_run(tmp_path / "run", rows)], tmp_path / "out").text
    assert "One seed: there is nothing to compare by" in text and not CLAIMS.search(text)
    assert not (tmp_path / "out" / "differences.png").exists()


def test_points_have_a_sign_and_no_signed_zero() -> None:
    assert [points(x) for x in (0.0213, -0.0213, 0.0, -0.0001)] == ["+2.1", "−2.1", "0.0", "0.0"]
