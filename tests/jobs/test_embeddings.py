"""Embeddings, from a registered task."""

import numpy as np

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.pipeline.registration import register_recommendation_tasks, task_info, unregister
from tests.evaluation.small_model import small_model
from tests.tasks import shop

LENGTHS = {"inputs": 64, "targets": 24}


def test_a_registered_task_gives_users_and_items(tmp_path, monkeypatch):
    """The vectors are those of the two towers; ids are those of the tables."""
    (prepared,) = shop.prepare_shop(tmp_path)
    vocabulary = shop.shop_vocabulary(prepared.folder / "vocabulary.model")
    model, variables = small_model(vocabulary, tmp_path / "run", 1, retrieval_dim=8)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    names = register_recommendation_tasks("embedded", "tiny-shop", split="leave_one_out")
    try:
        check(model, variables)
    finally:
        unregister(names)


def check(model, variables):
    evaluator = Evaluator("embedded_embeddings", LENGTHS, 4, split="test")
    (task,) = evaluator.tasks
    assert task_info(task.name).kind == "embeddings"
    predictions = evaluator.predict(task, model, variables)
    columns = task.job.columns(evaluator.evaluation(task).data, predictions)
    catalogue = task.prepared().catalogue()
    num_users = len(predictions.users)
    assert columns["id"][num_users:].tolist() == [item.id for item in catalogue.items]
    assert columns["kind"].tolist() == ["user"] * num_users + ["item"] * len(catalogue.items)
    np.testing.assert_allclose(np.linalg.norm(columns["embedding"], axis=1), 1, rtol=1e-5)
    retrieval = Evaluator("embedded_retrieval", LENGTHS, 4, split="test")
    ranked = retrieval.predict(retrieval.tasks[0], model, variables)
    similarity = predictions.user_vectors @ predictions.item_vectors.T
    best = np.take_along_axis(similarity, ranked.top_items[:, :1], axis=1)
    np.testing.assert_allclose(best, ranked.scores[:, :1], atol=1e-6)
    metrics = evaluator.metrics(task, predictions)
    assert metrics["num_items"] == len(catalogue.items)
