"""The model in the box (`m6rec demo --edge`) on viewers that it was not trained on.

    m6rec data fetch film-viewers
    python -m benchmarks.box [--viewers 500]

Viewers are made up anew, from another seed. Of each the first films but eight are known: the scorer
orders those eight by whether they are liked, and the towers look for the next film in the whole
catalogue. Beside it: how often films are watched in the training data; and counts of what a viewer
liked or watched, by the very columns that tastes were made of. Rows go to
`benchmarks/results/box.json`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax.data.sources import default_cache_dir, fetch
from m6rec_jax.edge_demo import MODEL, EdgeDemo
from m6rec_jax.metrics.classification import auc
from m6rec_jax.text.records import Item
from tasks.films.made_up_viewers import Watched, make_viewers
from tasks.films.table import FILM_TABLE, FilmTable

GIN_FILE = "gin_configs/examples/film_viewers_box.gin"
COLUMNS = ("genres", "director", "cast", "decade", "country")
# The data set's are of seed 0.
SEED = 1
_KEPT, _K, _SMOOTHING = 8, 10, 5.0
_TIMED = 50


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
    """What counting knows: how popular values of the columns are, and how a viewer liked them.

    Args:
      items: the catalogue, in the order of the films.
      times_seen: of each in the training data, by id.
    """

    def __init__(self, items: Mapping[str, Item], times_seen: Mapping[str, int]) -> None:
        self.values = [
            [(column, value) for column in COLUMNS for value in _listed(item.attributes[column])]
            for item in items.values()
        ]
        self.times = np.array([times_seen.get(id_, 0) for id_ in items], np.float64)
        self._share: Counter[Any] = Counter()
        for values, times in zip(self.values, self.times / self.times.sum(), strict=True):
            self._share.update(dict.fromkeys(values, times))

    def liking(self, viewer: Viewer) -> list[float]:
        """Sum over an asked film's columns of the smoothed log odds of a like."""
        seen, liked = Counter[Any](), Counter[Any]()
        for one in viewer.known:
            for value in self.values[one.film]:
                seen[value] += 1
                liked[value] += one.liked
        share = np.mean([one.liked for one in viewer.known]) * 0.98 + 0.01

        def odds(values: Sequence[Any]) -> float:
            count = sum(seen[value] for value in values)
            like = (sum(liked[value] for value in values) + _SMOOTHING * share) / (
                count + _SMOOTHING
            )
            return math.log(like / (1 - like))

        by_column = [
            [[v for v in self.values[one.film] if v[0] == column] for column in COLUMNS]
            for one in viewer.asked
        ]
        return [sum(map(odds, columns)) for columns in by_column]

    def likelihood(self, viewer: Viewer) -> np.ndarray:
        """Log popularity, and how much oftener than others the viewer watched such films."""
        watched = Counter(value for one in viewer.known for value in self.values[one.film])
        count = len(viewer.known)
        lift = {
            value: math.log((times + 1) / (count * self._share[value] + 1))
            for value, times in watched.items()
        }
        lifts = [sum(lift.get(value, 0.0) for value in values) for values in self.values]
        return np.log(self.times + 1) + np.array(lifts)


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def measure(demo: EdgeDemo, viewers: Sequence[Viewer]) -> dict[str, dict[str, float]]:
    """Per name in the table `auc` and `hit_rate@10`; of the model bytes and milliseconds, too."""
    counts, ids = Counts(demo.items, demo.times_seen), list(demo.items)
    labels: list[int] = []
    scores: dict[str, list[float]] = {"model in the box": [], "popularity": [], "taste counts": []}
    hits: dict[str, list[bool]] = {name: [] for name in scores}
    seconds: dict[str, list[float]] = {"retrieve": [], "score": []}
    for viewer in viewers:
        labels += [one.liked for one in viewer.asked]
        asked_ids = [ids[one.film] for one in viewer.asked]
        request = {
            "history": [
                {"item": ids[one.film], "time": one.time, "value": one.liked}
                for one in viewer.known
            ],
            # Later than what the file's statistics hold, which are of other viewers.
            "time": max(viewer.asked[0].time, demo.last_time + 1),
        }
        begin = time.perf_counter()
        scored = demo.score(asked_ids, **request)
        middle = time.perf_counter()
        found = demo.retrieve(_K, **request)
        seconds["score"].append((middle - begin) / len(asked_ids))
        seconds["retrieve"].append(time.perf_counter() - middle)
        scores["model in the box"] += [one.score for one in scored]
        scores["popularity"] += [counts.times[one.film] for one in viewer.asked]
        scores["taste counts"] += counts.liking(viewer)
        hits["model in the box"].append(asked_ids[0] in [one.id for one in found])
        known = [one.film for one in viewer.known]
        for name, values in (
            ("popularity", counts.times.copy()),
            ("taste counts", counts.likelihood(viewer)),
        ):
            values[known] = -np.inf
            best = np.argpartition(-values, _K)[:_K]
            hits[name].append(viewer.asked[0].film in best)
    measured = {
        name: {
            "auc": auc(np.array(labels), np.array(scores[name])),
            f"hit_rate@{_K}": float(np.mean(hits[name])),
        }
        for name in scores
    }
    measured["model in the box"] |= {
        "bytes": float(MODEL.stat().st_size),
        "ms_per_candidate": 1000 * float(np.median(seconds["score"][-_TIMED:])),
        "request_milliseconds": 1000 * float(np.median(seconds["retrieve"][-_TIMED:])),
    }
    return measured


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure the model in the box.")
    parser.add_argument("--viewers", type=int, default=500)
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before XLA starts its threads
    fetch("film-viewers")
    measured = measure(EdgeDemo(), list(held_out(options.viewers)))
    rows: list[dict[str, Any]] = []
    for name, metrics in measured.items():
        print(f"{name}: {metrics}")
        rows += metric_rows(
            metrics,
            model=name,
            gin_file=GIN_FILE if name == "model in the box" else None,
            config=None if name == "model in the box" else "benchmarks/box.py",
            dataset="film-viewers",
            split=f"{options.viewers} viewers of another seed",
            seed=None,
        )
    add_rows(results_path("box"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
