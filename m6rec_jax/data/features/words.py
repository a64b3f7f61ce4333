"""Words for many numbers at once: `text.verbalize` is asked once for each text that differs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source, classes
from m6rec_jax.text.records import Value

# Nearer than this to where a text changes, numbers are looked at one by one: arrays may round
# otherwise than single numbers.
_NEAR = 1e-6
_PERCENT = [None, *(verbalize.percent(number / 100) for number in range(101))]


def percents(name: str, shares: np.ndarray, known: np.ndarray) -> Source:
    """Shares `[n]` in percent; nothing where they are not `known` `[n]`."""
    shares = np.clip(shares, 0.0, 1.0)  # rounding may put the mean of ones above one
    scaled = shares * 100 + 0.5
    codes = np.floor(scaled).astype(np.int64)
    for number in np.flatnonzero(known & (np.abs(scaled - np.rint(scaled)) < _NEAR)).tolist():
        codes[number] = int(verbalize.percent(float(shares[number])))
    return Source(np.where(known, codes + 1, 0), _PERCENT, name)


def rounded(
    name: str, numbers: np.ndarray, spreads: np.ndarray, known: np.ndarray, *, signed: bool = False
) -> Source:
    """Numbers `[n]` as finely as matters beside spreads `[n]`: see `verbalize.rounded`."""
    exponents = np.log10(spreads)
    near = np.abs(np.abs(exponents % 1) - 0.5) < _NEAR
    step_of = {}
    exponents = np.maximum(np.rint(exponents), -9).astype(np.int64)
    for exponent in np.unique(exponents).tolist():
        step_of[exponent] = 10.0 ** (exponent - 1) / 2
    steps = np.asarray(list(step_of.values()))[
        np.searchsorted(np.asarray(list(step_of)), exponents)
    ]
    ticks = np.rint(np.where(known, numbers, 0.0) / steps)
    ticks -= ticks.min(initial=0.0)
    # Far apart, they are looked at one by one, as those whose step is in doubt.
    alone = near | (ticks > 1e9)
    numbered = np.where(alone, np.arange(1, len(ticks) + 1), 0)
    codes = (exponents + 9, np.where(alone, 0, ticks).astype(np.int64), numbered)

    def text(number: int) -> str:
        return verbalize.rounded(float(numbers[number]), float(spreads[number]), signed=signed)

    return _of_classes(name, codes, known, text)


def of_distinct(
    name: str, values: np.ndarray, known: np.ndarray, text: Callable[[float], Value]
) -> Source:
    """What `text` makes of values `[n]`; nothing where they are not `known` `[n]`."""
    _, codes = np.unique(np.where(known, values, 0), return_inverse=True)
    return _of_classes(name, (codes,), known, lambda number: text(values[number].item()))


def ages(name: str, seconds: np.ndarray, known: np.ndarray) -> Source:
    """How long ago `[n]`: see `verbalize.ago`; nothing where it is not `known` `[n]`."""
    codes = verbalize.age_classes(np.where(known, seconds, 0.0))
    return _of_classes(name, (codes,), known, lambda n: verbalize.ago(float(seconds[n])))


def _of_classes(
    name: str, codes: tuple[np.ndarray, ...], known: np.ndarray, text: Callable[[int], Value]
) -> Source:
    first, combined = classes(known.astype(np.int64), *(np.where(known, c, 0) for c in codes))
    values = [text(number) if known[number] else None for number in first.tolist()]
    return Source(combined, values, name)
