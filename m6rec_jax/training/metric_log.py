"""Scalars of a run: `metrics.jsonl` (one object per line) and TensorBoard."""

from __future__ import annotations

import json
import logging
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
        self._path, self._active = folder / METRICS_FILE, active
        self._in_bucket = in_bucket(folder)  # buckets cannot append: written whole on flush
        self._lines: list[str] = []
        self._writer: Any = None
        if not active:
            return
        if first_step:
            lines = read_metrics(folder)
            self._lines = [json.dumps(line) for line in lines if line["step"] <= first_step]
        self._path.parent.mkdir(parents=True, exist_ok=True)
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
