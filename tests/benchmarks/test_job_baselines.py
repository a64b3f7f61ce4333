"""Baselines of the study of jobs, against what a few rows must give."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import job_baselines
from benchmarks.baselines import neighbours
from benchmarks.job_list import JOBS


def row(source, target="", item=0, seen=(), prefix=""):
    return {
        "source": source,
        "prefix": prefix,
        "target": target,
        "item_indices": np.array([item]),
        "seen_indices": np.array(seen, int),
    }


TRAIN = [
    row(["USER: something with ghosts please"], "Try The Haunting.", item=2),
    row(["USER: I like ghosts and old houses"], "The Others!", item=3),
    row(["USER: a comedy for tonight"], "Airplane, of course.", item=1),
    row(["USER: any comedy"], "Airplane again.", item=1),
]


def test_the_nearest_text_is_that_of_the_most_similar_source() -> None:
    test = [
        row(["USER: a comedy for tonight"]),
        row(["USER: ghosts, and old houses"]),
        # Nothing in common with any: the first.
        row(["xyzzy"]),
    ]
    found = neighbours.nearest_texts(TRAIN, test)
    assert found == ["Airplane, of course.", "The Others!", "Try The Haunting."]
    # What is given of the text counts as what is asked.
    asked = [row(["x"], "a", prefix="category: comedy"), row(["x"], "b", prefix="category: war")]
    assert neighbours.nearest_texts(asked, [row(["x"], prefix="category: war")]) == ["b"]


def test_scores_are_summed_similarities_and_then_popularity() -> None:
    scores = neighbours.neighbour_scores(TRAIN, [row(["USER: old houses with ghosts"])], 5)
    alike = neighbours.similarities(
        [neighbours.asked(known) for known in TRAIN], ["USER: old houses with ghosts\n"]
    ).toarray()[0]
    assert scores[0, 3] == pytest.approx(alike[1], abs=1e-5)
    assert scores[0, 1] == pytest.approx(alike[2] + alike[3], abs=1e-5)
    assert np.argsort(-scores[0])[:2].tolist() == [3, 2]
    nothing = neighbours.neighbour_scores(TRAIN, [row(["xyzzy"])], 5)[0]
    assert nothing.argmax() == 1
    assert 0 < nothing.max() < 1e-5


def test_named_items_are_out_of_the_way_of_new_ones(monkeypatch) -> None:
    test = [
        row(["USER: old houses with ghosts"], item=2, seen=(3,)),
        row(["USER: any comedy"], item=1, seen=(1,)),
    ]
    parts = {"train": TRAIN, "test": test}
    monkeypatch.setattr(job_baselines, "_rows", lambda task, part, limit=0: parts[part])
    counts = np.array([0, 2, 1, 1, 0])
    catalogue = SimpleNamespace(items=range(5), train_counts=counts)
    task = SimpleNamespace(prepared=lambda: SimpleNamespace(catalogue=lambda: catalogue))
    found = job_baselines._recommendations(task, 0)
    (name,) = (name for name in found if name != "popularity")
    # Item 3 is nearer, but was named: among new items item 2 is first.
    assert (found[name]["recall@1"], found[name]["new/recall@1"]) == (0.5, 1.0)
    # The most popular item is what the second row wants; the first's comes second, 3 being named.
    assert (found["popularity"]["recall@1"], found["popularity"]["new/recall@1"]) == (0.5, 0.0)
    assert found["popularity"]["recall@5"] == 1.0


def test_models_that_are_named_as_measured_are_measured() -> None:
    for job in JOBS.values():
        if job.measured is not None:
            assert set(job_baselines.measured_before(*job.measured)) == set(job.measured[2])
