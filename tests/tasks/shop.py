"""A shop of 6 films, 4 users and 24 ratings, as a canonical folder, prepared by the real code."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import VIEWS, PrepareOptions
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary

DAY = 86_400
# 2020-01-06, a Monday, 09:00 UTC
START = 1_578_301_200
FILMS = [
    ("f0", "Alpha", "comedy"),
    ("f1", "Beta", "drama"),
    ("f2", "Gamma", "comedy|drama"),
    ("f3", "Delta", "horror"),
    ("f4", "Epsilon", "comedy"),
    ("f5", "Zeta", "drama"),
]
USERS = [("u0", 20), ("u1", 30), ("u2", 40), ("u3", 50)]
# A vocabulary of words, so that tests can tell what stands where.
WORDS = {"split_by_whitespace": True}
# A user's six ratings, a day apart; user n starts at film n.
RATINGS = [5, 2, 4, 1, 3, 4]

SPEC = {
    "name": "tiny-shop",
    "users": {"id": "user_id", "columns": {"age": "int"}},
    "items": {"id": "item_id", "columns": {"title": "string", "genres": "list<string>"}},
    "events": {"user": "user_id", "item": "item_id", "time": "time", "value": "rating"},
    "label": {"at_least": 4},
    "template": {
        "profile": "{age} years old",
        "event": "{outcome} {title}, {ago}",
        "context": "{weekday}",
        "candidate": "{title}[, {genres}]",
        "item": "{title}[, {genres}]",
        "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
    },
}


# Texts to write of the films.
WRITING = {
    "explanations": {
        "about": "{title}",
        "prefix": "because",
        "text": "[{shared_genres}, like {shared_genres_in}]",
        "liked": "{title}",
    },
    "titles": {"prefix": "{genres}:", "text": "{title}"},
}


def write_shop(folder: Path, writing: Mapping[str, Any] | None = None) -> Path:
    """The canonical folder, in CSV; its template with texts to write."""
    folder.mkdir(parents=True, exist_ok=True)
    template = SPEC["template"] | ({"writing": writing} if writing else {})
    (folder / "dataset.json").write_text(json.dumps(SPEC | {"template": template}))
    tables = {
        "users": (("user_id", "age"), USERS),
        "items": (("item_id", "title", "genres"), FILMS),
        "events": (
            ("user_id", "item_id", "time", "rating"),
            [
                (user, FILMS[(n + k) % 6][0], START + k * DAY + n * 60, RATINGS[(n + k) % 6])
                for n, (user, _) in enumerate(USERS)
                for k in range(6)
            ],
        ),
    }
    for name, (header, rows) in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
    return folder


def prepare_shop(folder, splits=("leave_one_out",), views=VIEWS):
    """Writes and prepares the shop; `folder` is the data_dir then."""
    source = write_shop(folder / "tiny-shop")
    options = PrepareOptions(views=views, group_size=2, next_items_size=1)
    return [prepare(source, folder, split, options=options, progress=False) for split in splits]


def shop_texts() -> list[str]:
    """The words that occur in the shop, for a vocabulary."""
    titles = [f"{title}, {genres.replace('|', ', ')}" for _, title, genres in FILMS]
    ages = ["1 day ago", *(f"{n} days ago" for n in range(2, 6))]
    events = [f"{o} {t}, {ago}" for o in ("liked", "disliked") for t in titles for ago in ages]
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    return [*titles, *events, *days * 3, *[f"{age} years old" for _, age in USERS * 3]]


def shop_vocabulary(path: Path, size: int = 400) -> Vocabulary:
    """A vocabulary trained on the shop's words."""
    train_vocabulary(shop_texts(), path, size=size, **WORDS)
    return Vocabulary(path)
