"""Texts to write of a data set, against a brute-force reading of the events."""

import json

import pytest

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.rendering.vocabulary_text import training_texts
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.prepared_rows import read_rows
from tests.tasks import shop

WRITING = {
    "explanations": {
        "about": "{title}",
        "prefix": "because",
        "text": "[{shared_genres}, like {shared_genres_in}]",
        "liked": "{title}",
    },
    "titles": {"prefix": "{genres}:", "text": "{title}"},
}
VIEWS = ("explanations", "titles")
ALLOWED = {"train": ("train",), "validation": ("train",), "test": ("train", "validation")}


def write_shop(folder, writing=WRITING):
    source = shop.write_shop(folder)
    spec = json.loads((source / "dataset.json").read_text())
    spec["template"]["writing"] = writing
    (source / "dataset.json").write_text(json.dumps(spec))
    return source


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    options = PrepareOptions(views=VIEWS, max_events=50)
    return prepare(write_shop(folder / "shop"), folder, "leave_one_out", options, progress=False)


def events():
    """(user, film, rating, part) in each user's order: the last tests, the one before validates."""
    for n, (user, _) in enumerate(shop.USERS):
        for k in range(6):
            part = "test" if k == 5 else "validation" if k == 4 else "train"
            yield user, shop.FILMS[(n + k) % 6], shop.RATINGS[(n + k) % 6], part


def test_explanations_are_of_liked_films_before(prepared):
    expected = {part: {} for part in PARTS}
    past = []
    for user, film, rating, part in events():
        own = film[2].split("|")
        if rating >= 4:
            best, named = [], None
            for other, liked, worth, where in past:
                if other == user and worth >= 4 and where in ALLOWED[part]:
                    shared = [genre for genre in own if genre in liked[2].split("|")]
                    if shared and len(shared) >= len(best):
                        best, named = shared, liked[1]
            # Neither genre is told that more than half of the six films have: none is.
            if best:
                expected[part][f"{user}/{film[0]}"] = f"{', '.join(best)}, like {named}"
        past.append((user, film, rating, part))
    assert any(expected.values())
    for part in PARTS:
        rows = []
        if part in prepared.num_rows("explanations"):
            rows = list(read_rows(prepared, "explanations", part))
        assert {row["text_id"]: row["target"] for row in rows} == expected[part]
        for row in rows:
            title = {film[0]: film[1] for film in shop.FILMS}[row["text_id"].split("/")[1]]
            assert row["source"][-1] == title
            assert not any(title in segment for segment in row["source"][:-1])
            assert row["prefix"] == "because"
            assert row["target"].startswith(", ".join(row["features"]))


def test_titles_are_of_all_liked_films(prepared):
    wanted = {f"{user}/{film[0]}": film for user, film, rating, _ in events() if rating >= 4}
    rows = [row for part in PARTS for row in read_rows(prepared, "titles", part)]
    assert {row["text_id"]: row["target"] for row in rows} == {
        key: film[1] for key, film in wanted.items()
    }
    assert len({row["text_index"] for row in rows}) == len(rows)
    assert all(row["prefix"] == f"{wanted[row['text_id']][2].replace('|', ', ')}:" for row in rows)
    items = prepared.catalogue().items
    assert all(items[row["item_indices"][0]].attributes["title"] == row["target"] for row in rows)


def test_a_vocabulary_reads_the_texts(prepared):
    texts = set(training_texts(prepared, ("titles",)))
    assert {"Alpha", "comedy:"} <= texts
    assert not any("/" in text for text in texts)


def test_impossible_views_are_told(tmp_path):
    # A genre of one film alone is shared with nobody.
    for number, (writing, error, message) in enumerate(
        (
            (WRITING, ConfigError, "no 'queries', so there is no text to prepare"),
            ({"queries": {"text": "[{shared_director}]"}}, ConfigError, "{shared_director}"),
            ({"queries": {"text": "[{shared_title}]"}}, DataError, "no row for the view 'queries'"),
        )
    ):
        source = write_shop(tmp_path / str(number), writing)
        options = PrepareOptions(views=("queries",))
        with pytest.raises(error, match=message):
            prepare(source, tmp_path, "leave_one_out", options, progress=False)
