"""The rows of a tiny shop in the shape of a prepared data set, their files, and a vocabulary.

Users like items of one genre, so that a model can learn something. 12 items, 20 users.
"""

from pathlib import Path

import numpy as np

from m6rec_jax.data.splitting import splits
from m6rec_jax.data.store import tfrecords
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary

GENRES = ("comedy", "drama", "horror")
ITEMS = [f"Film {name}, {GENRES[i % 3]}" for i, name in enumerate("ABCDEFGHIJKL")]
NUM_USERS = 20


def rows_of(split: str) -> dict[str, list[dict]]:
    """Rows of every view, in a fixed order."""
    rng = np.random.default_rng({"train": 0, "validation": 1, "test": 2}[split])
    groups, next_items, documents = [], [], []
    for user in range(NUM_USERS):
        taste = user % 3
        seen = rng.permutation(12)
        liked = [bool(i % 3 == taste) for i in seen]
        ratings = [5.0 if like else float(1 + i % 3) for i, like in zip(seen, liked, strict=True)]
        size = 2 + user % 5
        history = [f"user {user}, likes {GENRES[taste]}"]
        history += [
            f"{'liked' if like else 'disliked'} {ITEMS[i]}, {size - n} days ago"
            for n, (i, like) in enumerate(zip(seen[:size], liked, strict=False))
        ]
        history.append("Monday")
        chosen = range(size, size + 2 + user % 2)
        groups.append(
            {
                "user_id": f"u{user}",
                "user_index": user,
                "time": 1000.0 * user,
                "history": history,
                "candidates": [f"{ITEMS[seen[n]]}. 40 percent liked it" for n in chosen],
                "item_indices": [int(seen[n]) for n in chosen],
                "labels": [int(liked[n]) for n in chosen],
                "ratings": [ratings[n] for n in chosen],
            }
        )
        later = [n for n in range(size, 12) if liked[n]][:1] or [size]
        next_items.append(
            {
                "user_id": f"u{user}",
                "user_index": user,
                "time": 1000.0 * user,
                "history": history,
                "items": [ITEMS[seen[n]] for n in later],
                "item_indices": [int(seen[n]) for n in later],
            }
        )
        target = f"liked {ITEMS[seen[later[0]]]}"
        documents.append({"kind": "behaviour", "source": history, "target": target})
    documents += [{"kind": "item", "source": [], "target": text} for text in ITEMS]
    return {"groups": groups, "next_items": next_items, "documents": documents}


def write_views(folder: Path) -> dict[str, Path]:
    """Writes every view below `folder / "shop"`; returns its folder."""
    folders = {}
    for view in ("groups", "next_items", "documents"):
        rendered, folders[view] = folder / "rendered" / view, folder / "shop" / view / "1.0.0"
        rendered.mkdir(parents=True)
        rows = ((view, part, row) for part in splits.PARTS for row in rows_of(part)[view])
        tfrecords.spool_rows(rows, rendered)
        tfrecords.write_spooled(folders[view], view, rendered)
    return folders


def make_vocabulary(folder: Path, size: int = 450) -> Vocabulary:
    """A vocabulary trained on the shop's text."""
    rows = rows_of("train")
    texts = [text for row in rows["groups"] for text in [*row["history"], *row["candidates"]]]
    texts += [row["target"] for row in rows["documents"]]
    train_vocabulary(texts, folder / "shop.model", size=size, split_by_whitespace=True)
    return Vocabulary(folder / "shop.model")
