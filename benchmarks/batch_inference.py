"""`m6rec infer --requests` on a large file: nothing lost, nothing twice, memory flat.

    python -m benchmarks.batch_inference [--requests 100000] [--malformed 50] [--jobs scoring ...]
    python -m benchmarks.batch_inference --engine ray --requests 1000000 --malformed 500 ...

Makes a shop of made-up films, prepares it, saves a model with random weights (speed does not depend
on them), and writes requests of known and of new users, some rows of them malformed in all ways
that are told apart. Then the command runs in a process of its own, is killed with SIGKILL when half
of the requests are committed, and is started again. The output is compared row by row with what was
asked, the side file reason by reason. Memory is that of the process, sampled twice a second; its
growth is between the second and the last quarter of what the second run does. With `--engine ray`
two workers answer, and one of them is killed after a third and again after two thirds, instead of
the command.

Rows go to `benchmarks/results/batch_inference.json`, or to --output.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.command_line import UNMET, errors_told
from benchmarks.data_prepare import process_tree
from benchmarks.results_file import Row, add_rows, metric_rows, results_path
from m6rec_jax.errors import DataError

MODEL_FILE = "gin_configs/models/tiny.gin"
JOBS = ("scoring", "retrieval")
SOURCE_LENGTH, TARGET_LENGTH = 112, 72
NUM_USERS = 200
LAST_EVENT, NOW = 1_700_000_000, 1_700_100_000
GENRES = ("comedy", "drama", "horror", "western", "romance", "war", "crime")
WORDS = ("Last", "Silent", "Red", "River", "House", "King", "Summer", "Night", "Paper", "Glass")
TEMPLATE = {
    "profile": "{age} years old[, {user_count} films][, liked {user_positive_percent}%]",
    "event": "{outcome} {title}[ ({year})], {ago}",
    "context": "{weekday}",
    "candidate": "{title}[ ({year})][, {genres}][, {item_count} views][, {item_positive_percent}% "
    "like it][, liked {user_genres_counts}][, expected {user_expected_value}]",
    "item": "{title}[ ({year})][, {genres}]",
    "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
}
DATASET = {
    "name": "made-up-films",
    "users": {"id": "user_id", "columns": {"age": "int"}},
    "items": {
        "id": "item_id",
        "columns": {"title": "string", "year": "int", "genres": "list<string>"},
    },
    "events": {"user": "user_id", "item": "item_id", "time": "time", "value": "rating"},
    "label": {"at_least": 4},
    "statistics": {"by": ["genres"]},
    "template": TEMPLATE,
}


class Sample(NamedTuple):
    """Of a running process: requests committed, and memory in MiB."""

    committed: int
    memory: float


def write_data_set(folder: Path, num_items: int) -> Path:
    """A data set folder of made-up films and ratings."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    items = [
        {
            "item_id": f"f{n}",
            "title": " ".join(rng.choice(WORDS, 3, replace=False)) + f" {n}",
            "year": int(rng.integers(1930, 2024)),
            "genres": sorted(rng.choice(GENRES, int(rng.integers(1, 4)), replace=False)),
        }
        for n in range(num_items)
    ]
    number = NUM_USERS * 20
    events = {
        "user_id": [f"u{n % NUM_USERS}" for n in range(number)],
        "item_id": [f"f{n}" for n in rng.integers(0, num_items, number)],
        "time": np.sort(rng.integers(LAST_EVENT - 10**7, LAST_EVENT, number)),
        "rating": rng.integers(1, 6, number),
    }
    users = {
        "user_id": [f"u{n}" for n in range(NUM_USERS)],
        "age": [20 + n % 50 for n in range(NUM_USERS)],
    }
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    pq.write_table(pa.table(events), folder / "events.parquet")
    pq.write_table(pa.table(users), folder / "users.parquet")
    (folder / "dataset.json").write_text(json.dumps(DATASET, indent=2))
    return folder


