import copy
import json
import math

import numpy as np
import pytest

from m6rec_jax.data.schema import DatasetSpec, LabelSpec
from m6rec_jax.errors import DataError

RAW = {
    "name": "shop",
    "description": "a shop",
    "licence": "CC0-1.0",
    "users": {"id": "user_id", "columns": {"age": "int"}},
    "items": {"file": "items.csv", "id": "item_id", "columns": {"tags": "list<string>"}},
    "events": {"user": "user_id", "item": "item_id", "time": "time", "value": "rating"},
    "label": {"at_least": 4},
    "repeats": "count",
    "statistics": {"by": ["tags"]},
    "template": {"event": "{outcome}"},
    "splits": {"leave_one_out": {}},
    "provenance": {"version": 1},
}


def changed(path, value):
    """RAW with the key at the dotted `path` set to `value` (None removes it)."""
    raw = copy.deepcopy(RAW)
    *parents, last = path.split(".")
    section = raw
    for name in parents:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return raw


def test_round_trip(tmp_path):
    spec = DatasetSpec.from_dict(RAW)
    assert spec.to_dict() == RAW
    spec.save(tmp_path)
    assert DatasetSpec.load(tmp_path) == spec


def test_without_a_label_every_event_is_positive():
    raw = changed("label", None)
    assert DatasetSpec.from_dict(raw).events.value == "rating"  # a quantity, say
    del raw["events"]["value"]
    spec = DatasetSpec.from_dict(raw)
    assert tuple(spec.events.kinds) == ("user_id", "item_id", "time")
    assert spec.label.is_positive(None)
    assert spec.label.labels(np.array([np.nan, 1.0])).tolist() == [1, 1]


def test_labels_compare_with_the_threshold():
    label = LabelSpec(at_least=4)
    assert label.labels(np.array([3.9, 4.0, 5.0, np.nan])).tolist() == [0, 1, 1, 0]
    assert [label.is_positive(value) for value in (3.9, 4, None)] == [False, True, False]


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("lable", {"at_least": 4}, ["'lable' is not a known key", "did you mean 'label'?"]),
        ("users.colums", {}, ["'users.colums' is not a known key", "did you mean 'columns'?"]),
        ("users.id", None, ["'users.id' is missing"]),
        ("users", None, ["'users' is missing"]),
        ("events.time", None, ["'events.time' is missing"]),
        ("events.user", 3, ["'events.user' must be a string, not the number 3"]),
        ("events.item", "user_id", ["'events' names the column 'user_id' twice"]),
        ("name", "  ", ["'name' must not be empty"]),
        ("items", [], ["'items' must be an object, not a list"]),
        ("users.columns", ["age"], ["'users.columns' must be an object", "not a list"]),
        ("users.columns.age", "integer", ["'users.columns.age' has type 'integer'", "int"]),
        ("users.columns.age", "flaot", ["did you mean 'float'?"]),
        ("users.columns.user_id", "string", ["is the id column"]),
        ("users.columns.id", "int", ["'users.columns.id' means something else in requests"]),
        ("items.columns.statistics", "string", ["in requests: rename the column"]),
        ("repeats", "counted", ["'repeats' must be \"count\" or \"ignore\", not 'counted'"]),
        ("label.at_least", "four", ["'label.at_least' must be a number, not a string"]),
        ("label.at_least", True, ["'label.at_least' must be a number, not true or false"]),
        ("label.at_least", math.nan, ["'label.at_least' must be a finite number, not nan"]),
        ("label.at_least", -math.inf, ["'label.at_least' must be a finite number, not -inf"]),
        ("events.value", None, ["'label.at_least'", "'events.value' is not declared"]),
        ("statistics.by", ["tag"], ["names 'tag'", "(tags)", "did you mean 'tags'?"]),
        ("items.title", "tags", ["'items.title' names 'tags', not an item column of strings"]),
        ("users.title", "age", ["'users.title' is not a known key"]),
        ("statistics.by", "tags", ["'statistics.by' must be a list"]),
        ("template", "x", ["'template' must be an object, not a string"]),
    ],
)
def test_errors_name_the_key(path, value, parts):
    with pytest.raises(DataError) as error:
        DatasetSpec.from_dict(changed(path, value), "folder/dataset.json")
    for part in ["folder/dataset.json", *parts]:
        assert part in str(error.value)


def test_misspelt_required_key_is_pointed_at():
    raw = changed("items", None)
    raw["itmes"] = RAW["items"]
    with pytest.raises(DataError, match=r"'items' is missing .*did you mean 'itmes'\?"):
        DatasetSpec.from_dict(raw)


def test_load_reports_the_folder_file_and_place(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        DatasetSpec.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        DatasetSpec.load(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text('{"name": "x",\n  "users" {}}')
    with pytest.raises(DataError, match="line 2, column 11: not JSON"):
        DatasetSpec.load(tmp_path)
    path.write_bytes(b'{"name": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8: byte 0xe9 at offset 13"):
        DatasetSpec.load(tmp_path)
    path.write_text(f'{{"name": {"1" * 5000}}}')
    with pytest.raises(DataError, match=r"not JSON that can be read .*limit"):
        DatasetSpec.load(tmp_path)
    path.write_text("[]")
    with pytest.raises(DataError, match="the whole file must be an object, not a list"):
        DatasetSpec.load(tmp_path)


def test_load_accepts_a_byte_order_mark(tmp_path):
    text = "\ufeff" + json.dumps(RAW)
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
    assert DatasetSpec.load(tmp_path).name == "shop"
