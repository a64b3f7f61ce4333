"""Metrics of scored impressions and of classifiers: AUC, log loss, calibration, accuracy, F1.

`labels` are 0 or 1, `scores` any real numbers that order the examples, `probabilities` lie in
[0, 1]; all are `[n]`. Every function raises DataError for no examples, NaN, values out of range or
shapes that differ: a silent 0.5 or NaN in a results table is worse than no value.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from m6rec_jax.errors import DataError

FloatArray = npt.NDArray[np.float64]

# Keeps one confident mistake from being infinite.
_EPSILON = 1e-7


def _labels(labels: npt.ArrayLike, metric: str) -> npt.NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(f"{metric}: labels must be rank 1, got shape {array.shape}")
    if array.size == 0:
        raise DataError(f"{metric}: there are no examples; is the split empty?")
    bad = np.flatnonzero((array != 0) & (array != 1))
    if bad.size:
        raise DataError(
            f"{metric}: labels must be 0 or 1, but {bad.size} are not; the first is "
            f"{array[bad[0]]} at position {bad[0]}"
        )
    return array.astype(np.int64)


def _values(values: npt.ArrayLike, size: int, metric: str, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (size,):
        raise DataError(f"{metric}: {name} has shape {array.shape}, labels have shape ({size},)")
    bad = np.flatnonzero(np.isnan(array))
    if bad.size:
        raise DataError(f"{metric}: {bad.size} of {size} {name} are NaN, first at {bad[0]}")
    return array


def _probabilities(values: npt.ArrayLike, size: int, metric: str) -> FloatArray:
    array = _values(values, size, metric, "probabilities")
    bad = np.flatnonzero((array < 0) | (array > 1))
    if bad.size:
        raise DataError(
            f"{metric}: probabilities must lie in [0, 1], but {bad.size} do not; the first is "
            f"{array[bad[0]]} at position {bad[0]}"
        )
    return array


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve; ties count one half. Raises DataError also for one class only."""
    y = _labels(labels, "AUC")
    s = _values(scores, y.size, "AUC", "scores")
    present = np.unique(y)
    if present.size < 2:
        raise DataError(
            f"AUC is undefined: all {y.size} labels are {int(present[0])}; it needs examples of "
            "both classes"
        )
    # Imported late, as below: it takes a second, and servers that measure nothing load this module.
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, s))


def per_user_auc(
    user_ids: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike
) -> FloatArray:
    """AUC within each of the u users that have both labels, in the order of their ids, `[u]`."""
    y = _labels(labels, "user-averaged AUC")
    s = _values(scores, y.size, "user-averaged AUC", "scores")
    ids = np.asarray(user_ids)
    if ids.shape != y.shape:
        raise DataError(
            f"user-averaged AUC: user_ids has shape {ids.shape}, labels have shape {y.shape}"
        )
    # By the rank-sum formula, in one sort.
    users, codes = np.unique(ids, return_inverse=True)
    order = np.lexsort((s, codes))
    codes, s, y = codes[order], s[order], y[order]
    # Runs of equal (user, score) share the mean of their positions, which counts a tie as one half.
    new_run = np.ones(y.size, dtype=bool)
    new_run[1:] = (codes[1:] != codes[:-1]) | (s[1:] != s[:-1])
    run_start = np.flatnonzero(new_run)
    run_length = np.diff(np.append(run_start, y.size))
    mean_position = np.repeat(run_start + (run_length - 1) / 2.0, run_length)
    counts = np.bincount(codes, minlength=users.size)
    first = np.cumsum(counts) - counts
    rank = mean_position - first[codes] + 1.0
    positives = np.bincount(codes, weights=y, minlength=users.size)
    negatives = counts - positives
    rank_sum = np.bincount(codes, weights=rank * y, minlength=users.size)
    both = (positives > 0) & (negatives > 0)
    p, n = positives[both], negatives[both]
    return (rank_sum[both] - p * (p + 1) / 2.0) / (p * n)


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
    y = _labels(labels, "log loss")
    p = np.clip(_probabilities(probabilities, y.size, "log loss"), _EPSILON, 1.0 - _EPSILON)
    return np.where(y == 1, np.log(p), np.log1p(-p))


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean negative log likelihood of the labels, in nats."""
    return float(-log_likelihoods(labels, probabilities).mean())


def platt_scaling(labels: npt.ArrayLike, log_odds: npt.ArrayLike) -> tuple[float, float]:
    """(scale, offset) for which σ(scale · log_odds + offset) has the least log loss.

    Platt, "Probabilistic outputs for support vector machines" (1999), without its prior. Raises
    DataError also for one class only.
    """
    y = _labels(labels, "Platt scaling")
    x = _values(log_odds, y.size, "Platt scaling", "log odds")
    if np.unique(y).size < 2:
        raise DataError(f"Platt scaling is undefined: all {y.size} labels are {int(y[0])}")
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=np.inf).fit(x[:, None], y)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


@dataclasses.dataclass(frozen=True)
class CalibrationTable:
    """Predicted against observed frequency, `[b]` each; empty bins are left out.

    Attributes:
      counts: examples in the bin.
      mean_predicted: mean probability in the bin.
      mean_observed: share of label 1 in the bin.
    """

    counts: npt.NDArray[np.int64]
    mean_predicted: FloatArray
    mean_observed: FloatArray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of predicted and observed frequency, weighted by the bins' counts."""
        gaps = np.abs(self.mean_predicted - self.mean_observed)
        return float(np.average(gaps, weights=self.counts))


def calibration_table(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    num_bins: int = 10,
) -> CalibrationTable:
    """Groups examples by predicted probability, in bins of about equal counts.

    Equal probabilities always share a bin, so there may be fewer bins than `num_bins`.
    """
    y = _labels(labels, "calibration")
    p = _probabilities(probabilities, y.size, "calibration")
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

    y, p = _classes_checked(labels, probabilities)
    predicted = p.argmax(axis=1)
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


def _classes_checked(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    y, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    if y.ndim != 1 or p.ndim != 2 or len(y) != len(p) or p.shape[1] < 2:
        raise DataError(
            f"classification: labels {y.shape} and probabilities {p.shape} must be [n] and "
            "[n, classes]"
        )
    if not y.size:
        raise DataError("classification: there are no examples; is the split empty?")
    if np.isnan(p).any():
        raise DataError(f"classification: {int(np.isnan(p).sum())} probabilities are NaN")
    bad = np.flatnonzero((y < 0) | (y >= p.shape[1]))
    if bad.size:
        raise DataError(
            f"classification: label {y[bad[0]]} at position {bad[0]} is none of the "
            f"{p.shape[1]} classes; is PromptConfig.num_options too small?"
        )
    return y.astype(np.int64), p
