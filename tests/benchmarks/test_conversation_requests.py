"""Requests are drawn and judged: on a dozen films all that can be obeyed is."""

import gin
import numpy as np
import pytest

from benchmarks import conversation_requests as study
from m6rec_jax.engine.index.catalogue_index import TopK
from tests.dialogue import films
from tests.jobs.conversations import catalogue_of, converse

CHILDREN = tuple(
    getattr(films.CATALOGUE.words.groups["children"], side) for side in ("wanted", "unwanted")
)


class Towers:
    """Finds the first items that are left."""

    num_items = len(films.ITEMS)

    def embed_users(self, sources, tasks):
        return np.zeros((len(sources), 2), np.float32)

    def top_k(self, users, k, seen, batch_sizes):
        left = [place for place in range(len(films.ITEMS)) if place not in seen[0]]
        return TopK(np.array([(left + [-1] * k)[:k]]), np.zeros((1, k), np.float32))


@pytest.fixture
def conversation():
    gin.parse_config_file("gin_configs/dialogue/films.gin")
    yield converse(catalogue_of(films.ITEMS, films.TITLES), retrieval=Towers())
    gin.clear_config()


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.setattr(study, "LEAST_ITEMS", 1)
    return study.RequestMaker(films.ITEMS, films.TITLES, CHILDREN, np.random.default_rng(0))


def test_what_is_asked_in_known_words_is_obeyed(conversation, maker):
    asked = [maker.request(kind, False) for kind in study.PHRASES for _ in range(8)]
    told = study.judge(conversation, asked)
    for row in told:
        # Of a kind that few films are of, others may follow the last of them.
        assert row["obey"][0], row
        # What was seen is what would be recommended.
        assert row["kind"] != "not seen" or not any(row["unfiltered"]), row
    found = study.shares(told)
    assert found["obey"] > found["obey_without_filter"]