def requests(number: int, num_items: int, behaviours: int, candidates: int) -> Iterator[Any]:
    """Requests of known users (a half) and new ones, with up to so many behaviours."""
    rng = np.random.default_rng(1)
    for row in range(number):
        count = int(rng.integers(0, behaviours + 1))
        times = np.sort(rng.integers(LAST_EVENT + 1, NOW, count)).tolist()
        told = zip(rng.integers(0, num_items, count), times, rng.integers(1, 6, count), strict=True)
        user: dict[str, Any] = {"age": int(rng.integers(18, 80))}
        if row % 2:
            user["id"] = f"u{row % NUM_USERS}"
        yield {
            "request": row,
            "user": user,
            "time": NOW,
            "history": [{"item": f"f{i}", "time": t, "value": int(v)} for i, t, v in told],
            "candidates": [f"f{i}" for i in rng.integers(0, num_items, candidates)],
        }


def malformed(request: dict[str, Any], number: int) -> tuple[str, bytes]:
    """A request spoilt in one of the ways that are told apart, and the kind of reason expected."""
    late = {"item": "f0", "time": NOW - 1, "value": 3}
    kinds: list[tuple[str, Any]] = [
        ("invalid_json", None),
        ("invalid_utf8", None),
        ("not_an_object", [request]),
        ("wrong_type", request | {"history": "none"}),
        ("missing_field", request | {"history": [{"time": NOW - 1, "value": 3}]}),
        ("time_out_of_order", request | {"history": [late, late | {"time": NOW - 2}]}),
        ("nan", request | {"time": float("nan")}),
        ("bad_time", request | {"time": NOW * 1000}),
        ("no_text", request | {"user": {}}),
    ]
    kind, row = kinds[number % len(kinds)]
    line = json.dumps(request if row is None else row).encode()
    if kind == "invalid_json":
        return kind, line[:-1]
    if kind == "invalid_utf8":
        return kind, line.replace(b'"user"', b'"us\xe9r"')
    return kind, line


def write_requests(
    path: Path, number: int, num_malformed: int, num_items: int, behaviours: int, candidates: int
) -> dict[int, str]:
    """Writes JSON lines; returns the malformed rows, and the kinds of reason expected."""
    rows = np.random.default_rng(2).choice(number, num_malformed, replace=False).tolist()
    order = {row: place for place, row in enumerate(sorted(rows))}
    expected: dict[int, str] = {}
    with path.open("wb") as file:
        for row, request in enumerate(requests(number, num_items, behaviours, candidates)):
            line = json.dumps(request).encode()
            if row in order:
                expected[row], line = malformed(request, order[row])
            file.write(line + b"\n")
    return expected


def save_model(folder: Path, prepared: Path, model_file: str) -> None:
    """A model folder with random weights, and a vocabulary of the films' words."""
    import jax
    from flax import linen as nn

    from m6rec_jax import configuration
    from m6rec_jax.checkpoints.manifest import RunDescription
    from m6rec_jax.checkpoints.store import CheckpointStore
    from m6rec_jax.data.prepared import read_catalogue
    from m6rec_jax.engine.loaded_model import InferenceSettings
    from m6rec_jax.engine.model_folder import save_assets
    from m6rec_jax.engine.task_settings import TaskSettings
    from m6rec_jax.model.m6rec import initial_features
    from m6rec_jax.text.vocabulary import Vocabulary
    from m6rec_jax.text.vocabulary_training import train_vocabulary

    folder.mkdir(parents=True)
    words = [re.sub(r"[\[\]{}]", " ", str(text)) for text in TEMPLATE.values()]
    texts = [*read_catalogue(prepared).texts, *words * 3]
    train_vocabulary(
        texts,
        folder / "words.model",
        size=1_000,
        split_by_whitespace=True,
        separate_punctuation=True,
        separate_numbers=True,
    )
    vocabulary = Vocabulary(folder / "words.model")
    configuration.parse_config(
        [model_file, "gin_configs/tuning/option_adapter.gin"],
        ["NUM_OPTIONS=2", "RETRIEVAL_DIM=64", f"VOCAB_SIZE={vocabulary.size}"],
    )
    model, key = configuration.macro("MODEL"), jax.random.key(0)
    init = jax.jit(lambda key: nn.meta.unbox(model.init(key, initial_features())))
    run = RunDescription(model.config, vocabulary.fingerprint, "all", 1)
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(0, dict(init({"params": key, "prompts": key})), data={}, run=run)
    tasks = {"films": TaskSettings(max_events=30, prepared=prepared.name)}
    settings = InferenceSettings(SOURCE_LENGTH, TARGET_LENGTH, tasks)
    save_assets(folder, vocabulary, settings, {prepared.name: DATASET})


