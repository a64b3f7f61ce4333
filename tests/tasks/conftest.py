"""The tiny shop, prepared once, and its tasks."""

import os

import pytest

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.data.prepare_options import VIEWS
from m6rec_jax.pipeline.registration import register_recommendation_tasks, unregister
from tests.tasks import shop

NAME = "tiny_shop"


@pytest.fixture(scope="session")
def shop_dir(tmp_path_factory):
    """The data_dir of the prepared shop, with a vocabulary beside the split."""
    folder = tmp_path_factory.mktemp("data")
    for prepared in shop.prepare_shop(folder, views=VIEWS):
        shop.shop_vocabulary(prepared.folder / "vocabulary.model")
    return folder


@pytest.fixture
def shop_tasks(shop_dir, monkeypatch):
    """Names of the shop's tasks, found through the environment variable."""
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(shop_dir))
    names = register_recommendation_tasks(
        NAME, "tiny-shop", split="leave_one_out", rating_values=(1, 2, 3, 4, 5), positive_rating=4
    )
    yield names
    unregister(names)
    assert os.environ[DATA_DIR_VARIABLE] == str(shop_dir)
