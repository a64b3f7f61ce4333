import numpy as np

from m6rec_jax.data.dataset.schema import DatasetSpec

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


def test_round_trip(tmp_path):
    spec = DatasetSpec.from_dict(RAW)
    assert spec.to_dict() == RAW
    spec.save(tmp_path)
    file = tmp_path / "dataset.json"
    file.write_text("\ufeff" + file.read_text("utf-8"), "utf-8")  # a byte order mark
    assert DatasetSpec.load(tmp_path) == spec


def test_without_a_label_every_event_is_positive():
    spec = DatasetSpec.from_dict({name: RAW[name] for name in RAW if name != "label"})
    assert spec.events.value == "rating"  # a quantity, say
    assert spec.label.is_positive(None)
    assert spec.label.labels(np.array([np.nan, 1.0])).tolist() == [1, 1]
