"""Prepared rows as they are shown, and items that read the same."""

import json

import numpy as np
import pytest

from m6rec_jax import cli
from m6rec_jax.data.dataset.show import show_rows
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.errors import DataError

ROW = {
    "user_id": "ana",
    "user_index": 3,
    "time": 12.0,
    "history": ["user, nan", "bought tea, 3 days ago"],
    "items": ["tea", "a mug"],
    "item_indices": np.array([1, 2]),
}


def words(text: str) -> int:
    return len(text.split())


def test_rows_have_their_texts_and_lengths() -> None:
    rows = [ROW, ROW | {"history": ["user"], "items": ["tea"]}, ROW | {"history": ["Nana"]}]
    lines = list(show_rows("next_items", iter(rows), 1, words))
    assert lines == [
        "next_items, row 0: user_id ana, user_index 3, time 12.0, item_indices [1 2]",
        "  history: 2 texts, 7 tokens",
        "       2  user, nan",
        "       5  bought tea, 3 days ago",
        "  items: 2 texts, 3 tokens",
        "       1  tea",
        "       2  a mug",
        "next_items: history has 1 tokens in the middle, 6 in 95% of 3 rows, at most 7",
        "next_items: items has 3 tokens in the middle, 3 in 95% of 3 rows, at most 3",
    ]
    without = list(show_rows("next_items", iter(rows[1:]), 1, None))
    assert without[1:] == ["  history: 1 texts", "    user", "  items: 1 texts", "    tea"]


def test_a_part_that_is_not_there_is_named(write_shop, tmp_path, monkeypatch, capsys) -> None:
    log = [(user, item, float(item), 3.0 + item % 3) for user in range(4) for item in range(6)]
    options = PrepareOptions(views=("next_items", "documents"))
    prepare(write_shop(log), tmp_path / "out", "leave_one_out", options, progress=False)
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "out"))
    assert cli.main(["data", "show", "shop", "--part", "tset"]) == cli.EXIT_USER_ERROR
    assert "did you mean 'test'" in capsys.readouterr().err
    assert cli.main(["data", "show", "shop", "--view", "documents", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "documents, row 0: " in shown
    assert "next_items" not in shown


def test_a_split_is_found_by_the_name_of_its_data_set(tmp_path) -> None:
    def prepared(name: str) -> None:
        (tmp_path / name).mkdir()
        described = json.dumps({"dataset": name, "version": name})
        (tmp_path / name / "prepare.json").write_text(described)

    def found(name: str) -> str:
        return Prepared.find(tmp_path, name).manifest.version

    for name in ("shop.leave_one_out", "my.shop.leave_one_out", "shop.eu.by_user"):
        prepared(name)
        assert found(name) == name
    # Of another data set, "shop.eu", this one has no split.
    assert found("shop") == "shop.leave_one_out"
    with pytest.raises(DataError, match=r"holds no prepared 'my\.per_user_temporal'"):
        found("my")
    prepared("shop.global_temporal")
    with pytest.raises(DataError, match=r"one of shop\.global_temporal, shop\.leave_one_out$"):
        found("shop")
    prepared("shop.per_user_temporal")
    assert found("shop") == "shop.per_user_temporal"
