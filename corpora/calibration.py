"""How well a labeller agrees with the stars of reviews, and a temperature that makes its probabilities honest.

One temperature for all classes (Guo et al. 2017, "On Calibration of Modern Neural Networks") leaves every unit its
most probable class. A bias for each class would fit reviews better and undo the balance of the classes on raw text.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of the expected calibration error (Guo et al. 2017)
LEAST, MOST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class Report:
    """Agreement of a labeller with reviews that it did not see, and that its temperature was not fitted on.

    `calibration_error` is the expected calibration error (`expected_calibration_error`).
    """

    accuracy: float
    majority: float  # accuracy of always saying the most frequent class of these reviews
    within_one: float  # share that is at most one class off
    kappa: float  # Cohen's, weighted by the square of the distance
    per_class: tuple[float, ...]  # recall of each class
    n_train: int  # 0 for a classifier that others trained
    n_calibration: int  # reviews that the temperature was fitted on
    n_test: int
    temperature: float
    calibration_error_before: float  # at temperature 1
    calibration_error: float

    def line(self) -> str:
        """One readable line."""
        recalls = ", ".join(f"{recall:.2f}" for recall in self.per_class)
        trained = f", {self.n_train} trained on" if self.n_train else ""
        near = f"within one class {self.within_one:.4f}, " if len(self.per_class) > 2 else ""
        return (
            f"held-out accuracy {self.accuracy:.4f} beside {self.majority:.4f} for the most frequent class "
            f"({self.n_test} reviews held out{trained}; {near}quadratic kappa {self.kappa:.4f}, recall by class "
            f"{recalls}; calibration error {self.calibration_error_before:.4f}, {self.calibration_error:.4f} at "
            f"temperature {self.temperature:.2f}, fitted on {self.n_calibration} others)"
        )

    def fields(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {**asdict(self), "per_class": list(self.per_class)}


def softmax(logits_NC: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities, float32 [N, C], of logits divided by a temperature."""
    logits_NC = logits_NC.astype(np.float64) / temperature
    powers = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def tempered(probabilities_NC: NDArray[np.floating], temperature: float) -> NDArray[np.float32]:
    """Probabilities as they would have been at that temperature, given those at temperature 1."""
    tiny = np.finfo(np.float32).tiny
    return softmax(np.log(np.maximum(probabilities_NC, tiny).astype(np.float64)), temperature)


def fit_temperature(probabilities_NC: NDArray[np.floating], labels_N: NDArray[np.integer]) -> float:
    """The temperature that makes labels most likely; 1 without any.

    Right n times of n shows a chance of (n + 1) / (n + 2), the rule of succession, and labels are taken to be as sure as
    that (Platt 1999 does alike): else a few easy reviews would make every probability 1, which ranks nothing.

    Args:
        probabilities_NC: at temperature 1.
        labels_N: the right classes.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels_N):
        return 1.0
    n, n_classes = probabilities_NC.shape
    targets_NC = np.full((n, n_classes), 1 / (n + 2) / (n_classes - 1))
    targets_NC[np.arange(n), labels_N] = (n + 1) / (n + 2)

    def loss(log_temperature: float) -> float:
        found = tempered(probabilities_NC, math.exp(log_temperature))
        return -float((targets_NC * np.log(np.maximum(found, 1e-30))).sum(1).mean())

    found = minimize_scalar(loss, bounds=(math.log(LEAST), math.log(MOST)), method="bounded")
    return round(math.exp(float(found.x)), 4)


def expected_calibration_error(
    probabilities_NC: NDArray[np.floating], labels_N: NDArray[np.integer]
) -> float:
    """Mean distance between how sure the arg max is and how often it is right, over bins of equal width."""
    sure_N = probabilities_NC.max(1)
    right_N = probabilities_NC.argmax(1) == labels_N
    bin_N = np.minimum((sure_N * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bin_N, right_N - sure_N.astype(np.float64), minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels_N))


def report(
    probabilities_NC: NDArray[np.floating],
    labels_N: NDArray[np.integer],
    temperature: float,
    n_train: int,
    n_calibration: int,
) -> Report:
    """Measure agreement.

    Args:
        probabilities_NC: of the held-out reviews, at temperature 1.
        labels_N: their stars, 0 the lowest; at least one.
        temperature: fitted on other reviews.
        n_train: reviews that the labeller was trained on.
        n_calibration: reviews that the temperature was fitted on.
    """
    from sklearn.metrics import cohen_kappa_score

    n_classes = probabilities_NC.shape[1]
    predicted_N = probabilities_NC.argmax(1)
    one_sided = len(np.union1d(predicted_N, labels_N)) < 2  # kappa is 0 / 0: nothing beyond chance was shown
    kappa = 0.0 if one_sided else cohen_kappa_score(labels_N, predicted_N, weights="quadratic")
    recalls = [
        float((predicted_N[labels_N == c] == c).mean()) if (labels_N == c).any() else 0.0
        for c in range(n_classes)
    ]
    return Report(
        accuracy=float((predicted_N == labels_N).mean()),
        majority=float(np.bincount(labels_N).max() / len(labels_N)),
        within_one=float((np.abs(predicted_N - labels_N) <= 1).mean()),
        kappa=float(kappa),
        per_class=tuple(recalls),
        n_train=n_train,
        n_calibration=n_calibration,
        n_test=len(labels_N),
        temperature=temperature,
        calibration_error_before=expected_calibration_error(probabilities_NC, labels_N),
        calibration_error=expected_calibration_error(tempered(probabilities_NC, temperature), labels_N),
    )
