"""Baselines of the study of jobs, against what a few rows must give."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import job_baselines
from benchmarks.baselines import neighbours
from benchmarks.job_list import JOBS
from benchmarks.results_file import add_rows, metric_rows
from m6rec_jax.errors import DataError


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


def test_closed_forms_rank_what_was_not_seen(monkeypatch) -> None:
    def of(user, *items):
        return {"user_index": user, "item_indices": np.array(items)}

    # Who took 0 and 1 took 2; user 3 took 0 and, in validation, 1.
    parts = {
        "train": [of(0, 0, 1), of(0, 2), of(1, 0, 1, 2), of(2, 3), of(3, 0)],
        "validation": [of(3, 1)],
        "test": [of(3, 2), of(2, 0)],
    }

    def read_rows(prepared, view, part, columns=None):
        assert view == "next_items"
        return iter(parts[part])

    monkeypatch.setattr(job_baselines.prepared_rows, "read_rows", read_rows)
    prepared = SimpleNamespace(manifest={"counts": {"users": 4, "items": 5}})
    task = SimpleNamespace(prepared=lambda: prepared, view="next_items")
    found = job_baselines._closed_forms(task, 0)
    assert set(found) == {"popularity", "ItemKNN", "EASE"}
    # User 3 has seen 0 and 1; user 2 has seen 3: of the rest 0 is the most popular.
    assert found["popularity"]["hit_rate@1"] == 1.0
    assert found["EASE"]["hit_rate@1"] >= 0.5


def test_figures_of_other_result_files_are_means_over_seeds(tmp_path, monkeypatch) -> None:
    path = tmp_path / "movielens_ctr.json"
    for seed, value in ((1, 0.7), (2, 0.8)):
        rows = metric_rows(
            {"auc": value}, model="FM", config="c", dataset="d", split="s", seed=seed
        )
        add_rows(path, rows, command="c", commit="0", hardware="h", date="2026-11-25")
    monkeypatch.setattr(job_baselines, "results_path", lambda name: tmp_path / f"{name}.json")
    found = job_baselines.measured_before("movielens_ctr", "s", ("FM",))
    assert found == {"FM": {"auc": pytest.approx(0.75)}}
    with pytest.raises(DataError, match=r"no rows of 'DIN' \(s\)"):
        job_baselines.measured_before("movielens_ctr", "s", ("FM", "DIN"))


def test_models_that_are_named_as_measured_are_measured() -> None:
    for job in JOBS.values():
        if job.measured is not None:
            assert set(job_baselines.measured_before(*job.measured)) == set(job.measured[2])
