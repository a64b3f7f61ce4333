"""`m6rec data prepare` on synthetic ratings: speed, memory, bytes.

    python -m benchmarks.data_prepare [--events 100000 1000000] [--cores 1 2]

Films, users and ratings are drawn so that they look like MovieLens: popularity with a long tail,
evenings on which a user rates dozens of films, tastes in genres. Template, views and settings are
those of gin_configs/data/movielens-100k/prepare.gin: with statistics of pairs of films and hidden
factors. Each turn is the whole command in a process of its own, on one processor or on more.
Processor seconds are those of the command and all its children; the machine may be busy with other
things, so that they say more than seconds on the clock. Memory is the highest sum of what all
processes hold, shared pages counted once, and of that what is no page of a mapped file, which the
system takes back when memory is short. Rows go to `benchmarks/results/data_prepare.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.command_line import errors_told
from benchmarks.movielens import PREPARE
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, results_path, told_rows
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.errors import M6RecError
from tasks.films.source import GENRE_CLASSES as GENRES

NAME = "synthetic-ratings"
_EVENTS_A_USER, _DAY = 106, 86_400.0
Figures = dict[str, float]


def write_ratings(folder: Path, num_events: int) -> None:
    """Writes a data set folder of about as many events; every run writes the same."""
    random = np.random.default_rng(0)
    num_users = max(20, num_events // _EVENTS_A_USER)
    # 1,682 films for 100,000 ratings, as in MovieLens-100k; four thousand for ten million.
    num_items = round(1682 * (num_events / 1e5) ** 0.19)
    genres = random.integers(len(GENRES), size=(num_items, 2))
    items = {
        "item_id": [str(index) for index in range(num_items)],
        "title": [f"The {index}th Film of {index % 97} Nights" for index in range(num_items)],
        "year": random.integers(1930, 1999, num_items),
        "genres": [sorted({GENRES[a], GENRES[b]}) for a, b in genres.tolist()],
        "director": [[f"Director {n}"] for n in random.integers(num_items // 3, size=num_items)],
    }
    spec = dataclasses.replace(DatasetSpec.load(ROOT / "tasks/movielens"), name=NAME)
    missing = {name: [None] * num_items for name in spec.items.columns if name not in items}
    users = {
        "user_id": [str(index) for index in range(num_users)],
        "age": random.integers(10, 70, num_users),
        "gender": random.choice(["male", "female"], num_users),
        "occupation": random.choice(["writer", "student", "engineer"], num_users),
        "zip_code": ["00000"] * num_users,
    }
    tastes = random.normal(size=(num_users, len(GENRES)))
    quality = random.normal(size=num_items)
    weights = (np.arange(num_items) + 20.0) ** -0.9
    parts = []
    activity = np.maximum(20, random.lognormal(np.log(_EVENTS_A_USER) - 0.5, 1.0, num_users))
    # Nobody has seen more than a third of the films.
    sizes = np.minimum(activity * num_events / activity.sum(), num_items // 3).astype(int).tolist()
    for user, size in enumerate(sizes):
        # The `size` first ones of a draw without replacement.
        chosen = np.argpartition(random.exponential(size=num_items) / weights, size)[:size]
        evenings = random.integers(0, 700, 1 + size // 40) * _DAY
        start = evenings[random.integers(len(evenings), size=size)]
        liking = quality[chosen] + tastes[user, genres[chosen]].mean(axis=1)
        noisy = 3.5 + 0.7 * liking + random.normal(scale=0.7, size=size)
        values = np.clip(np.rint(noisy), 1, 5)
        times = 8.7e8 + start + random.integers(0, 3600, size)
        parts.append((np.full(size, user), chosen, times, values))
    users_of, item, times, values = map(np.concatenate, zip(*parts, strict=True))
    order = random.permutation(len(item))
    events = {
        "user_id": pa.array(users_of[order]).cast(pa.string()),
        "item_id": pa.array(item[order]).cast(pa.string()),
        "timestamp": pa.array(times[order].astype(np.int64)),
        "rating": pa.array(values[order].astype(np.int64)),
    }
    folder.mkdir(parents=True)
    text = {"genres": pa.list_(pa.string()), "director": pa.list_(pa.string())}
    for table, name in ((users, "users"), ({**items, **missing}, "items"), (events, "events")):
        arrays = {key: pa.array(column, text.get(key)) for key, column in table.items()}
        pq.write_table(pa.table(arrays), folder / f"{name}.parquet")
    spec.save(folder)


def process_tree(process: int) -> Iterator[int]:
    """A process and all its children that live, whichever thread started them."""
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            for child in path.read_text().split():
                yield from process_tree(int(child))


def _held(process: int) -> Counter[str]:
    """KiB that a process and its children hold; a page that several share counts once.

    Returns:
      'Pss:', all of them, and 'Pss_Anon:', without the pages of mapped files, which the system
      takes back when memory is short.
    """
    total = Counter[str]()
    for one in process_tree(process):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        fields = (line.split() for line in lines[1:])
        total.update({name: int(size) for name, size, _ in fields if name in ("Pss:", "Pss_Anon:")})
    return total


def take_turn(settings: Sequence[str], folder: Path, cores: int) -> Figures:
    """Prepares a folder on so many processors.

    Raises:
      M6RecError: the command failed; what it printed says why.
    """
    processors = sorted(os.sched_getaffinity(0))[:cores]
    with tempfile.TemporaryDirectory(prefix="m6rec-prepared-") as out:
        line = [sys.executable, "-m", "m6rec_jax.cli", "data", "prepare", str(folder), *settings]
        threads = {f"{name}_NUM_THREADS": str(cores) for name in ("OMP", "OPENBLAS", "MKL")}
        environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT), "M6REC_DATA_DIR": out}
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(
            line,
            cwd=out,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, processors),
            stdout=subprocess.DEVNULL,
        )
        peak = Counter[str]()
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.5):
                peak |= _held(process.pid)

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        ended.set()
        watcher.join()
        seconds = time.perf_counter() - started
        if status:
            raise M6RecError(f"`m6rec data prepare` with {settings} ended with status {status}")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        written = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    events = pq.read_metadata(folder / "events.parquet").num_rows
    return {
        "processor_seconds": processor,
        "seconds": seconds,
        "events_per_processor_second": events / processor,
        "peak_memory_mib": peak["Pss:"] / 1024,
        "peak_own_memory_mib": peak["Pss_Anon:"] / 1024,
        "written_mib": written / 2**20,
    }


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="m6rec-ratings-") as scratch:
        for events in options.events:
            folder = Path(scratch) / str(events) / NAME
            write_ratings(folder, events)
            for cores in options.cores:
                figures = take_turn(PREPARE, folder, cores)
                model = f"{events:,} ratings, {cores} core{'s' * (cores > 1)}"
                rows = told_rows(
                    {model: figures},
                    gin_file=PREPARE[1],
                    dataset=NAME,
                    split="per_user_temporal",
                    seed=None,
                )
                add_rows(results_path("data_prepare"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
