"""What reranking counts as a user's past, against the history that is rendered into rows."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.splitting.splits import PART_NAMES
from m6rec_jax.pipeline.prepared_rows import past_items, read_rows
from tests.data.conftest import declare_parts

SPLITS = (
    *("leave_one_out", "per_user_temporal", "by_user:train=0.4,validation=0.3,seed=1"),
    *(
        "few_shot:n=20,seed=1,of=leave_one_out",
        "few_shot:n=20,seed=1,history=sampled,of=leave_one_out",
    ),
    "by_column",  # drawn at random, so that training events come after test rows, too
)


def item_of(behaviour: str) -> int:
    """The item that a behaviour names: `tests.data.conftest._item` calls it "Thing 3"."""
    (number,) = re.findall(r"Thing (\d+)", behaviour)
    return int(number)


@pytest.mark.parametrize("split", SPLITS)
def test_the_past_is_what_the_split_shows(write_shop: Any, tmp_path: Path, split: str) -> None:
    # Every user acts on ten of twelve items, one after the other.
    log = [
        (user, (user + 5 * turn) % 12, float(8 * turn + user), 3.0 + (turn + user) % 3)
        for turn in range(10)
        for user in range(8)
    ]
    folder = write_shop(log)
    drawn = np.random.default_rng(0).choice([*PART_NAMES], len(log), p=[0.4, 0.3, 0.2, 0.1])
    declare_parts(folder, drawn.tolist())
    options = PrepareOptions(views=("next_items",), next_items_size=1, max_events=8)
    prepared = prepare(folder, tmp_path / "out", split, options, progress=False)
    for part in ("validation", "test"):
        rows = list(read_rows(prepared, "next_items", part))
        assert len(rows) > 1
        for row, past in zip(rows, past_items(prepared, part), strict=True):
            rendered = [item_of(text) for text in row["history"][1:-1]]
            assert rendered == past.tolist()[-options.max_events :], (part, row["user_id"])
