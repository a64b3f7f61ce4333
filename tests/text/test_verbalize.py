import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.text.verbalize import ago, count, percent, percentile, rounded

DAY = 86400


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (ago, (0,), "just now"),
        (ago, (60,), "1 minute ago"),
        (ago, (3600,), "1 hour ago"),
        (ago, (DAY,), "1 day ago"),
        (ago, (14 * DAY,), "2 weeks ago"),
        (ago, (61 * DAY,), "2 months ago"),
        (ago, (731 * DAY,), "2 years ago"),
        (percent, (0,), "0"),
        (percent, (1,), "100"),
        (percent, (0.285,), "29"),
        (count, (0,), "0"),
        (count, (99.5,), "about 100"),
        (count, (255,), "about 260"),
        (count, (1949,), "about 1900"),
        (count, (999_999,), "about 1 million"),
        (count, (7_200_000_000,), "about 7.2 billion"),
        (percentile, (1,), "among the top 1%"),
        (percentile, (0.95,), "among the top 5%"),
        (percentile, (0.5,), "among the top 50%"),
        (percentile, (0.49,), "among the bottom 50%"),
        (percentile, (0.0,), "among the bottom 1%"),
        (rounded, (3.84, 1.1), "3.85"),
        (rounded, (0.0744, 0.02), "0.0745"),
        (rounded, (-12.8, 25.0), "-13.0"),
        (rounded, (1482.0, 1900.0), "1500"),
        # Values around zero are told as finely as others of the same spread.
        (rounded, (-0.01, 1.0), "0.00"),
    ],
)
def test_words(function, arguments, text):
    assert function(*arguments) == text
    if function is rounded:
        assert rounded(*arguments, signed=True) == (text if text[0] == "-" else "+" + text)


@given(st.floats(0, 1e10), st.floats(0, 1e10))
def test_older_never_sounds_newer(first, second):
    units = ["just", "minute", "hour", "day", "week", "month", "year"]

    def rank(seconds):
        words = ago(seconds).split()
        return (0, 0) if words[0] == "just" else (units.index(words[1].rstrip("s")), int(words[0]))

    assert rank(max(first, second)) >= rank(min(first, second))


@given(st.integers(100, 10**12))
def test_count_is_within_five_percent(number):
    words = count(number).split()
    scale = {"thousand": 1e3, "million": 1e6, "billion": 1e9}[words[2]] if len(words) > 2 else 1
    assert words[0] == "about"
    assert float(words[1]) * scale == pytest.approx(number, rel=0.05)


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12))
def test_rounded_is_within_a_tenth_of_the_spread(number, spread):
    error = abs(float(rounded(number, spread)) - number)
    # Half a step, of up to 1/20 * sqrt(10) of the spread; and the rounding of the number itself,
    # which may be much larger than the spread.
    assert error <= 0.08 * spread + 1e-12 * abs(number)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        *((ago, (seconds,)) for seconds in (-1, -1e-9, math.nan, math.inf)),
        *((percent, (share,)) for share in (-0.01, 1.01, math.nan)),
        *((count, (number,)) for number in (-1, math.nan, math.inf)),
        *((rounded, two) for two in ((math.nan, 1), (math.inf, 1), (1, 0), (1, math.inf))),
    ],
)
def test_what_is_no_such_number_is_refused(function, arguments):
    with pytest.raises(DataError):
        function(*arguments)
