"""Metrics of scored impressions and of classifiers: AUC, log loss, calibration, accuracy, F1.

`labels` are 0 or 1, `scores` any real numbers that order the examples, `probabilities` lie in
[0, 1]; all are `[n]`. Every function raises DataError for no examples, NaN, values out of range or
shapes that differ: a silent 0.5 or NaN in a results table is worse than no value.

scikit-learn and scipy are imported late: they take a second, and servers load this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m6rec_jax.errors import DataError

FloatArray = npt.NDArray[np.float64]

# Keeps one confident mistake from being infinite.
_EPSILON = 1e-7


def _examples(
    metric: str, labels: npt.ArrayLike, values: npt.ArrayLike, bound: float = np.inf
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Labels and what a model says of them, `[n]` each; `bound` 1: probabilities."""
    y, v = np.asarray(labels), np.asarray(values, np.float64)
    if y.ndim != 1 or y.shape != v.shape or not y.size:
        raise DataError(
            f"{metric}: labels {y.shape} and values {v.shape} must be [n], of one example "
            "at least; is the split empty?"
        )
    least = 0.0 if bound == 1 else -np.inf
    wrong_labels, wrong_values = (y != 0) & (y != 1), ~((v >= least) & (v <= bound))
    for name, array, wrong in (("labels", y, wrong_labels), ("values", v, wrong_values)):
        if wrong.any():
            first = int(wrong.argmax())
            wanted = "0 or 1" if name == "labels" else f"within [{least:g}, {bound:g}]"
            raise DataError(
                f"{metric}: {wrong.sum()} of {y.size} {name} are not {wanted}; the first is "
                f"{array[first]} at position {first}"
            )
    return y.astype(np.int64), v


def _need_both_labels(metric: str, labels: npt.NDArray[np.int64]) -> None:
    if np.unique(labels).size < 2:
        raise DataError(f"{metric} is undefined: all {labels.size} labels are {labels[0]}")


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve; ties count one half. Raises DataError also for one class only."""
    y, s = _examples("AUC", labels, scores)
    _need_both_labels("AUC", y)
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, s))


def per_user_auc(
    user_ids: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike
) -> FloatArray:
    """AUC within each of the u users that have both labels, in the order of their ids, `[u]`.

    By the rank-sum formula, for all users at once: one call of scikit-learn for each of 20,000
    users takes 470 times as long.
    """
    from scipy.stats import rankdata

    y, s = _examples("user-averaged AUC", labels, scores)
    _, users, counts = np.unique(np.asarray(user_ids), return_inverse=True, return_counts=True)
    if users.shape != y.shape:
        raise DataError(f"user-averaged AUC: {users.size} users of {y.size} labels")
    order = rankdata(s, "dense").astype(np.int64)
    # Ranks of (user, score) less the examples of all users before; a tie has the mean rank.
    ranks = rankdata(users * (order.max() + 1) + order) - (np.cumsum(counts) - counts)[users]
    positives = np.bincount(users, weights=y)
    rank_sums = np.bincount(users, weights=ranks * y)
    both = (positives > 0) & (positives < counts)
    p, n = positives[both], (counts - positives)[both]
    return (rank_sums[both] - p * (p + 1) / 2.0) / (p * n)


def ordering_metrics(
    user_ids: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[dict[str, float], int]:
    """How well scores put likes before the rest, and how many users have both labels.

    Returns:
      `auc`, unless all labels are the same; `user_averaged_auc`, if a user has both. And that
      number of users.
    """
    metrics = {"auc": auc(labels, scores)} if np.unique(labels).size > 1 else {}
    values = per_user_auc(user_ids, labels, scores)
    if values.size:
        metrics["user_averaged_auc"] = float(values.mean())
    return metrics, values.size


def log_likelihoods(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> FloatArray:
    """Log likelihood of each label, in nats `[n]`."""
    y, p = _examples("log loss", labels, probabilities, 1)
    p = np.clip(p, _EPSILON, 1.0 - _EPSILON)
    return np.where(y == 1, np.log(p), np.log1p(-p))


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean negative log likelihood of the labels, in nats."""
    return float(-log_likelihoods(labels, probabilities).mean())


