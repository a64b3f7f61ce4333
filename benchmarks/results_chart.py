"""The pictures of `docs/results.md`."""

from __future__ import annotations

import hashlib
import io
import json
import statistics
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """One line per model, a dot per seed, a tick at the mean."""

    title: str
    data: tuple[tuple[str, tuple[float, ...]], ...]

    @property
    def mark(self) -> str:
        """Fingerprint of what is drawn, written into the file.

        Whether a picture is stale must not depend on the version of matplotlib that drew it.
        """
        digest = hashlib.sha256(json.dumps([self.title, self.data]).encode()).hexdigest()
        return f"<!-- data {digest[:16]} -->"

    def svg(self) -> str:
        """Draws it."""
        # Imported late: `--check` does without.
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        style = {"svg.fonttype": "none", "svg.hashsalt": "m6rec", "font.size": 10}
        with matplotlib.rc_context(style):
            figure, axes = pyplot.subplots(figsize=(6.4, 0.7 + 0.32 * len(self.data)))
            for row, (_, values) in enumerate(self.data):
                axes.plot(values, [row] * len(values), "o", color="#2b6cb0", alpha=0.55, ms=5)
                axes.plot([statistics.fmean(values)], [row], "|", color="#1a202c", ms=13, mew=2)
            axes.set_yticks(range(len(self.data)), [model for model, _ in self.data])
            axes.set_ylim(-0.6, len(self.data) - 0.4)
            axes.set_xlabel(self.title)
            axes.grid(axis="x", color="#e2e8f0")
            axes.set_axisbelow(True)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
            axes.tick_params(axis="y", length=0)
            buffer = io.StringIO()
            figure.savefig(
                buffer,
                format="svg",
                bbox_inches="tight",
                facecolor="white",
                metadata={"Date": None},
            )
            pyplot.close(figure)
        return buffer.getvalue().rstrip() + f"\n{self.mark}\n"
