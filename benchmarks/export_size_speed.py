"""What exports of the demo's models are worth: how near to the model, how large, how fast.

    m6rec demo
    python -m benchmarks.export_size_speed [--demo runs/demo] [--parts formats litert packed]

Exports the demo's scoring and retrieval in every format, each of which verifies itself on 500
held-out rows of both tasks (`formats`). Times LiteRT's programs of the scorer on one thread
(`litert`), for which the machine should be quiet. Packs the scorer with weights of 8, 4 and 3 bits
(`packed`). Exports that are there are not made again. Rows go to
`benchmarks/results/export_size_speed.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import device_speed
from benchmarks.command_line import errors_told
from benchmarks.movielens import DATASET
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, results_path, told_rows
from benchmarks.runs import m6rec
from m6rec_jax.bank.export import add_prompts
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.engine.model_folder import LoadedModel, load_model, packed_of
from m6rec_jax.engine.programs.packed_archive import write_archive
from m6rec_jax.errors import DataError
from m6rec_jax.metrics.classification import auc
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.pipeline.prepared_rows import read_rows

RUNS = {"pretraining": "", "scoring": "ctr", "retrieval": "next"}
ROWS = 500
BITS = (8, 4, 3)


class Format(NamedTuple):
    """One export: of a bank with both tasks, or of the scorer alone."""

    name: str
    precision: str = "float32"
    of_scorer: bool = False

    def __str__(self) -> str:
        return f"{self.name}{', scorer alone' * self.of_scorer}, {self.precision}"


# The demo's models multiply in bfloat16: so do their exports unless they are told otherwise.
PRODUCTS = ("float32", "bfloat16")
PRECISIONS = ("float32", "float16", "int8")
SCORERS = [Format("litert", precision, of_scorer=True) for precision in PRECISIONS]
FORMATS = [
    *(Format(name, kind) for name in ("stablehlo", "saved_model") for kind in PRODUCTS),
    *(Format("litert", precision) for precision in PRECISIONS),
    *(Format("web", "int8"), *SCORERS),
]


@dataclasses.dataclass(frozen=True)
class Study:
    """Folders: `demo` of `m6rec demo`, `output` for what is made of it."""

    demo: Path
    output: Path

    def exported(self, format_: Format) -> Path:
        """The folder of an export, which is made where it is not there."""
        folder = self.output / str(format_).replace(", ", "-").replace(" ", "-")
        if folder.exists():
            return folder
        options = ["--output", folder, "--rows", ROWS, "--format", format_.name]
        if format_.precision != "bfloat16":
            options += ["--precision", format_.precision]
        if format_.of_scorer:
            m6rec("export", self.demo / "scoring", *options)
            return folder
        bank, index = self.output / "bank", self.output / "index"
        backbone = self.demo / "pretraining"
        if not bank.exists():
            for run, name in RUNS.items():
                if name:
                    add_prompts(bank, self.demo / run, name=name)
        if not index.exists():
            gin = {"MODEL_DIR": backbone, "BANK": bank, "TASK": "next"}
            bound = [f"--gin.{name}='{value}'" for name, value in gin.items()]
            m6rec("index", "build", "--output", index, *bound)
        if format_.name != "stablehlo":
            options += ["--index", index]
        m6rec("export", backbone, "--bank", bank, *options)
        return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    """What the export says of itself."""
    return json.loads((folder / "export.json").read_text("utf-8"))


def measure_formats(study: Study) -> Iterable[tuple[str, dict[str, float]]]:
    """How near each export comes to the model, and bytes of all that is shipped."""
    for format_ in FORMATS:
        folder = study.exported(format_)
        manifest = manifest_of(folder)
        results = manifest["verified"]["results"]
        found = {
            "verified_rows": sum(one["rows"] for one in results.values()),
            "largest_difference_ppm": 1e6
            * max(one["largest_difference"] for one in results.values()),
            "bytes": sum(manifest["sizes"].values()),
        }
        for one in results.values():
            found |= {name: one[name] for name in ("auc", "model_auc") if name in one}
        yield str(format_._replace(precision=manifest["precision"])), found


def measure_litert(study: Study) -> Iterable[tuple[str, dict[str, float]]]:
    """Bytes of the scorer; milliseconds a candidate, of a history that is kept or not."""
    for format_ in SCORERS:
        folder = study.exported(format_)
        row = device_speed.measured(folder)
        at_a_time = manifest_of(folder)["candidates"]
        yield (
            str(format_),
            {
                "bytes": manifest_of(folder)["bytes"],
                "cached_candidate_milliseconds": row["candidate_milliseconds"],
                "candidate_milliseconds": row["candidate_milliseconds"]
                + row["history_milliseconds"] / at_a_time,
                "start_milliseconds": row["start_milliseconds"],
            },
        )


def held_out_auc(model: LoadedModel) -> float:
    """AUC of the first held-out rows of a scorer's task."""
    (task, settings), *_ = model.settings.tasks.items()
    dataset, _, split = settings.prepared.rpartition(".")
    prepared = Prepared.open(data_dir(), dataset, split)
    rows = list(itertools.islice(read_rows(prepared, settings.view, "test"), ROWS))
    asked = [row["history"] for row in rows], [row["candidates"] for row in rows]
    scores = model.scorer(task).score_requests(*asked)
    labels = np.concatenate([np.asarray(row["labels"]) > 0 for row in rows])
    return float(auc(labels, np.concatenate(scores)))


def measure_packed(study: Study) -> Iterable[tuple[str, dict[str, float]]]:
    """Bytes and AUC of the scorer as one file, beside the run's own AUC."""
    run = study.demo / "scoring"
    yield "float32", {"auc": held_out_auc(load_model(run))}
    for bits in BITS:
        path = study.output / f"scorer-{bits}.m6rec"
        write_archive(path, packed_of(run, bits))
        found = {"bytes": path.stat().st_size, "auc": held_out_auc(load_model(path))}
        yield f"{bits} bits", found


PARTS: Mapping[str, Callable[[Study], Iterable[tuple[str, dict[str, float]]]]] = {
    "formats": measure_formats,
    "packed": measure_packed,
    "litert": measure_litert,
}


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "exports")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    study = Study(options.demo.resolve(), options.output.resolve())
    study.output.mkdir(parents=True, exist_ok=True)
    if missing := [run for run in RUNS if not (study.demo / run).is_dir()]:
        raise DataError(f"{study.demo} has no {missing[0]}: run m6rec demo")
    for part in options.parts:
        for name, figures in PARTS[part](study):
            rows = told_rows(
                {name: figures},
                dataset=DATASET,
                split=part,
                seed=None,
                config="m6rec demo",
            )
            add_rows(results_path("export_size_speed"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