def watch(
    command: Sequence[str],
    progress: Path,
    kill_at: int | None = None,
    kill_workers_at: Sequence[int] = (),
) -> tuple[list[Sample], float]:
    """Runs a command, sampling its memory; kills it when so many requests are committed.

    Args:
      kill_workers_at: at each of these numbers of requests one worker of Ray's is killed.

    Returns:
      The samples, and the seconds that it ran.

    Raises:
      DataError: it failed, or ended before it could be killed.
    """
    samples: list[Sample] = []
    left = list(kill_workers_at)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            sample = Sample(_committed(progress), _memory_of(process.pid))
            samples.append(sample)
            if kill_at is not None and sample.committed >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
            if left and sample.committed >= left[0]:
                left.pop(0)
                os.kill(_a_worker(process.pid), signal.SIGKILL)
            time.sleep(0.5 if kill_at is None else 0.05)
        status = process.wait()
        errors.seek(0)
        if status != (0 if kill_at is None else -signal.SIGKILL):
            raise DataError(
                f"exit status {status} of {' '.join(command)}: {errors.read().decode()}"
            )
    if left:
        raise DataError("the run was too short for a worker to be killed: ask for more requests")
    return samples, time.perf_counter() - start


def memory_growth(samples: Sequence[Sample]) -> float:
    """MiB by which the peak of the last quarter of the requests exceeds that of the second one.

    Raises:
      DataError: the run was too short to tell.
    """
    first, last = samples[0].committed, max(sample.committed for sample in samples)

    def peak(begin: float, end: float) -> float:
        bounds = [first + share * (last - first) for share in (begin, end)]
        found = [s.memory for s in samples if bounds[0] <= s.committed <= bounds[1]]
        if not found:
            raise DataError("the run was too short to tell how memory grows: ask for more requests")
        return max(found)

    return peak(0.75, 1.0) - peak(0.25, 0.5)


def check_output(
    output: Path, number: int, expected: Mapping[int, str], results: Sequence[str]
) -> dict[str, float]:
    """Compares the output with what was asked.

    Args:
      output: JSON lines.
      number: of requests.
      expected: malformed rows, and the kinds of reason expected.
      results: fields that every row must have.

    Returns:
      `answered`, `reasons`, `rows_lost_or_twice`, `wrong_reasons`.
    """
    found: collections.Counter[int] = collections.Counter()
    with output.open("rb") as file:
        for line in file:
            row = json.loads(line)
            if all(len(row[name]) for name in results):
                found[row["request"]] += 1
    wanted = collections.Counter(row for row in range(number) if row not in expected)
    wrong = (wanted - found) + (found - wanted)
    with output.with_name(f"{output.stem}.rejected.jsonl").open("rb") as file:
        reasons = [(row["row"], row["kind"]) for row in map(json.loads, file)]
    differing = set(reasons) ^ set(expected.items())
    return {
        "answered": found.total(),
        "reasons": len(reasons),
        "rows_lost_or_twice": wrong.total(),
        "wrong_reasons": len(differing) + len(reasons) - len(set(reasons)),
    }


