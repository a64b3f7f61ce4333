"""What exports of the demo's models are worth: how near to the model, how large, how fast.

    m6rec demo
    python -m benchmarks.export_size_speed [--demo runs/demo] [--parts formats litert browser ...]

Exports the demo's scoring and retrieval in every format, each of which verifies itself on 500
held-out rows of both tasks (`formats`). Times LiteRT's programs of the
scorer on one thread (`litert`), and the browser page in Chromium at a phone's size, as fast as here
and four times as slow (`browser`): these two want a quiet machine. Packs the scorer with weights of
8, 4 and 3 bits (`packed`), and a model of random weights of which 80% are zero (`sparse`). Exports
that are there are not made again. Rows go to `benchmarks/results/export_size_speed.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import chromium
from benchmarks.command_line import errors_told
from benchmarks.decoding_cpu import random_variables
from benchmarks.movielens import DATASET, m6rec
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, results_path, told_rows
from m6rec_jax.bank.export import add_prompts
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.engine.model_folder import load_model, packed_of
from m6rec_jax.engine.packed_file import Packed, quantized_variables, write_packed
from m6rec_jax.errors import DataError
from m6rec_jax.export.edge_bench import bench
from m6rec_jax.metrics.classification import auc
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.model.quantization import SCALE, scaled_axes
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.pipeline.prepared_rows import read_rows

RUNS = {"pretraining": "", "scoring": "ctr", "retrieval": "next"}
ROWS = 500
# A phone's screen, in CSS pixels.
PHONE = 390, 844
SLOWDOWNS = (1, 4)
CANDIDATES, TURNS = 100, 20
BITS = (8, 4, 3)
# About 10M parameters, of which a fifth stays, as the paper's model has.
TEN_MILLION = ModelConfig(
    vocab_size=8192,
    embed_dim=256,
    num_encoder_layers=4,
    num_decoder_layers=4,
    num_heads=4,
    head_dim=64,
    mlp_dim=768,
    logits_via_embedding=True,
)
SPARSITY = 0.8


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
PAGE = Format("web", "int8")
FORMATS = [
    *(Format(name, kind) for name in ("stablehlo", "saved_model") for kind in PRODUCTS),
    *(Format("litert", precision) for precision in PRECISIONS),
    *(PAGE, *SCORERS),
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
        found = bench(folder, [1])
        (row,) = found["rows"]
        at_a_time = manifest_of(folder)["candidates"]
        yield (
            str(format_),
            {
                "bytes": found["bytes"],
                "cached_candidate_milliseconds": row["candidate_milliseconds"],
                "candidate_milliseconds": row["candidate_milliseconds"]
                + row["history_milliseconds"] / at_a_time,
                "start_milliseconds": row["start_milliseconds"],
            },
        )


# Milliseconds of each of some requests, which a worker is asked as the page asks its own.
RANK = """(async (asked) => {
    const worker = new Worker("worker.js");
    const ask = (id, method, asked) => new Promise((done, fail) => {
        worker.onmessage = ({ data }) => {
            if (data.error) fail(new Error(data.error));
            else if (data.id === id) done(data.milliseconds);
        };
        worker.postMessage({ id, method, asked });
    });
    const threads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    await ask(0, "open", { threads });
    const found = [];
    for (const one of asked) found.push(await ask(found.length + 1, "score", one));
    worker.terminate();
    return found;
})"""
# How slow the browser is in fact.
LOOP = """(() => {
    const begin = performance.now();
    for (let i = 0, sum = 0; i < 4e8; i++) sum += i % 7;
    return performance.now() - begin;
})()"""
OPENED = "document.querySelector('#main:not([hidden])')"


def measure_browser(study: Study) -> Iterable[tuple[str, dict[str, float]]]:
    """The page's first visit, a later one from what it kept, and ranking 100 candidates."""
    folder = study.exported(PAGE)
    held_out = json.loads((folder / "held_out.json").read_text("utf-8"))
    scored = [one for one in held_out if one["signature"] == "score"]
    texts = list(dict.fromkeys(text for one in scored for text in one["inputs"]["candidates"]))
    # The first one warms up; histories differ, so none is kept.
    asked = [
        {"history": one["inputs"]["history"], "candidates": texts[:CANDIDATES], "task": one["task"]}
        for one in scored[: TURNS + 1]
    ]
    for slowdown in SLOWDOWNS:
        with (
            tempfile.TemporaryDirectory() as profile,
            chromium.browser(Path(profile), seconds=600, slowdown=slowdown) as tab,
            chromium.static_host(folder) as address,
        ):
            tab.resize(*PHONE)
            starts = []
            for _ in range(2):
                began = time.perf_counter()
                chromium.visit(tab, address, OPENED)
                starts.append(1000 * (time.perf_counter() - began))
            _, *times = tab.run(f"{RANK}({json.dumps(asked)})")
            # The first ones are compiled while they run.
            loop = statistics.median(tab.run(LOOP) for _ in range(5))
        yield (
            f"page, {slowdown} times as slow" if slowdown > 1 else "page",
            {
                "first_load_bytes": manifest_of(folder)["first_load_bytes"],
                "first_start_milliseconds": starts[0],
                "start_milliseconds": starts[1],
                "hundred_candidates_milliseconds": statistics.median(times),
                "loop_milliseconds": loop,
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
        write_packed(path, packed_of(run, bits))
        found = {"bytes": path.stat().st_size, "auc": held_out_auc(load_model(path))}
        yield f"{bits} bits", found


def measure_sparse(study: Study) -> Iterable[tuple[str, dict[str, float]]]:
    """Bytes of random weights, the smallest of each matrix dropped; no vocabulary."""
    flat = flatten(random_variables(M6Rec(TEN_MILLION)))
    for name, leaf in flat.items():
        if scaled_axes(name.removeprefix("params/")):
            sizes = np.abs(leaf)
            flat[name] = np.where(sizes > np.quantile(sizes, SPARSITY), leaf, 0)
    variables = quantized_variables(nested(flat))
    path = study.output / "sparse.m6rec"
    write_packed(path, Packed(TEN_MILLION, variables, 0, {}))
    leaves = [leaf for name, leaf in flatten(variables).items() if not name.endswith(SCALE)]
    yield (
        "random weights, 80% zero",
        {
            "parameters": sum(leaf.size for leaf in leaves),
            "nonzero_parameters": sum(int(np.count_nonzero(leaf)) for leaf in leaves),
            "bytes": path.stat().st_size,
        },
    )


PARTS: Mapping[str, Callable[[Study], Iterable[tuple[str, dict[str, float]]]]] = {
    "formats": measure_formats,
    "packed": measure_packed,
    "sparse": measure_sparse,
    "litert": measure_litert,
    "browser": measure_browser,
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
                config="m6rec demo" if part != "sparse" else "random weights",
            )
            add_rows(results_path("export_size_speed"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
