"""The rows of public data sets, made bucket by bucket, against those of the fold; takes minutes.

`m6rec data fetch movielens-100k` and `book-crossing`, then `m6rec data sample` with
`book_crossing_sample.gin`, get them.
"""

import dataclasses
from pathlib import Path

import gin
import pytest

from m6rec_jax.configuration import parse_config
from m6rec_jax.data.prepare_options import PrepareOptions, with_template
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.sources import default_cache_dir
from tests.data.test_bucket_run import Both

FILMS, BOOKS = "movielens-100k", "book-crossing-small"


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the fold takes minutes
@pytest.mark.parametrize(
    ("name", "settings", "split", "num_buckets"),
    [
        (FILMS, "movielens", "per_user_temporal", 2),
        (FILMS, "movielens", "leave_one_out", 3),
        (FILMS, "movielens", "global_temporal", 1),
        (FILMS, "movielens_writing", "per_user_temporal", 2),
        (FILMS, "movielens_reranking", "leave_one_out", 2),
        (FILMS, "movielens_few_samples", "few_shot:n=256,seed=0,history=sampled", 2),
        (FILMS, "movielens_unseen_items", "held_out_items:of=leave_one_out,fraction=0.1", 2),
        (BOOKS, "book_crossing", "per_user_temporal", 2),
        (BOOKS, "book_crossing", "leave_one_out", 2),
    ],
)
def test_rows_are_those_of_the_fold(
    tmp_path: Path, name: str, settings: str, split: str, num_buckets: int
) -> None:
    folder = default_cache_dir() / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: m6rec data fetch")
    gin.clear_config()
    parse_config([f"gin_configs/examples/{settings}_prepare.gin"], [])
    options = PrepareOptions()
    views = tuple(view for view in options.views if view != "catalogue")
    options = dataclasses.replace(options, views=views)
    dataset = with_template(Dataset.open(folder), options.template)
    Both(dataset, split, tmp_path, options, num_buckets=num_buckets).compare()
