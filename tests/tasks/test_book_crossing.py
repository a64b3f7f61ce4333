"""Book-Crossing: broken rows, what stands in place of times, and that no label leaks."""

import json

import numpy as np
import pytest

from m6rec_jax.data.event_table import Assignment
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.splits import Split
from m6rec_jax.data.statistics import Statistics
from m6rec_jax.data.statistics_state import StatisticsOptions
from m6rec_jax.errors import DataError
from m6rec_jax.metrics.classification import user_averaged_auc
from tasks.book_crossing import source as book_crossing
from tasks.book_crossing.source import draw_order, read_raw, write_canonical
from tests.data.view_fold import events_in_order

USERS = [
    '"User-ID";"Location";"Age"',
    '"1";"nyc, new york, usa";NULL',
    '"2";"porto, v.n.gaia, portugal";"17"',
    '"3";"n/a, n/a, ";"239"',
    '"4";"cernusco s\n, milan, italy";"30"',
    '"5";"a, b, c, usa";"44"',
    '"2";"twice";"20"',
]
BOOKS = [
    '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";'
    '"Image-URL-M";"Image-URL-L"',
    '"0000000001";"Three \\"Novels\\"; one";"A. Author";"2001";"Pan &amp; Co";"x";"y";"z"',
    '"000000000x";"GuÃ\xada";"B";"0";"n/a";"x";"y";"z"',
    '"000000000X";"Again";"B";"1999";"P";"x";"y";"z"',
    '"0000000003";"";"B";"1999";"P";"x";"y";"z"',
    '"0000000004";"Too";"few"',
]
RATINGS = [
    '"User-ID";"ISBN";"Book-Rating"',
    '"1";"0000000001";"0"',
    '"1";"000000000X";"10"',
    '"2";"000000000x";"7"',
    '"2";"0000000009";"7"',
    '"9";"0000000001";"7"',
    '"1";"0000000001";"5"',
    '"4";"0000000001";"11"',
    '"4";"0000000001";"8"',
]


@pytest.fixture
def raw(tmp_path):
    def write(newline="\r\n", **changes):
        tables = {"Users": USERS, "Books": BOOKS, "Book-Ratings": RATINGS} | changes
        for name, lines in tables.items():
            content = newline.join(lines) + newline
            (tmp_path / f"BX-{name}.csv").write_bytes(content.encode("latin-1"))
        return tmp_path

    return write


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_rows_are_read_and_broken_ones_counted(raw, newline):
    tables = read_raw(raw(newline))
    users = dict(zip(tables.users["user_id"], range(9), strict=False))
    assert list(users) == ["1", "2", "3", "4", "5"]
    assert tables.users["age"] == [None, 17, None, 30, 44]
    assert tables.users["city"] == ["nyc", "porto", None, "cernusco s", "a"]
    assert tables.users["region"] == ["new york", "v.n.gaia", None, "milan", "b, c"]
    assert tables.users["country"] == ["usa", "portugal", None, "italy", "usa"]
    assert tables.items == {
        "item_id": ["0000000001", "000000000X"],
        "title": ['Three "Novels"; one', "Guía"],
        "author": ["A. Author", "B"],
        "year": [2001, None],
        "publisher": ["Pan & Co", None],
    }
    rows = zip(*(tables.events[c] for c in ("user_id", "item_id", "rating")), strict=True)
    assert list(rows) == [
        ("1", "0000000001", 0.0),
        ("1", "000000000X", 10.0),
        ("2", "000000000X", 7.0),
        ("4", "0000000001", 8.0),
    ]
    assert tables.left_out == {
        "users without an id of their own": 1,
        "books without an ISBN of their own": 1,
        "books without a title": 1,
        "rows of BX-Books.csv with a wrong number of columns": 1,
        "ratings of books that the table of books lacks": 1,
        "ratings of unknown users": 1,
        "repeated ratings": 1,
        "ratings outside 0 to 10": 1,
    }
    assert tables.emptied == {"unlikely ages": 1, "unlikely years": 1}
    # Every row of the files is somewhere.
    lines = len(USERS) + len(BOOKS) + len(RATINGS) - 3
    kept = sum(len(next(iter(t.values()))) for t in (tables.users, tables.items, tables.events))
    assert kept + sum(tables.left_out.values()) == lines


