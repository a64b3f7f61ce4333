"""Repeats: what is decided of them, what rows want, and how much there is to know about them."""

import logging
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.pipeline.prepared_rows import past_events, read_rows
from tests.data.repeat_shop import DAY, NEGATIVES, TEMPLATE, RepeatShop

NUM_ITEMS, NUM_DAYS = 120, 20


def prepared_shop(shop, write_shop, out, repeats, split="leave_one_out"):
    spec = {} if repeats is None else {"repeats": repeats}
    folder = write_shop(
        shop.events,
        num_users=len(shop.items),
        num_items=NUM_ITEMS,
        labelled=False,
        template=TEMPLATE,
        statistics={"by": []},
        **spec,
    )
    options = PrepareOptions(
        views=("groups", "next_items"),
        group_size=1 + NEGATIVES,
        next_items_size=1,
        negative_power=0.0,
    )
    return prepare(folder, out, split, options, progress=False)


def test_negatives_are_drawn_by_the_protocol(write_shop, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    shop = RepeatShop.made(40, NUM_ITEMS, NUM_DAYS)
    lone = [
        len(set(own[:day]) | {item}) == 1 and day > 0
        for own in shop.items.tolist()
        for day, item in enumerate(own)
    ]
    for protocol in ("count", "ignore"):
        prepared = prepared_shop(shop, write_shop, tmp_path / protocol, protocol)
        drawn = np.zeros((2, 2), int)
        for part in ("train", "validation", "test"):
            for row in read_rows(prepared, "groups", part):
                user, day = row["user_index"], int(row["time"] // DAY)
                past = set(shop.items[user, :day].tolist())
                kinds = [item in past for item in row["item_indices"].tolist()]
                assert len(set(kinds)) == 1
                positive, *others = row["item_indices"].tolist()
                assert positive == shop.items[user, day]
                left = len(past - {positive}) if kinds[0] else NUM_ITEMS - len(past) - 1
                assert left
                assert len(others) == (NEGATIVES if kinds[0] else min(NEGATIVES, left))
                assert len(set(others) - {positive}) == min(NEGATIVES, left)
                times = np.bincount(others)
                assert np.ptp(times[times > 0]) <= 1
                drawn[int(kinds[0])] += len(others), left
        rates = prepared.manifest.views["groups"].negatives
        assert rates["sampling_rate"] == pytest.approx(drawn[0, 0] / drawn[0, 1])
        if protocol == "count":
            assert rates["repeat_sampling_rate"] == pytest.approx(drawn[1, 0] / drawn[1, 1])
            assert rates["repeat_sampling_rate"] > 4 * rates["sampling_rate"]
            assert sum(prepared.num_rows("groups").values()) == shop.items.size - sum(lone)
            assert f"{sum(lone)} events repeat all that their user had" in caplog.text
            assert sum(prepared.num_rows("next_items").values()) == shop.items.size
            for part, days in (("validation", NUM_DAYS - 2), ("test", NUM_DAYS - 1)):
                seen = zip(*(ids.tolist() for ids in past_events(prepared, part)), strict=True)
                expected = [(u, item) for u, own in enumerate(shop.items) for item in own[:days]]
                assert sorted(seen) == sorted(expected)
        else:
            assert "repeat_sampling_rate" not in rates
            new = sum(len(set(own)) for own in shop.items.tolist())
            assert sum(prepared.num_rows("groups").values()) == new
            assert sum(prepared.num_rows("next_items").values()) == new
        assert prepared.dataset_spec["repeats"] == protocol


def test_what_rows_of_other_users_see(write_shop, tmp_path: Path) -> None:
    """No event of the own part: it is what another row of it wants."""
    shop = RepeatShop.made(40, NUM_ITEMS, 6)
    split = "by_user:train=0.6,validation=0.2"
    prepared = prepared_shop(shop, write_shop, tmp_path, "count", split)
    trained = {row["user_index"] for row in read_rows(prepared, "next_items", "train")}
    expected = [(user, item) for user in trained for item in shop.items[user]]
    assert 0 < len(trained) < 40
    for part in ("validation", "test"):
        users, items = past_events(prepared, part)
        assert sorted(zip(users.tolist(), items.tolist(), strict=True)) == sorted(expected)
