"""What jobs make of a program's results, and files of predictions, without a model."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.evaluation.evaluator import run_program
from m6rec_jax.evaluation.prediction_files import write_predictions
from m6rec_jax.jobs.job import job_of
from m6rec_jax.jobs.language import LanguagePredictions, language_metrics
from m6rec_jax.jobs.retrieval import pad_targets, retrieval_metrics
from m6rec_jax.metrics import ranking


def evaluation_of(batch, **parts):
    """An evaluation whose program gives the batch back: what is read from where shows."""
    data = SimpleNamespace(positive_classes=(3, 4), repeats_count=False)
    return SimpleNamespace(
        data=data,
        depth=2,
        outputs=lambda: run_program(lambda _, features: features, {}, [batch], Runtime()),
        index=lambda: parts["index"],
        once=lambda _, make: make(),
        rows=lambda columns: parts["rows"],
        past_items=lambda: parts["past"],
        reranked=lambda found: found.predictions,
    )


def test_scoring_reads_labelled_positions_of_real_rows():
    p = np.arange(12).reshape(3, 4, 1) / 12
    of_classes = np.concatenate([1 - p, 0 * p, 0 * p, p / 2, p / 2], axis=2)
    batch = {
        "decoder_labels": np.array([[-1, 0, -1, 3], [4, -1, -1, -1], [1, 1, 1, 1]], np.int32),
        "decoder_item_ids": np.array([[-1, 7, -1, 8], [9, -1, -1, -1], [0, 0, 0, 0]], np.int32),
        "user_ids": np.array([[5], [6], [-1]], np.int32),
        "example_weights": np.array([1, 1, 0], np.float32),
        "log_probabilities": np.log(np.maximum(of_classes, 1e-30)),
    }
    job = job_of("scoring")
    found = job.predict(evaluation_of(batch))
    assert found.users.tolist() == [5, 5, 6]
    assert found.items.tolist() == [7, 8, 9]
    assert found.classes.tolist() == [0, 3, 4]
    assert found.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.probabilities, np.array([1, 3, 4]) / 12, rtol=1e-6)
    metrics = job.metrics(evaluation_of(batch), found)
    assert metrics["auc"] == 1
    assert metrics["num_examples"] == 3
    assert metrics["num_users"] == metrics["user_averaged_auc"] == 1  # user 5 alone has both labels
    batch["decoder_labels"][:] = -1
    for kind in ("scoring", "classification", "likelihood"):
        with pytest.raises(DataError, match="none of the rows has a label; is this a"):
            job_of(kind).predict(evaluation_of(batch))


def test_retrieval_leaves_out_seen_items_but_never_the_wanted_one():
    batch = {
        "user": np.array([[0.9, 0.5, 0.4, 0.1]] * 2, np.float32),
        "decoder_item_ids": np.array([[-1, 2, -1], [0, -1, 3]], np.int32),
        "user_ids": np.array([[0], [1]], np.int32),
        "example_weights": np.ones(2, np.float32),
    }
    index = CatalogueIndex(np.eye(4, dtype=np.float32))
    # As they are stored, not in the order of the predictions.
    rows = [{"user_index": 1, "item_indices": [0, 3]}, {"user_index": 0, "item_indices": [2]}]
    past = [np.array([1, 0, 1]), np.array([0])]
    found = job_of("retrieval").predict(evaluation_of(batch, index=index, rows=rows, past=past))
    assert found.targets.tolist() == [[2, -1], [0, 3]]
    assert found.ranks.tolist() == [[2, 0], [1, 3]]
    assert found.top_items.tolist() == [[1, 2], [0, 2]]
    scores = job_of("retrieval").example_scores(found)
    assert (scores.users.tolist(), scores.values.tolist()) == ([0, 1], [0.5, 1.0])
    metrics = retrieval_metrics(found, 4, (1, 2, 50), np.array([False, False, True, False]))
    assert metrics["hit_rate@1"] == 0.5
    assert metrics["held_out/hit_rate@1"] == 0
    assert metrics["held_out/hit_rate@2"] == metrics["held_out/num_examples"] == 1
    # User 0 has three films left, the wanted one among them.
    assert found.num_ranked.tolist() == [3, 3]
    assert metrics["held_out/chance@1"] == pytest.approx(1 / 3)
    assert metrics["coverage@2"] == 0.75
    assert "hit_rate@50" not in metrics


def test_language_metrics():
    found = LanguagePredictions(np.array([2.0, 4.0]), np.array([1.0, 0.0]), np.array([2.0, 1.0]))
    metrics = language_metrics(found)
    assert metrics["perplexity"] == pytest.approx(np.exp(2))
    assert metrics["token_accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_predictions_are_written(tmp_path, ending):
    columns = {
        "label": np.array([0, 1]),
        "top_item_ids": np.array([["a", "b"], ["b", ""]], object),
        "scores": np.array([[0.5, 0.25], [0.75, 0.5]], np.float32),
    }
    path = write_predictions(tmp_path / "deep" / f"p.{ending}", columns)
    if ending == "parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1] == {"label": 1, "top_item_ids": ["b", ""], "scores": [0.75, 0.5]}
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(ConfigError, match=r"p\.csv: predictions are written as"):
        write_predictions(tmp_path / "p.csv", columns)


def test_an_item_that_is_wanted_twice_has_one_place_in_a_list():
    wanted = np.array([[-1, 1, -1, 2, 1, 3], [4, 4, 4, 4, 4, 4], [-1, 5, -1, -1, 6, 5]])
    targets = pad_targets(wanted)
    assert targets.tolist() == [[1, 2, 3], [4, -1, -1], [5, 6, -1]]
    ranks = ranking.target_ranks(np.array([[1, 9, 3], [4, 8, 7], [5, 6, 0]]), targets)
    assert ranking.ndcg(ranks, 1) == 1  # it was 2 where the first is wanted twice
    for k in (1, 2, 3):
        assert ranking.ndcg(ranks, k) <= 1
