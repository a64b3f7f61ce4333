"""Which formats of `m6rec export` work with the libraries that are installed: each is tried.

    python -m benchmarks.export_formats

A model of random weights (`serving_folder`) is exported in every format, in a process of its own,
and each export verifies itself as those of users do. Rows go to
`benchmarks/results/export_formats.json`: a split for each environment, with what went wrong as the
note of a format that does not work. `make newest` runs it with the newest libraries of the index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT, portable, versions
from benchmarks.results_file import Row, add_rows, metric_rows, results_path
from benchmarks.serving_folder import write_folder
from m6rec_jax import configuration
from m6rec_jax.bank.loading import load_with_bank
from m6rec_jax.data.sources import DATA_DIR_VARIABLE
from m6rec_jax.export import held_out
from m6rec_jax.export.command import write_export
from m6rec_jax.export.formats import FORMATS, what_is_missing
from m6rec_jax.export.recording import Recorder
from m6rec_jax.export.titles import open_titles
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model import M6Rec

MODEL_FILE = "gin_configs/models/tiny.gin"
TASKS = {"ctr": "scoring", "next": "retrieval", "titles": "generation"}
HISTORIES = [["likes abc", "liked a film", "disliked another"], ["likes"], ["likes x", "Monday"]]
CANDIDATES = [["Film A"], ["Film B, c", "D"], ["E"]]
# Whose versions decide which formats work.
LIBRARIES = ("jax", "flax", "tensorflow", "ai-edge-litert")


def write_model(folder: Path) -> None:
    """Run, bank, index and data, where `export_in` looks for them."""
    write_folder(folder, MODEL_FILE)


def export_in(format_: str, folder: Path) -> dict[str, dict[str, float]]:
    """By program, how the export compares with the model."""
    from m6rec_jax.export import web_page  # imports tensorflow

    # LiteRT.js lies in the user's own data folder.
    runtime = web_page.find_runtime(None) if format_ == "web" else None
    os.environ[DATA_DIR_VARIABLE] = str(folder)
    configuration.parse_config([], ["dot_product_attention.implementation = 'plain'"])
    model = load_with_bank(folder / "run", bank=folder / "bank")
    catalogue = held_out.open_catalogue(model, folder / "index")
    model.model = M6Rec(model.model.config.replace(matmul_dtype=None))
    titles = open_titles(model) if format_ == "stablehlo" else None
    recorder, answered = Recorder(), list[held_out.Answered]()
    rows: list[dict[str, Any]] = [
        {"history": history, "source": history, "prefix": "", "candidates": texts, "items": texts}
        for history, texts in zip(HISTORIES, CANDIDATES, strict=True)
    ]
    for task, kind in TASKS.items():
        answered += held_out.answer(model, task, kind, rows, recorder, titles=titles)
    asked = held_out.Asked(
        model,
        recorder,
        answered,
        ("cpu", "cuda", "tpu"),
        catalogue=None if format_ == "stablehlo" else catalogue,
        runtime=runtime,
        titles=titles,
    )
    return write_export(folder / format_, format_, asked)


def rows_of(format_: str, folder: Path) -> list[Row]:
    """What exporting in a process of its own came to."""
    command = [sys.executable, "-m", "benchmarks.export_formats", format_, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    figures, reason = {"verified_programs": 0.0}, None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        reason = portable(lines[-1])
        print(f"{format_}:\n{done.stderr}", file=sys.stderr)
    else:
        results = json.loads(done.stdout.splitlines()[-1])
        largest = max(own["largest_difference"] for own in results.values())
        figures = {"verified_programs": len(results), "largest_difference_ppm": 1e6 * largest}
    print(f"{format_}: {figures}", flush=True)
    said = what_is_missing(format_)
    if (said is None) != (reason is None):
        print(f"m6rec doctor is wrong about {format_}: {said or 'works'}", file=sys.stderr)
    return metric_rows(
        figures,
        model=format_,
        dataset="export formats",
        split=versions(LIBRARIES),
        seed=None,
        gin_file=MODEL_FILE,
        note=reason,
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 also where formats do not work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("format", nargs="?", choices=FORMATS, help="only this one, with a folder")
    parser.add_argument("folder", nargs="?", type=Path, help="of the model; nothing is recorded")
    options = parser.parse_args(arguments)
    if options.folder:
        print(json.dumps(export_in(options.format, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        rows = [
            row for one in progress_bar(FORMATS, unit="format") for row in rows_of(one, Path(name))
        ]
    add_rows(results_path("export_formats"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
