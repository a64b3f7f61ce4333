"""Retrieval: towers against single forward passes, text in and ids with scores out."""

import weakref

import jax
import numpy as np
import pytest

from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError
from m6rec_jax.text import rows
from tests.engine.programs import num_traced
from tests.engine.teacher_forcing import batch_of_one
from tests.pipeline import shop_rows

S, T = 96, 64


def test_towers_do_not_depend_on_batch_mates(tiny):
    model, variables, vocabulary = tiny
    retriever = Retriever(*tiny, EngineOptions(S, T))
    alone = Retriever(*tiny, EngineOptions(S, T, batch_sizes=(1,)))
    histories = [row["history"] for row in shop_rows.rows_of("test")["next_items"]]
    users = retriever.embed_users(histories)
    items = retriever.embed_items(shop_rows.ITEMS)
    np.testing.assert_allclose(np.linalg.norm(users, axis=1), 1, atol=1e-5)
    for i in (0, 7, 19):
        np.testing.assert_allclose(alone.embed_users([histories[i]])[0], users[i], atol=1e-5)
    for i in (0, 11):
        np.testing.assert_allclose(alone.embed_items([shop_rows.ITEMS[i]])[0], items[i], atol=1e-5)
    # The item tower is the model's forward pass over a retrieval row, whatever user is in it.
    row = rows.source_row(vocabulary, histories[0], S)
    row |= rows.packed_candidates(vocabulary, [shop_rows.ITEMS[4]], T)
    batch = batch_of_one(row | {"retrieval": np.array([1])}, S, len(row["decoder_input_tokens"]))
    outputs = jax.jit(model.apply)(variables, batch)
    vectors = model.apply(variables, outputs.hidden, batch["task_ids"], method=model.item_embedding)
    np.testing.assert_allclose(vectors[0, -1], items[4], atol=1e-5)
    user = model.apply(variables, outputs.encoded, batch["task_ids"], method=model.user_embedding)
    np.testing.assert_allclose(user[0], users[0], atol=1e-5)


def test_a_catalogue_of_any_size_takes_bounded_memory(tiny, monkeypatch):
    """Vectors of all positions lie on the device, so few batches may be there at a time."""
    texts = [f"{text} {i}" for i, text in enumerate(shop_rows.ITEMS * 8)]
    expected = Retriever(*tiny, EngineOptions(S, T)).embed_items(texts)
    retriever = Retriever(*tiny, EngineOptions(S, T, batch_sizes=(1,)))
    embed, vectors, most = retriever._items, [], 0

    def watched(variables, features):
        nonlocal most
        most = max(most, sum(vector() is not None for vector in vectors))
        found = embed(variables, features)
        vectors.append(weakref.ref(found))
        return found

    monkeypatch.setattr(retriever, "_items", watched)
    np.testing.assert_allclose(retriever.embed_items(texts), expected, atol=1e-5)
    assert len(vectors) > 8
    assert most <= 3


def test_warm_up_compiles_what_any_task_reads(tiny):
    """Also where the first task's histories are the shortest."""
    tasks = {"short": TaskSettings(source_length=32), "long": TaskSettings()}
    options = EngineOptions(S, T, batch_sizes=(1,), source_buckets=(32, 64, S), tasks=tasks)
    retriever = Retriever(*tiny, options)
    retriever.warm_up()
    traced = num_traced()
    for words in (1, 20, 200):
        retriever.embed_users([["film " * words]], ["long"])
    assert num_traced() == traced


def test_a_model_without_projections(tiny):
    model, variables, vocabulary = tiny
    prompts = type(model.config.prompts)(num_prompts=2, num_options=2, head="option")
    scorer_only = type(model)(model.config.replace(prompts=prompts))
    with pytest.raises(
        ConfigError, match="has no retrieval projections: it was not trained for that"
    ):
        Retriever(scorer_only, variables, vocabulary, EngineOptions(S, T))