def test_the_folder_is_a_data_set(raw, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    said = write_canonical(read_raw(raw()), folder, "book-crossing")
    assert "5 users, 2 books, 4 events, 2 of them conversions; left out: 1 books" in said
    dataset = Dataset.open(folder)
    assert dataset.spec.label.at_least == 8
    assert dataset.events().num_rows == 4
    described = json.loads((folder / "dataset.json").read_text())
    assert described["provenance"]["left_out"]["repeated ratings"] == 1
    # Nothing of what the template tells speaks of times.
    template = json.dumps(described["template"])
    assert not any(f"{{{name}}}" in template for name in ("ago", "date", "weekday", "month"))


def test_another_file_is_refused(raw):
    with pytest.raises(DataError, match=r"BX-Users\.csv: the header is"):
        read_raw(raw(Users=['"a";"b"']))


def test_draws_depend_on_nothing_but_the_row():
    keys = [f"{user}:{item}" for user in range(40) for item in range(50)]
    order = draw_order(keys)
    assert sorted(order.tolist()) == list(range(2000))
    shuffled = np.random.default_rng(0).permutation(2000)
    again = draw_order([keys[i] for i in shuffled])
    assert (again == order[shuffled]).all()
    assert (draw_order(keys, seed=1) != order).any()
    # No trend: the draws of early and late rows have the same mean (its deviation here is 13).
    assert abs(order[:1000].mean() - order[1000:].mean()) < 80


# ---- leakage


def coin_flips(tmp_path, num_users=60, num_items=12, seed=0):
    """A data set whose conversions depend on nothing at all."""
    rng = np.random.default_rng(seed)
    raw = book_crossing.RawTables(
        {"user_id": [f"u{n}" for n in range(num_users)], "age": [30] * num_users}
        | {name: ["x"] * num_users for name in ("city", "region", "country")},
        {
            "item_id": [f"b{n}" for n in range(num_items)],
            "title": [f"Book {n}" for n in range(num_items)],
            "author": [f"Author {n % 5}" for n in range(num_items)],
            "year": [2000] * num_items,
            "publisher": ["P"] * num_items,
        },
        {"user_id": [], "item_id": [], "draw": [], "rating": []},
    )
    for user in range(num_users):
        for item in range(num_items):
            raw.events["user_id"].append(f"u{user}")
            raw.events["item_id"].append(f"b{item}")
            raw.events["rating"].append(float(rng.choice([0, 9])))
    pairs = zip(raw.events["user_id"], raw.events["item_id"], strict=True)
    raw.events["draw"] = draw_order([f"{u}:{b}" for u, b in pairs]).tolist()
    folder = tmp_path / "flips"
    folder.mkdir(exist_ok=True)
    write_canonical(raw, folder, "flips")
    return Dataset.open(folder), raw


def test_statistics_tell_nothing_of_their_own_row_where_leave_one_out_does(tmp_path):
    dataset, raw = coin_flips(tmp_path, num_users=200)
    labels = np.asarray(raw.events["rating"]) >= 8
    items = np.asarray([int(item[1:]) for item in raw.events["item_id"]])
    totals = np.bincount(items, weights=labels)
    counts = np.bincount(items)
    # Leave-one-out: the share among all other rows of the book.
    without = (totals[items] - labels) / (counts[items] - 1)
    # Among the rows of a book it tells the label without a mistake, turned round.
    assert user_averaged_auc(items, labels, without) == 0

    options = StatisticsOptions(neighbours=False, factors=0)
    statistics = Statistics.for_dataset(dataset.spec, options)
    codes = np.zeros(len(labels), np.int8)
    split = Split.parse("per_user_temporal")
    everything = Assignment(split, codes, np.zeros(len(counts), bool))
    drawn, told, of_item = [], [], []
    for event, item, _ in events_in_order(dataset, everything):
        known = statistics.features(event.user_id, item, event.time)
        told.append(float(known["item_positive_percent"] or 50))
        drawn.append(event.value >= 8)
        of_item.append(item.id)
        statistics.update(event, item)
    # Somewhat below a half: a later row's share holds the labels of earlier ones, with which the
    # AUC compares it. Of its own label it holds nothing.
    assert 0.35 < user_averaged_auc(of_item, drawn, told) < 0.6
    product = (np.asarray(drawn) - 0.5) * (np.asarray(told) / 100 - 0.5)
    assert abs(product.mean()) < 4 * product.std() / len(product) ** 0.5


def rendered(folder, out):
    options = PrepareOptions(views=("groups",), group_size=3, max_events=5)
    prepared = prepare(folder, out, options=options, progress=False)
    import tensorflow_datasets as tfds

    rows = {}
    for part in ("train", "validation", "test"):
        builder = tfds.builder_from_directory(str(prepared.tfds_folder("groups")))
        for row in tfds.as_numpy(builder.as_dataset(split=part)):
            key = (part, row["user_id"], tuple(row["item_indices"].tolist()))
            rows[key] = (row["history"].tolist(), row["candidates"].tolist())
    return rows


def test_a_label_changes_no_text_of_its_own_row_or_of_earlier_draws(tmp_path):
    _, raw = coin_flips(tmp_path, num_users=20)
    before = rendered(tmp_path / "flips", tmp_path / "a")
    users, draws = np.asarray(raw.events["user_id"]), np.asarray(raw.events["draw"])
    order = np.argsort(draws)
    row = int(order[len(order) // 2])
    raw.events["rating"][row] = 9.0 - raw.events["rating"][row]
    write_canonical(raw, tmp_path / "flips", "flips")
    after = rendered(tmp_path / "flips", tmp_path / "b")
    assert before.keys() == after.keys()
    place = {(u, i): d for u, i, d in zip(users, raw.events["item_id"], draws, strict=True)}
    changed = 0
    for key, text in before.items():
        _, user, items = key
        first = min(place[user.decode(), f"b{item}"] for item in items)
        if text != after[key]:
            changed += 1
            assert first > draws[row], key
    assert changed  # later rows are told of it
