"""The one progress bar: lively on a terminal, a line every ten seconds in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 10.0


def progress_bar(*arguments: Any, **options: Any) -> tqdm[Any]:
    """A `tqdm` bar on standard error that does not flood what is not a terminal.

    Args:
      arguments, options: `tqdm`'s.
    """
    interval = TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    # tqdm's watch over slow bars redraws after `maxinterval`, whatever `mininterval` says.
    return tqdm(
        *arguments,
        mininterval=interval,
        maxinterval=max(10.0, interval),
        dynamic_ncols=True,
        **options,
    )
