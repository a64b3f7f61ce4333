"""The one progress bar: lively on a terminal, a line every ten seconds in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, **options: Any) -> tqdm[Any]:
    """A `tqdm` bar, with its arguments, that does not flood what is not a terminal."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    # tqdm's watch over slow bars redraws after `maxinterval`, whatever `mininterval` says.
    return tqdm(*arguments, mininterval=interval, maxinterval=10.0, dynamic_ncols=True, **options)
