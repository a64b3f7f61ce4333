"""The model in the box (`m6rec demo --edge`) on viewers that it was not trained on.

    m6rec data fetch film-viewers
    python -m benchmarks.box [--viewers 2000]

Viewers are made up anew, from another seed. Of each the first films but eight are known: the scorer
orders those eight by whether they are liked, and the towers look for the next film among the 2,000
best-known ones. Beside it, over the whole catalogue: how often films are watched in the training
data; and counts of the genres that a viewer liked or watched. Last, how long `m6rec demo --edge`
takes. Rows go to `benchmarks/results/box.json`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from m6rec_jax.data.sources import default_cache_dir, fetch
from m6rec_jax.data.statistics_state import values_of
from m6rec_jax.edge_demo import MODEL, EdgeDemo
from m6rec_jax.errors import DataError
from m6rec_jax.metrics.classification import auc
from m6rec_jax.text.records import Item
from tasks.films.made_up_viewers import Watched, make_viewers
from tasks.films.table import FILM_TABLE, FilmTable

GIN_FILE = "gin_configs/examples/film_viewers_box.gin"
_MODEL, _POPULARITY, _GENRES = "model in the box", "popularity", "genre counts"
DEMO, ANY_FILMS = "m6rec demo --edge", "without options"
# The data set's are of seed 0.
SEED = 1
_KEPT, _SMOOTHING = 8, 5.0
_KS = (10, 100)


class Viewer(NamedTuple):
    """What is known of a viewer, and what is asked."""

    known: Sequence[Watched]
    asked: Sequence[Watched]


def held_out(count: int) -> Iterator[Viewer]:
    """Viewers of another seed than the training data's."""
    raw = default_cache_dir() / "raw" / FILM_TABLE.name / "movies.db"
    watched = make_viewers(FilmTable.load(raw).films, count, SEED)
    for _, own in itertools.groupby(watched, key=lambda one: one.viewer):
        films = list(own)
        yield Viewer(films[:-_KEPT], films[-_KEPT:])


class Counts:
    """What counting knows: how often films were watched, and which genres a viewer likes.

    Args:
      items: the catalogue, in the order of the films.
      times_seen: of each in the training data, by id.
    """

    def __init__(self, items: Mapping[str, Item], times_seen: Mapping[str, int]) -> None:
        self.genres = [values_of(item, "genres") for item in items.values()]
        self.times = np.array([times_seen.get(id_, 0) for id_ in items], np.float64)
        self._share: Counter[str] = Counter()
        for genres, share in zip(self.genres, self.times / self.times.sum(), strict=True):
            self._share.update(dict.fromkeys(genres, share))

    def liking(self, viewer: Viewer) -> list[float]:
        """Share of likes among what the viewer watched of an asked film's genres, smoothed."""
        seen, liked = Counter[str](), Counter[str]()
        for one in viewer.known:
            seen.update(self.genres[one.film])
            liked.update(self.genres[one.film] if one.liked else ())
        share = float(np.mean([one.liked for one in viewer.known]))
        return [
            (sum(liked[g] for g in genres) + _SMOOTHING * share)
            / (sum(seen[g] for g in genres) + _SMOOTHING)
            for genres in (self.genres[one.film] for one in viewer.asked)
        ]

    def likelihood(self, viewer: Viewer) -> np.ndarray:
        """Log popularity, and how much oftener than others the viewer watches a film's genres."""
        watched = Counter(genre for one in viewer.known for genre in self.genres[one.film])
        lift = {
            genre: math.log((times + 1) / (len(viewer.known) * self._share[genre] + 1))
            for genre, times in watched.items()
        }
        lifts = [sum(lift.get(genre, 0.0) for genre in genres) for genres in self.genres]
        return np.log(self.times + 1) + np.array(lifts)


def measure(demo: EdgeDemo, viewers: Sequence[Viewer]) -> dict[str, dict[str, float]]:
    """Per name in the table AUC and hit rates; of the model bytes and milliseconds, too."""
    counts, ids = Counts(demo.items, demo.times_seen), list(demo.items)
    labels: list[int] = []
    scores: dict[str, list[float]] = {name: [] for name in (_MODEL, _POPULARITY, _GENRES)}
    ranks: dict[str, list[float]] = {name: [] for name in scores}
    seconds: dict[str, list[float]] = {"retrieve": [], "score": []}
    for viewer in viewers:
        labels += [one.liked for one in viewer.asked]
        asked_ids = [ids[one.film] for one in viewer.asked]
        history = [
            {"item": ids[one.film], "time": one.time, "value": one.liked} for one in viewer.known
        ]
        # Later than what the file's statistics hold, which are of other viewers.
        moment = max(viewer.asked[0].time, demo.last_time + 1)
        begin = time.process_time()
        scored = demo.score(asked_ids, history, moment)
        middle = time.process_time()
        found = demo.retrieve(_KS[-1], history, moment)
        seconds["score"].append((middle - begin) / len(asked_ids))
        seconds["retrieve"].append(time.process_time() - middle)
        scores[_MODEL] += scored.tolist()
        scores[_POPULARITY] += [counts.times[one.film] for one in viewer.asked]
        scores[_GENRES] += counts.liking(viewer)
        wanted = asked_ids[0]
        ranks[_MODEL].append(1 + found.index(wanted) if wanted in found else math.inf)
        known = [one.film for one in viewer.known]
        for name, values in (
            (_POPULARITY, counts.times.copy()),
            (_GENRES, counts.likelihood(viewer)),
        ):
            values[known] = -np.inf
            ranks[name].append(1 + int((values > values[viewer.asked[0].film]).sum()))
    measured = {
        name: {"auc": auc(labels, scores[name])}
        | {f"hit_rate@{k}": float(np.mean(np.array(ranks[name]) <= k)) for k in _KS}
        for name in scores
    }
    measured[_MODEL] |= {
        "bytes": float(MODEL.stat().st_size),
        "ms_per_candidate": 1000 * float(np.median(seconds["score"])),
        "request_milliseconds": 1000 * float(np.median(seconds["retrieve"])),
    }
    return measured


def demo_seconds() -> float:
    """Processor seconds of the demo: imports, loading, vectors of films, recommending twice.

    Raises:
      DataError: it fails.
    """
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "m6rec_jax.cli", *DEMO.split()[1:]], cwd=ROOT, capture_output=True
    )
    if done.returncode:
        raise DataError(f"`{DEMO}` ended with status {done.returncode}: {done.stderr.decode()}")
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure the model in the box.")
    parser.add_argument("--viewers", type=int, default=2000)
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before XLA starts its threads
    fetch("film-viewers")
    measured = measure(EdgeDemo(), list(held_out(options.viewers)))
    rows: list[Row] = []
    for name, metrics in measured.items():
        rows += told_rows(
            {name: metrics},
            gin_file=GIN_FILE if name == _MODEL else None,
            config=None if name == _MODEL else "benchmarks/box.py",
            dataset="film-viewers",
            split=f"{options.viewers} viewers of another seed",
            seed=None,
        )
    rows += told_rows(
        {DEMO: {"demo_processor_seconds": demo_seconds()}},
        config="one thread",
        dataset="film-viewers",
        split=ANY_FILMS,
        seed=None,
    )
    add_rows(results_path("box"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
