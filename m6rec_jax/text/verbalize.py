"""Numbers in words: how long ago, what share, how many, how high in the ranking.

The paper puts statistics and cross features into words ("among the top 5%", "4 times in the last 2
years"; section 2 of the notes). Every function is a pure function of its argument: no clock, no
locale, so training and serving agree to the letter. Few distinct outputs are a virtue: each is
seen more often in training.
"""

from __future__ import annotations

import math

import numpy as np

from m6rec_jax.errors import DataError

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_YEAR = 365.25 * _DAY
_WEEK, _MONTH = 7 * _DAY, _YEAR / 12

# A unit is used up to (not including) the age at which the next one starts to say enough.
_AGES: tuple[tuple[float, float, str], ...] = (
    (_HOUR, _MINUTE, "minute"),
    (_DAY, _HOUR, "hour"),
    (2 * _WEEK, _DAY, "day"),
    (2 * _MONTH, _WEEK, "week"),
    (2 * _YEAR, _MONTH, "month"),
    (math.inf, _YEAR, "year"),
)
_TOP_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)


def ago(seconds: float) -> str:
    """Says how long ago something happened: "just now", "19 minutes ago", "1 year ago".

    Whole units, rounded down: minutes below an hour, hours below a day, days below two weeks, weeks
    below two months, months below two years, then years. Raises DataError for a negative or
    infinite number of seconds.
    """
    if not 0 <= seconds < math.inf:
        raise DataError(f"an event cannot be {seconds} seconds old: history may only hold the past")
    if seconds < _MINUTE:
        return "just now"
    unit, name = next((unit, name) for limit, unit, name in _AGES if seconds < limit)
    number = int(seconds // unit)
    return f"{number} {name}{'' if number == 1 else 's'} ago"


def age_classes(seconds: np.ndarray) -> np.ndarray:
    """Numbers ages `[n]` in seconds: of equal numbers `ago` says the same."""
    limits = [_MINUTE, *(limit for limit, _, _ in _AGES[:-1])]
    units = np.asarray([math.inf, *(unit for _, unit, _ in _AGES)])
    unit = np.searchsorted(limits, seconds, side="right")
    return unit << 40 | (seconds // units[unit]).astype(np.int64)


def percent(share: float) -> str:
    """Writes a share between 0 and 1 as whole percent without the sign: 0.724 becomes "72".

    Halves round up, so 0.125 becomes "13". Raises DataError outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise DataError(f"a share must lie between 0 and 1, not {share}")
    # The rounding before floor takes 0.285 * 100 = 28.499999999999996 for the 28.5 it stands for.
    return str(math.floor(round(share * 100, 9) + 0.5))


def count(number: float) -> str:
    """Writes a count with two significant digits: "42", "about 250", "about 1.2 million".

    Counts below 100 are exact; a fraction is rounded to a whole first. Raises DataError for a
    negative or infinite number.
    """
    if not 0 <= number < math.inf:
        raise DataError(f"a count cannot be {number}")
    whole = math.floor(number + 0.5)
    if whole < 100:
        return str(whole)
    step = 10 ** (len(str(whole)) - 2)
    rounded = (whole + step // 2) // step * step
    for scale, name in ((10**9, "billion"), (10**6, "million"), (10**4, "thousand")):
        if rounded >= scale:
            scale = 1000 if name == "thousand" else scale
            digits = f"{rounded / scale:.1f}".removesuffix(".0")
            return f"about {digits} {name}"
    return f"about {rounded}"


def rounded(number: float, spread: float, *, signed: bool = False) -> str:
    """Writes a mean or a difference as finely as it matters: "3.85", "12.5", "-0.15", "1500".

    Args:
      number: what is written.
      spread: how far such values lie apart. Steps are a twentieth of the power of ten nearest to
        it: 0.05 for a spread between 0.32 and 3.2.
      signed: write the sign of positive numbers, too.

    Raises:
      DataError: a number that is not finite or too large beside its spread, or no positive spread.
    """
    if not (0 < spread < math.inf and math.isfinite(number / spread * 1e11)):
        raise DataError(f"{number} cannot be written as finely as values {spread} apart")
    exponent = max(-9, round(math.log10(spread)))
    step = 10.0 ** (exponent - 1) / 2
    # Adding 0.0 takes the sign off a minus zero.
    value = round(number / step) * step + 0.0
    return f"{value:{'+' if signed else ''}.{max(0, 2 - exponent)}f}"


def percentile(rank: float) -> str:
    """Says how high something stands: "among the top 5%", "among the bottom 25%".

    `rank` is the share of the population that does not stand higher; 1 is the best. Steps are 1, 5,
    10, 25 and 50 percent.
    """
    # Tolerance: 1 - 0.05 is 0.95 on paper, 0.9500000000000001 for some sums of floats.
    is_top = 1 - rank <= 0.5 + 1e-9
    share = next(s for s in _TOP_SHARES if (1 - rank if is_top else rank) <= s + 1e-9)
    return f"among the {'top' if is_top else 'bottom'} {percent(share)}%"
