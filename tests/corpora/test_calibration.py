"""Tests of corpora/calibration.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.calibration import (
    expected_calibration_error,
    fit_temperature,
    report,
    softmax,
    tempered,
)
from corpora.common.rng import generator


def drawn(n: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from the softmax of `sharpness` times them."""
    rng = generator(0, "calibration")
    logits = rng.normal(size=(n, 4)) * 2
    chances = softmax(logits * sharpness).astype(np.float64)
    labels = (chances.cumsum(1) < rng.random((n, 1)) * chances.sum(1, keepdims=True)).sum(1)
    return logits, labels


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 3.0])
def test_the_temperature_is_found_that_labels_were_drawn_with_and_the_calibration_error_goes(
    sharpness: float,
) -> None:
    logits, labels = drawn(20_000, sharpness)
    probabilities = softmax(logits)
    temperature = fit_temperature(probabilities[:10_000], labels[:10_000])
    assert temperature == pytest.approx(1 / sharpness, rel=0.05)
    measured = report(probabilities[10_000:], labels[10_000:], temperature, 0, 10_000)
    assert measured.calibration_error < 0.02
    if sharpness != 1.0:
        assert measured.calibration_error_before > 0.05


@given(st.floats(0.1, 10), st.integers(0, 1000))
def test_a_temperature_changes_no_order_and_undoes_its_inverse(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 5))
    warm = tempered(softmax(logits), temperature)
    np.testing.assert_allclose(warm, softmax(logits, temperature), atol=1e-5)
    assert (warm.argsort(1) == logits.argsort(1)).all()


def test_a_few_easy_reviews_leave_room_for_doubt_and_none_change_nothing() -> None:
    labels = np.arange(20) % 2
    probabilities = softmax(np.eye(2)[labels] * 2)  # always right
    temperature = fit_temperature(probabilities, labels)
    assert tempered(probabilities, temperature).max() == pytest.approx(21 / 22, abs=1e-3)
    assert fit_temperature(np.empty((0, 2), np.float32), np.empty(0, np.int64)) == 1.0


def test_the_calibration_error_is_the_gap_between_sureness_and_success() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10)
    labels = np.array([0] * 6 + [1] * 4 + [1] * 6 + [0] * 4)
    assert expected_calibration_error(probabilities, labels) == pytest.approx((0.3 + 0.0) / 2)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


def test_agreement_is_counted_as_sklearn_and_plain_counting_have_it() -> None:
    from sklearn.metrics import cohen_kappa_score

    labels = np.array([0, 1, 2, 2, 1, 0, 2, 2])
    said = np.array([0, 2, 2, 0, 1, 1, 2, 2])
    measured = report(np.eye(4)[said], labels, 1.0, 7, 5)  # nobody has class 3
    assert measured.accuracy == 5 / 8 and measured.majority == 4 / 8 and measured.within_one == 7 / 8
    assert measured.kappa == pytest.approx(cohen_kappa_score(labels, said, weights="quadratic"))
    assert measured.per_class == (0.5, 0.5, 0.75, 0.0)
    line = measured.line()
    for part in (
        "0.6250 beside 0.5000",
        "8 reviews held out, 7 trained on",
        "within one class 0.8750",
        "on 5 others",
    ):
        assert part in line
    assert "\n" not in line and measured.fields()["per_class"] == [0.5, 0.5, 0.75, 0.0]


def test_kappa_is_nothing_where_everyone_says_the_same() -> None:
    assert report(np.array([[0.9, 0.1]] * 3), np.zeros(3, np.int64), 1.0, 0, 0).kappa == 0.0
