from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.text import verbalize

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (60, "1 minute ago"),
        (HOUR, "1 hour ago"),
        (DAY, "1 day ago"),
        (14 * DAY, "2 weeks ago"),
        (61 * DAY, "2 months ago"),
        (731 * DAY, "2 years ago"),
    ],
)
def test_ago(seconds: float, text: str) -> None:
    assert verbalize.ago(seconds) == text


@given(st.floats(0, 1e10), st.floats(0, 1e10))
def test_older_never_sounds_newer(first: float, second: float) -> None:
    units = ["just", "minute", "hour", "day", "week", "month", "year"]

    def rank(seconds: float) -> tuple[int, int]:
        words = verbalize.ago(seconds).split()
        if words[0] == "just":
            return (0, 0)
        return (units.index(words[1].removesuffix("s")), int(words[0]))

    older, newer = max(first, second), min(first, second)
    assert rank(older) >= rank(newer)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0"),
        (1, "100"),
        (0.285, "29"),
        (1 / 3, "33"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert verbalize.percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (99.5, "about 100"),
        (100, "about 100"),
        (255, "about 260"),
        (1949, "about 1900"),
        (999_999, "about 1 million"),
        (7_200_000_000, "about 7.2 billion"),
    ],
)
def test_count(number: float, text: str) -> None:
    assert verbalize.count(number) == text


@given(st.integers(100, 10**12))
def test_count_is_within_five_percent(number: int) -> None:
    words = verbalize.count(number).split()
    scale = {"thousand": 1e3, "million": 1e6, "billion": 1e9}[words[2]] if len(words) > 2 else 1
    assert words[0] == "about"
    assert float(words[1]) * scale == pytest.approx(number, rel=0.05)


@pytest.mark.parametrize(
    ("rank", "text"),
    [
        (1, "among the top 1%"),
        (0.95, "among the top 5%"),
        (0.5, "among the top 50%"),
        (0.49, "among the bottom 50%"),
        (0.0, "among the bottom 1%"),
    ],
)
def test_percentile(rank: float, text: str) -> None:
    assert verbalize.percentile(rank) == text


@pytest.mark.parametrize(
    ("number", "spread", "text"),
    [
        (3.84, 1.1, "3.85"),
        (12.4, 4.0, "12.5"),
        (0.0744, 0.02, "0.0745"),
        (-0.01, 1.0, "0.00"),
        (-12.8, 25.0, "-13.0"),
        (1482.0, 1900.0, "1500"),
        # Values around zero are told as finely as others of the same spread.
        (0.003, 1.0, "0.00"),
    ],
)
def test_rounded(number: float, spread: float, text: str) -> None:
    assert verbalize.rounded(number, spread) == text
    signed = verbalize.rounded(number, spread, signed=True)
    assert signed == (text if text[0] == "-" else "+" + text)


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12))
def test_rounded_is_within_a_tenth_of_the_spread(number: float, spread: float) -> None:
    error = abs(float(verbalize.rounded(number, spread)) - number)
    # Half a step, of up to 1/20 * sqrt(10) of the spread; and the rounding of the number itself,
    # which may be much larger than the spread.
    assert error <= 0.08 * spread + 1e-12 * abs(number)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        *((verbalize.ago, (seconds,)) for seconds in (-1, -1e-9, math.nan, math.inf)),
        *((verbalize.percent, (share,)) for share in (-0.01, 1.01, math.nan)),
        *((verbalize.count, (number,)) for number in (-1, math.nan, math.inf)),
        *(
            (verbalize.rounded, two)
            for two in ((math.nan, 1), (math.inf, 1), (1, 0), (1, math.inf))
        ),
    ],
)
def test_what_is_no_such_number_is_refused(
    function: Callable[..., str], arguments: tuple[float, ...]
) -> None:
    with pytest.raises(DataError):
        function(*arguments)
