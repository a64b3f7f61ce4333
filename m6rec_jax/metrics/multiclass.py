"""Metrics of texts with one of several classes: accuracy, macro F1, AUC.

Degenerate input raises `DataError`, as in `metrics.classification`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sklearn_metrics

from m6rec_jax.errors import DataError

FloatArray = npt.NDArray[np.float64]


def multiclass_metrics(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """All metrics of a classifier.

    Args:
      labels: `[n]`, class numbers below C.
      probabilities: `[n, C]`, rows sum to 1.

    Returns:
      `accuracy`; `macro_f1`, the plain mean of F1 over the classes that occur among labels or
      predictions; `auc`: with two classes that of the second, with more the plain mean over the
      classes that occur of each one against all others; `log_loss`, in nats; and `majority_share`,
      the accuracy of always saying the commonest class of these labels.

    Raises:
      DataError: no examples, shapes that do not fit, NaN, a label outside the classes, or labels
        of one class only.
    """
    y, p = _checked(labels, probabilities)
    predicted = p.argmax(axis=1)
    counts = np.bincount(y, minlength=p.shape[1])
    return {
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float(sklearn_metrics.f1_score(y, predicted, average="macro")),
        "auc": multiclass_auc(y, p),
        "log_loss": float(-np.log(np.clip(p[np.arange(y.size), y], 1e-7, 1.0)).mean()),
        "majority_share": float(counts.max() / y.size),
    }


def multiclass_auc(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """AUC as `multiclass_metrics` has it; arguments and errors as there."""
    y, p = _checked(labels, probabilities)
    present = np.unique(y)
    if present.size < 2:
        raise DataError(
            f"AUC is undefined: all {y.size} labels are {int(present[0])}; it needs two classes"
        )
    if p.shape[1] == 2:
        return float(sklearn_metrics.roc_auc_score(y, p[:, 1]))
    return float(np.mean([sklearn_metrics.roc_auc_score(y == k, p[:, k]) for k in present]))


def _checked(
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
