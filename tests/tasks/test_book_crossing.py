"""Book-Crossing: broken rows, and what stands in place of times."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.dataset.reading import Dataset
from tasks.book_crossing import source as book_crossing

SPEC = Path(book_crossing.__file__).with_name("dataset.json")

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


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_rows_are_read_and_broken_ones_counted(tmp_path, newline):
    for name, lines in {"Users": USERS, "Books": BOOKS, "Book-Ratings": RATINGS}.items():
        content = newline.join(lines) + newline
        (tmp_path / f"BX-{name}.csv").write_bytes(content.encode("latin-1"))
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(SPEC, folder)
    counts = book_crossing.build({"book-crossing": tmp_path}, folder)
    users, items, events = (
        pq.read_table(folder / f"{name}.parquet") for name in ("users", "items", "events")
    )
    assert users.to_pydict() == {
        "user_id": ["1", "2", "3", "4", "5"],
        "age": [None, 17, None, 30, 44],
        "city": ["nyc", "porto", None, "cernusco s", "a"],
        "region": ["new york", "v.n.gaia", None, "milan", "b, c"],
        "country": ["usa", "portugal", None, "italy", "usa"],
    }
    assert items.to_pydict() == {
        "item_id": ["0000000001", "000000000X"],
        "title": ['Three "Novels"; one', "Guía"],
        "author": ["A. Author", "B"],
        "year": [2001, None],
        "publisher": ["Pan & Co", None],
    }
    assert events.drop_columns("draw").to_pydict() == {
        "user_id": ["1", "1", "2", "4"],
        "item_id": ["0000000001", "000000000X", "000000000X", "0000000001"],
        "rating": [0.0, 10.0, 7.0, 8.0],
    }
    left_out = {
        "users without an id of their own left out": 1,
        "books without an ISBN of their own left out": 1,
        "books without a title left out": 1,
        "broken rows of BX-Books.csv left out": 1,
        "ratings of unknown readers or books left out": 2,
        "repeated ratings left out": 1,
        "ratings outside 0 to 10 left out": 1,
    }
    assert counts == left_out | {"unlikely ages emptied": 1, "unlikely years emptied": 1}
    # Every row of the files is somewhere.
    kept = users.num_rows + items.num_rows + events.num_rows
    assert kept + sum(left_out.values()) == len(USERS) + len(BOOKS) + len(RATINGS) - 3
    assert Dataset.open(folder).events().num_rows == 4


def test_draws_depend_on_nothing_but_the_row():
    keys = [f"{user}:{item}" for user in range(40) for item in range(50)]
    order = np.asarray(book_crossing.draw_order(keys))
    assert sorted(order.tolist()) == list(range(2000))
    shuffled = np.random.default_rng(0).permutation(2000)
    again = np.asarray(book_crossing.draw_order([keys[i] for i in shuffled]))
    assert (np.argsort(again) == np.argsort(order[shuffled])).all()
    # No trend: the draws of early and late rows have the same mean (its deviation here is 13).
    assert abs(order[:1000].mean() - order[1000:].mean()) < 80
