"""Ten explanations to be read, drawn by a seed: `docs/explanation_examples.md`.

`benchmarks.jobs` writes them of its first run of explanations, from what `m6rec infer` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.movielens import m6rec
from benchmarks.provenance import ROOT

EXAMPLES = ROOT / "docs" / "explanation_examples.md"
NUMBER, SEED = 10, 0
_HEAD = """\
<!-- Written by `python -m benchmarks.jobs`. Change that, not this file. -->
# Ten explanations

Of the {total:,} texts of the test part that [the table](results.md#explanation) is of, ten, drawn
by `numpy.random.default_rng({seed})`. *History* is what was prepared of the user; the model reads
as much of it as it has room for. *Reference* is what the data set's template says of the same film.
"""


def write_examples(eval_gin_file: str, run: Path) -> None:
    """Writes the page of a run of explanations; predictions that are there are not made again.

    Raises:
      DataError: `m6rec infer` failed.
    """
    import pyarrow.parquet as pq

    output = run / "explanations.parquet"
    if not output.exists():
        model = f"--gin.MODEL_DIR='{run}'"
        m6rec("infer", "--gin_file", eval_gin_file, model, "--output", output)
    EXAMPLES.write_text(page_of(pq.read_table(output).to_pylist()), encoding="utf-8")


def page_of(predictions: Sequence[Mapping[str, Any]]) -> str:
    """The page, of rows with `source`, `prefix`, `written` and `reference`."""
    drawn = np.random.default_rng(SEED).choice(len(predictions), NUMBER, replace=False)
    parts = [_HEAD.format(total=len(predictions), seed=SEED)]
    for number, place in enumerate(sorted(drawn.tolist()), 1):
        row = predictions[place]
        *history, about = row["source"].split("\n")
        lines = {
            "history": _plain(" · ".join(history)),
            "film": _plain(about),
            "written": f"**{_plain(row['prefix'])} {_plain(row['written'])}**",
            "reference": _plain(f"{row['prefix']} {row['reference']}"),
        }
        table = [f"| *{name}* | {text} |" for name, text in lines.items()]
        parts.append("\n".join([f"## {number}", "", "| | |", "|---|---|", *table, ""]))
    return "\n".join(parts)


def _plain(text: str) -> str:
    """Text without meaning for Markdown: "M*A*S*H"."""
    return re.sub(r"([|*_`])", r"\\\1", text)
