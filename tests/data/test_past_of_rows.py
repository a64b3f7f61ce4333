"""What reranking counts as a user's past, against what is rendered into rows that rerank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.pipeline.prepared_rows import past_items, read_rows, seen_items

SPLITS = (
    *("leave_one_out", "per_user_temporal", "by_user:train=0.4,validation=0.3,seed=1"),
    *(
        "few_shot:n=20,seed=1,of=leave_one_out",
        "few_shot:n=20,seed=1,history=sampled,of=leave_one_out",
    ),
)


@pytest.mark.parametrize("split", SPLITS)
def test_the_past_is_what_the_split_shows(write_shop: Any, tmp_path: Path, split: str) -> None:
    # Every user acts on ten of twelve items, one after the other.
    log = [
        (user, (user + 5 * turn) % 12, float(8 * turn + user), 3.0 + (turn + user) % 3)
        for turn in range(10)
        for user in range(8)
    ]
    options = PrepareOptions(
        views=("next_items", "reranking", "catalogue"), next_items_size=1, reranking_negatives=1
    )
    prepared = prepare(write_shop(log), tmp_path / "out", split, options, progress=False)
    for part in ("validation", "test"):
        expected = {
            (row["user_index"], int(row["item_indices"][0])): row["recent_indices"].tolist()
            for row in read_rows(prepared, "reranking", part)
        }
        rows = list(read_rows(prepared, "next_items", part))
        assert len(rows) == len(expected) > 1
        pasts = past_items(prepared, part)
        if not split.startswith("by_user"):  # whose users have no earlier part
            first = {
                row["user_index"]: past for row, past in zip(rows[::-1], pasts[::-1], strict=True)
            }
            seen = seen_items(prepared, part)
            assert {u: set(past.tolist()) for u, past in first.items() if len(past)} == {
                u: set(seen[u].tolist()) for u in first if u in seen
            }
        for row, past in zip(rows, pasts, strict=True):
            key = row["user_index"], int(row["item_indices"][0])
            assert past.tolist()[-10:] == expected[key], (part, key)
