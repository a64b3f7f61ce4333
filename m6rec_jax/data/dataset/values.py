"""What values may be, and what is said of those that do not fit."""

from __future__ import annotations

from typing import Any

# How pandas and databases write what is missing, once it has become text: a whole value.
MISSING_WORD = r"^\s*((?i:nan|none|null|<na>|n/a)|NaT)\s*$"
# What times can be: 1970 to 2100. Milliseconds of any year after 1973 lie above.
FIRST_TIME, LAST_TIME = 0.0, 4_102_444_800.0


def short_text(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def out_of_range(time: float) -> str:
    """What is wrong with a time that lies not between `FIRST_TIME` and `LAST_TIME`."""
    hint = ""
    for unit, number in (("milli", 1000), ("micro", 1_000_000), ("nano", 1_000_000_000)):
        if LAST_TIME < time <= LAST_TIME * number and not hint:
            hint = f"; {unit}seconds? divide by {number}"
    return f"{time:g} is before 1970 or after 2100{hint}"