def platt_scaling(labels: npt.ArrayLike, log_odds: npt.ArrayLike) -> tuple[float, float]:
    """(scale, offset) for which σ(scale · log_odds + offset) has the least log loss.

    Platt, "Probabilistic outputs for support vector machines" (1999), without its prior. Raises
    DataError also for one class only.
    """
    y, x = _examples("Platt scaling", labels, log_odds)
    _need_both_labels("Platt scaling", y)
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=np.inf).fit(x[:, None], y)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


class CalibrationTable(NamedTuple):
    """Examples, mean probability and share of label 1 of each bin, `[b]` each; no bin is empty."""

    counts: npt.NDArray[np.int64]
    mean_predicted: FloatArray
    mean_observed: FloatArray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of predicted and observed frequency, weighted by the bins' counts."""
        gaps = np.abs(self.mean_predicted - self.mean_observed)
        return float(np.average(gaps, weights=self.counts))


def calibration_table(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, num_bins: int = 10
) -> CalibrationTable:
    """Groups examples by predicted probability, in bins of about equal counts.

    Equal probabilities always share a bin, so there may be fewer bins than `num_bins`.
    scikit-learn's `calibration_curve` has no counts.
    """
    y, p = _examples("calibration", labels, probabilities, 1)
    inner, times = np.unique(
        np.quantile(p, np.linspace(0.0, 1.0, num_bins + 1)[1:-1]), return_counts=True
    )
    # One that more than a bin's worth of examples share has a bin of its own.
    inner = np.union1d(inner, np.nextafter(inner[times > 1], 0.0))
    _, bins, counts = np.unique(
        np.searchsorted(inner, p, side="left"), return_inverse=True, return_counts=True
    )
    predicted, observed = (np.bincount(bins, weights=values) / counts for values in (p, y))
    return CalibrationTable(counts, predicted, observed)


def probability_metrics(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """`log_loss`, and `calibration_error` of `calibration_table`."""
    return {
        "log_loss": log_loss(labels, probabilities),
        "calibration_error": calibration_table(labels, probabilities).expected_calibration_error,
    }


def multiclass_metrics(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """Metrics of a classifier with C classes.

    Args:
      labels: `[n]`, class numbers below C.
      probabilities: `[n, C]`, rows sum to 1.

    Returns:
      `accuracy`; `macro_f1`, the plain mean of F1 over the classes that occur among labels or
      predictions; `auc`: with two classes that of the second, with more the plain mean over the
      classes that occur of each against all others, and none where one class alone occurs;
      `log_loss`, in nats; and `majority_share`, the accuracy of always saying the commonest class.

    Raises:
      DataError: as above, or a label outside the classes.
    """
    from sklearn.metrics import f1_score

    y, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    if y.ndim != 1 or p.ndim != 2 or len(y) != len(p) or p.shape[1] < 2 or not y.size:
        raise DataError(
            f"classification: labels {y.shape} and probabilities {p.shape} must be [n] and "
            "[n, classes], of one example at least; is the split empty?"
        )
    if np.isnan(p).any() or y.min() < 0 or y.max() >= p.shape[1]:
        raise DataError(
            f"classification: {int(np.isnan(p).sum())} probabilities are NaN, labels are from "
            f"{y.min()} to {y.max()} and must be from 0 to {p.shape[1] - 1}; is "
            "PromptConfig.num_options too small?"
        )
    y, predicted = y.astype(np.int64), p.argmax(axis=1)
    metrics = {
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float(f1_score(y, predicted, average="macro")),
        "log_loss": float(-np.log(np.clip(p[np.arange(y.size), y], _EPSILON, 1.0)).mean()),
        "majority_share": float(np.bincount(y).max() / y.size),
    }
    present = np.unique(y)
    if present.size > 1:
        of_classes = present if p.shape[1] > 2 else (1,)
        metrics["auc"] = float(np.mean([auc(y == k, p[:, k]) for k in of_classes]))
    return metrics
