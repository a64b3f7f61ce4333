"""Book-Crossing: broken rows, and what stands in place of times."""

import json

import numpy as np
import pytest

from m6rec_jax.data.reading import Dataset
from m6rec_jax.errors import DataError
from tasks.book_crossing.source import draw_order, read_raw, write_canonical

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
    assert dataset.spec.events.time == "draw"
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
