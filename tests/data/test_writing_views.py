"""Texts to write of a data set; the fold has their rows (`test_shard_run`)."""

import pytest

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.rendering.vocabulary_text import training_texts
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.prepared_rows import read_rows
from tests.tasks import shop


def prepared(folder, writing, *views):
    options, source = PrepareOptions(views=views), shop.write_shop(folder / "shop", writing)
    return prepare(source, folder, "leave_one_out", options, progress=False)


def test_explanations_are_of_liked_films_before(tmp_path):
    made = prepared(tmp_path, shop.WRITING, "explanations", "titles")
    # By hand; u2 did not like the last film.
    texts = {row["text_id"]: row["target"] for row in read_rows(made, "explanations", "test")}
    assert texts == {
        "u0/f5": "drama, like Gamma",
        "u1/f0": "comedy, like Gamma",
        "u3/f2": "comedy, like Alpha",
    }
    words = set(training_texts(made, ("titles",)))
    assert {"Alpha", "comedy:"} <= words
    assert not any("/" in text for text in words)


@pytest.mark.parametrize(
    ("writing", "error", "message"),
    [
        (shop.WRITING, ConfigError, "no 'queries', so there is no text to prepare"),
        ({"queries": {"text": "[{shared_director}]"}}, ConfigError, "{shared_director}"),
        # A genre of one film alone is shared with nobody.
        ({"queries": {"text": "[{shared_title}]"}}, DataError, "no row for the view 'queries'"),
    ],
)
def test_impossible_views_are_told(tmp_path, writing, error, message):
    with pytest.raises(error, match=message):
        prepared(tmp_path, writing, "queries")
