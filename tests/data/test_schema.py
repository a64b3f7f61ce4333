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
        ("users.id", None, ["'users'", "missing", "`id`"]),
        ("users", None, ["missing", "`users`"]),
        ("events.time", None, ["'events'", "missing", "`time`"]),
        ("events.user", 3, ["'events.user'", "`str`", "(3)"]),
        ("events.item", "user_id", ["'events'", "'user_id'", "twice"]),
        ("name", "", ["'name'"]),
        ("items", [], ["'items'", "`object`", "`array`"]),
        ("users.columns", ["age"], ["'users.columns'", "`object`", "(['age'])"]),
        ("users.columns.age", "integer", ["'users'", "'age' has type 'integer'", "int"]),
        ("users.columns.age", 3, ["'users.columns[...]'", "`str`", "`int`"]),
        ("users.columns.age", "flaot", ["did you mean 'float'?"]),
        ("users.columns.user_id", "string", ["is the id column"]),
        ("users.columns.id", "int", ["'users'", "'id' means something else in requests"]),
        ("items.columns.statistics", "string", ["in requests: rename the column"]),
        ("repeats", "counted", ["repeats", "count", "ignore", "'counted'"]),
        ("label.at_least", "four", ["'label.at_least'", "('four')"]),
        ("label.at_least", True, ["'label.at_least'", "(True)"]),
        ("label.at_least", math.nan, ["'label'", "finite number, not nan"]),
        ("label.at_least", -math.inf, ["'label'", "finite number, not -inf"]),
        ("events.value", None, ["'label.at_least'", "'events.value' is not declared"]),
        ("statistics.by", ["tag"], ["names 'tag'", "(tags)", "did you mean 'tags'?"]),
        ("items.title", "tags", ["'items'", "names 'tags', not an item column of strings"]),
        ("users.title", "age", ["'users.title' is not a known key"]),
        ("statistics.by", ["tags", 3], ["'statistics.by[1]'", "`str`", "(3)"]),
        ("template", "x", ["'template'", "`object`", "('x')"]),
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
    with pytest.raises(DataError, match=r"'itmes' is not a known key .*did you mean 'items'\?"):
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
    path.write_text("[]")
    with pytest.raises(DataError, match="Expected `object`, got `array`"):
        DatasetSpec.load(tmp_path)


def test_load_accepts_a_byte_order_mark(tmp_path):
    text = "\ufeff" + json.dumps(RAW)
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
    assert DatasetSpec.load(tmp_path).name == "shop"