def measure(job: str, folder: Path, prepared: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one job: killed half-way, and started again."""
    path = folder / "requests.jsonl"
    expected = write_requests(
        path,
        options.requests,
        options.malformed,
        options.items,
        options.behaviours,
        options.candidates,
    )
    given = ["--gin.MODEL_DIR=" + str(folder / "model"), "--gin.PREPARED=" + str(prepared)]
    program = [sys.executable, "-m", "m6rec_jax.cli"]
    extra: list[str] = []
    if job == "retrieval":
        index = str(folder / "index")
        subprocess.run([*program, "index", "build", "--output", index, *given], check=True)
        extra = ["--index", index]
    output = folder / f"{job}.jsonl"
    command = [*program, "infer", "--requests", str(path), "--output", str(output), *extra, *given]
    command += [f"--gin.infer_requests.job={job}", f"--gin.BATCH_SIZE={options.batch}"]
    command += [f"--gin.infer_requests.chunk_size={options.chunk}"]
    progress = output.with_name(f"{output.name}.parts") / "progress.jsonl"
    if options.engine == "ray":
        command += ["--engine=ray", "--gin.WorkerOptions.number=2"]
        thirds = [options.requests // 3, 2 * options.requests // 3]
        killed, first = [Sample(0, 0.0)], 0.0
        resumed, second = watch(command, progress, kill_workers_at=thirds)
    else:
        killed, first = watch(command, progress, kill_at=options.requests // 2)
        resumed, second = watch(command, progress)
    results = {"scoring": ["probabilities"], "retrieval": ["item_ids", "scores"]}[job]
    figures = check_output(output, options.requests, expected, results)
    done = max(s.committed for s in resumed) - resumed[0].committed
    return figures | {
        "requests_per_second": done / second,
        "peak_memory_mib": max(sample.memory for sample in [*killed, *resumed]),
        "memory_growth_mib": memory_growth(resumed),
        "seconds": first + second,
    }


def study(options: argparse.Namespace) -> list[Row]:
    """Result rows of all jobs."""
    from m6rec_jax.data.prepare import prepare
    from m6rec_jax.data.prepare_options import PrepareOptions

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_data_set(folder / "films", options.items)
        wanted = PrepareOptions(views=("catalogue",))
        prepared = prepare(source, folder / "data", options=wanted, progress=False).folder
        save_model(folder / "model", prepared, options.gin_file)
        for job in options.jobs:
            figures = measure(job, folder, prepared, options)
            seconds = figures.pop("seconds")
            rows += metric_rows(
                figures,
                model=Path(options.gin_file).stem,
                dataset=f"{options.requests:,} requests, {options.malformed:,} malformed",
                split=job if options.engine == "process" else f"{job} by workers",
                seed=None,
                gin_file=options.gin_file,
                seconds=seconds,
            )
            print(f"{job}: " + ", ".join(f"{name} {value:,.6g}" for name, value in figures.items()))
    return rows


def _committed(progress: Path) -> int:
    """Requests that a run has committed; its last line may be half written."""
    try:
        lines = progress.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["end"][0]) if lines else 0


def _a_worker(command: int) -> int:
    """Process id of the newest worker of the Ray that a command, by its process id, started."""
    found = []
    for process in process_tree(command):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::_Worker"):
                found.append(process)
    if not found:
        raise DataError("no worker of Ray's runs here")
    return max(found)


def _memory_of(pid: int) -> float:
    """Resident memory of a process in MiB; 0 when it has just ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        if not Path("/proc/self/status").exists():
            raise DataError("memory is read from /proc, so this study needs Linux") from None
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 3 where a row was lost, came twice or has a wrong reason."""
    parser = argparse.ArgumentParser(description="A large file of requests, killed half-way.")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--malformed", type=int, default=50)
    parser.add_argument("--items", type=int, default=2_000, help="films in the catalogue")
    parser.add_argument("--behaviours", type=int, default=20, help="of a request, at most")
    parser.add_argument("--candidates", type=int, default=4, help="of a request")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch")
    parser.add_argument("--chunk", type=int, default=1024, help="requests committed at a time")
    parser.add_argument("--gin_file", default=MODEL_FILE, help="of the model")
    parser.add_argument("--engine", choices=("process", "ray"), default="process")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument(
        "--output", type=Path, default=results_path("batch_inference"), help="the result file"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = study(options)
    add_rows(options.output, rows)
    bad = {"rows_lost_or_twice", "wrong_reasons"}
    return UNMET if any(row["metric"] in bad and row["value"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
