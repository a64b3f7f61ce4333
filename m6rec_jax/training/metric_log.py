"""Scalars of a run: `metrics.jsonl` (one object per line) and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any, Self

from etils import epath

from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.buckets import in_bucket

METRICS_FILE = "metrics.jsonl"
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
        self._writer: Any = None
        self._path = folder / METRICS_FILE
        self._in_bucket = in_bucket(folder)  # buckets cannot append: written whole on flush
        self._lines: list[str] = []
        self._active = active
        if not active:
            return
        if first_step and self._path.exists():
            self._lines = [
                line
                for line in self._path.read_text().splitlines()
                if _step_of(line, self._path) <= first_step
            ]
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

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_all(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(line + "\n" for line in self._lines)
        write_atomically(self._path, text)


def read_metrics(folder: str | epath.Path) -> list[dict[str, float]]:
    """The lines of MODEL_DIR's `metrics.jsonl`, oldest first (for reports and plots)."""
    path = epath.Path(folder) / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if math.isfinite(_step_of(line, path))]


def _step_of(line: str, path: epath.Path) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A process killed while writing leaves half a line.
        logger.warning("%s: dropped an unreadable line", path)
        return float("inf")
