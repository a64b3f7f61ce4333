"""The nearest known name to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `" (did you mean 'title'?)"`, or `""` if no name is near; case does not matter."""
    folded = {option.lower(): option for option in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f" (did you mean '{folded[near[0]]}'?)" if near else ""
