"""Metrics of scored impressions: AUC, user-averaged AUC, log loss, calibration.

`labels` are 0 or 1, `scores` are any real numbers that order the examples, `probabilities` lie in
[0, 1]. Degenerate input (nothing at all, one class only, NaN) raises `DataError` with what was
found, because a silent 0.5 or NaN in a results table is worse than no figure.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sklearn_metrics

from m6rec_jax.errors import DataError

FloatArray = npt.NDArray[np.float64]


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


def auc(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Area under the ROC curve; ties count one half.

    Args:
      labels: `[n]`, 0 or 1.
      scores: `[n]`, higher means more likely 1.
      weights: `[n]`, optional example weights.

    Raises:
      DataError: no examples, one class only, NaN scores, or shapes that differ.
    """
    y = _labels(labels, "AUC")
    s = _values(scores, y.size, "AUC", "scores")
    present = np.unique(y)
    if present.size < 2:
        raise DataError(
            f"AUC is undefined: all {y.size} labels are {int(present[0])}; it needs examples of "
            "both classes"
        )
    w = None if weights is None else _values(weights, y.size, "AUC", "weights")
    return float(sklearn_metrics.roc_auc_score(y, s, sample_weight=w))


@dataclasses.dataclass(frozen=True)
class PerUserAuc:
    """AUC of every user that has both labels.

    Attributes:
      users: `[u]`, the user ids, sorted.
      values: `[u]`, their AUC.
      counts: `[u]`, their number of examples.
      num_skipped: users with one class only; they have no AUC.
    """

    users: npt.NDArray[Any]
    values: FloatArray
    counts: npt.NDArray[np.int64]
    num_skipped: int


def per_user_auc(
    user_ids: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike
) -> PerUserAuc:
    """AUC within each user, by the rank-sum formula, for all users in one sort.

    Args:
      user_ids: `[n]`, integers or strings.
      labels: `[n]`, 0 or 1.
      scores: `[n]`.

    Returns:
      The users with both labels. There may be none.

    Raises:
      DataError: no examples, NaN scores, or shapes that differ.
    """
    y = _labels(labels, "user-averaged AUC")
    s = _values(scores, y.size, "user-averaged AUC", "scores")
    ids = np.asarray(user_ids)
    if ids.shape != y.shape:
        raise DataError(
            f"user-averaged AUC: user_ids has shape {ids.shape}, labels have shape {y.shape}"
        )
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
    values = (rank_sum[both] - p * (p + 1) / 2.0) / (p * n)
    return PerUserAuc(users[both], values, counts[both], int((~both).sum()))


def user_averaged_auc(
    user_ids: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike
) -> float:
    """GAUC: the plain (unweighted) mean of AUC over the users with both labels.

    Shapes and errors as `per_user_auc`; besides:

    Raises:
      DataError: no user has both labels.
    """
    result = per_user_auc(user_ids, labels, scores)
    if not result.values.size:
        raise DataError(
            f"user-averaged AUC is undefined: none of the {result.num_skipped} users has both "
            "labels"
        )
    return float(result.values.mean())


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike, epsilon: float = 1e-7) -> float:
    """Mean negative log likelihood of the labels, in nats.

    Args:
      labels: `[n]`, 0 or 1. One class only is fine here.
      probabilities: `[n]`, probability of label 1; clipped to `[epsilon, 1 - epsilon]`.
      epsilon: keeps one confident mistake from being infinite.

    Raises:
      DataError: no examples, NaN, values outside [0, 1], or shapes that differ.
    """
    y = _labels(labels, "log loss")
    p = np.clip(_probabilities(probabilities, y.size, "log loss"), epsilon, 1.0 - epsilon)
    return float(-np.where(y == 1, np.log(p), np.log1p(-p)).mean())


@dataclasses.dataclass(frozen=True)
class CalibrationTable:
    """Predicted against observed frequency; empty bins are left out.

    Attributes:
      lower, upper: `[b]`, edges of each bin.
      counts: `[b]`, examples in the bin.
      mean_predicted: `[b]`, mean probability in the bin.
      mean_observed: `[b]`, share of label 1 in the bin.
    """

    lower: FloatArray
    upper: FloatArray
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
    bins: Literal["uniform", "quantile"] = "uniform",
) -> CalibrationTable:
    """Groups examples by predicted probability and compares with what happened.

    Args:
      labels: `[n]`, 0 or 1.
      probabilities: `[n]`, probability of label 1.
      num_bins: how many bins.
      bins: 'uniform' (equal width) or 'quantile' (about equal counts; equal probabilities always
        share a bin, so there may be fewer bins).

    Raises:
      DataError: no examples, NaN, values outside [0, 1], or shapes that differ.
      ValueError: unknown `bins` or `num_bins` below 1.
    """
    y = _labels(labels, "calibration")
    p = _probabilities(probabilities, y.size, "calibration")
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    if bins == "uniform":
        edges, closed = np.linspace(0.0, 1.0, num_bins + 1), "left"
    elif bins == "quantile":
        inner, times = np.unique(
            np.quantile(p, np.linspace(0.0, 1.0, num_bins + 1)[1:-1]), return_counts=True
        )
        # One that more than a bin's worth of examples share has a bin of its own.
        inner = np.union1d(inner, np.nextafter(inner[times > 1], 0.0))
        edges = np.concatenate([[p.min()], inner[inner >= p.min()], [p.max()]])
        closed = "right"
    else:
        raise ValueError(f"bins must be 'uniform' or 'quantile', got {bins!r}")
    # Interior edges only: the first and last bin are closed at the outer end.
    index = np.searchsorted(edges[1:-1], p, side="right" if closed == "left" else "left")
    size = edges.size - 1
    counts = np.bincount(index, minlength=size)
    used = counts > 0
    predicted = np.bincount(index, weights=p, minlength=size)[used] / counts[used]
    observed = np.bincount(index, weights=y, minlength=size)[used] / counts[used]
    return CalibrationTable(
        edges[:-1][used], edges[1:][used], counts[used].astype(np.int64), predicted, observed
    )


def expected_calibration_error(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    num_bins: int = 10,
    bins: Literal["uniform", "quantile"] = "uniform",
) -> float:
    """`calibration_table(...).expected_calibration_error`; arguments and errors as there."""
    return calibration_table(labels, probabilities, num_bins, bins).expected_calibration_error
