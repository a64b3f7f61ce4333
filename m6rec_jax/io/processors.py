"""How many processors a process may use."""

from __future__ import annotations

import os


def num_processors() -> int:
    """Fewer than the machine's where the process is held to some, as by `taskset`."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
