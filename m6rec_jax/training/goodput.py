"""Where the time of a run goes: compiling, waiting for input, steps, checkpoints, evaluation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PARTS = ("startup", "compile", "input_wait", "step", "checkpoint", "evaluation")


class Goodput:
    """Sums host seconds by part. Steps run asynchronously: `step` is what the host waits for."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Adds the time spent in the `with` block to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - begin

    def seconds(self, *parts: str) -> float:
        """Seconds spent in these parts so far."""
        return sum(self._seconds[part] for part in parts)

    def report(self) -> dict[str, float]:
        """`seconds/…` per part and in total, and `goodput`: the share of time in steps."""
        total = time.perf_counter() - self._begin
        report = {f"seconds/{part}": value for part, value in self._seconds.items()}
        return {**report, "seconds/total": total, "goodput": self._seconds["step"] / total}


def summary(report: dict[str, float]) -> str:
    """A report of `Goodput` for a person: `goodput 81%: step 97 s, ...`, largest first."""
    seconds = {part: report[f"seconds/{part}"] for part in PARTS}
    largest_first = sorted(seconds.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{part.replace('_', ' ')} {value:.0f} s" for part, value in largest_first)
    return f"goodput {report['goodput']:.0%} of {report['seconds/total']:.0f} s: {parts}"
