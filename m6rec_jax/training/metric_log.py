"""Scalars of a run, `metrics.jsonl` (one object per line) and TensorBoard, and where time goes."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from etils import epath

from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.buckets import in_bucket

METRICS_FILE = "metrics.jsonl"
PARTS = ("startup", "compile", "input_wait", "step", "checkpoint", "evaluation")
logger = logging.getLogger(__name__)


class MetricLog:
    """Writes scalars with their step. Lines after `first_step`, left by a killed run, are removed.

    A run that starts at step 0 keeps none: it validates its start anew, too.

    Args:
      folder: MODEL_DIR.
      first_step: the step a run starts or resumes from.
      tensorboard: also write TensorBoard files to `folder/tensorboard` (imports tensorflow).
      active: False in all processes but one.
    """

    def __init__(
        self, folder: epath.Path, *, first_step: int, tensorboard: bool, active: bool
    ) -> None:
        self._path, self._active = folder / METRICS_FILE, active
        self._in_bucket = in_bucket(folder)  # buckets cannot append: written whole on flush
        self._writer: Any = None
        if not active:
            return
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step]
        self._lines = [json.dumps(line) for line in kept] if first_step else []
        folder.mkdir(parents=True, exist_ok=True)
        self._write_all()
        if tensorboard:
            from clu import metric_writers  # imports tensorflow: seconds and gigabytes

            self._writer = metric_writers.SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one line."""
        if not self._active:
            return
        line = json.dumps({"step": step, **{k: float(v) for k, v in scalars.items()}})
        self._lines.append(line)
        if not self._in_bucket:
            with self._path.open("a") as file:
                file.write(line + "\n")
        if self._writer is not None:
            self._writer.write_scalars(step, dict(scalars))

    def flush(self) -> None:
        """Makes everything written so far visible."""
        if self._active and self._in_bucket:
            self._write_all()
        if self._writer is not None:
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        if self._writer is not None:
            self._writer.close()

    def _write_all(self) -> None:
        write_atomically(self._path, "".join(line + "\n" for line in self._lines))


def read_metrics(folder: str | epath.Path) -> list[dict[str, float]]:
    """The lines of MODEL_DIR's `metrics.jsonl`, oldest first (for reports and plots)."""
    path = epath.Path(folder) / METRICS_FILE
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:  # a process killed while writing leaves half a line
            logger.warning("%s: dropped an unreadable line", path)
    return lines


class Goodput:
    """Sums host seconds by part. Steps run asynchronously: `step` is what the host waits for."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Adds the time spent in the `with` block to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begin

    def report(self) -> dict[str, float]:
        """`seconds/…` per part and in total, and `goodput`: the share of time in steps."""
        total = time.perf_counter() - self._begin
        report = {f"seconds/{part}": value for part, value in self.seconds.items()}
        return {**report, "seconds/total": total, "goodput": self.seconds["step"] / total}

    def __str__(self) -> str:
        """For a person: `goodput 81% of 120 s: step 97 s, ...`, largest first."""
        report = self.report()
        largest_first = sorted(self.seconds.items(), key=lambda part: -part[1])
        parts = ", ".join(
            f"{part.replace('_', ' ')} {value:.0f} s" for part, value in largest_first
        )
        return f"goodput {report['goodput']:.0%} of {report['seconds/total']:.0f} s: {parts}"
