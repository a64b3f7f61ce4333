import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Item, User

SHOP = Path(__file__).parents[1] / "data" / "shop"


@pytest.fixture
def shop(tmp_path):
    """A copy of the example shop, to be damaged."""
    return Path(shutil.copytree(SHOP, tmp_path / "shop"))


def edit(path, old, new):
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))


def read_all(folder):
    dataset = Dataset.open(folder)
    return dataset.users, dataset.items, dataset.events()


def error_of(folder):
    with pytest.raises(DataError) as error:
        read_all(folder)
    return str(error.value)


def test_the_tables_of_the_shop():
    dataset = Dataset.open(SHOP)
    assert dataset.user_records == [
        User("ana", {"age": 34, "city": "Lisbon", "interests": ("coffee", "travel")}),
        User("ben", {"age": 51, "city": "Leeds", "interests": ("tea",)}),
        User("chi", {"age": 27, "city": None, "interests": ("ceramics", "coffee")}),
        User("dee", {"age": None, "city": "Porto", "interests": ()}),
    ]
    beans = {"price": 11.0, "kinds": ("coffee",), "in_stock": True}
    assert dataset.item_records[1] == Item("0002", {"name": "Filter beans, light roast", **beans})
    assert dataset.item_records[4].attributes["name"] == 'Mug "Good morning"'
    third = dataset.events().slice(2, 1).to_pylist()[0]
    event = {"row": 2, "user_id": "chi", "item_id": "0005", "time": 1709373600.0, "value": None}
    assert third == {"user_index": 2, "item_index": 4, **event}


def test_parquet_gives_the_same_as_csv(shop):
    dataset = Dataset.open(SHOP)
    pq.write_table(dataset.users, shop / "users.parquet")
    pq.write_table(dataset.items, shop / "items.parquet", row_group_size=2)
    times = pa.array(dataset.events().column("time").to_numpy().astype("datetime64[s]"))
    events = pa.table(
        {
            "bought_at": times,
            "file_row_number": [7] * 20,
            "sku": dataset.events().column("item_id"),
            "customer": dataset.events().column("user_id").dictionary_encode(),
        }
    )
    pq.write_table(events, shop / "events.parquet", row_group_size=7)
    for table in ("users", "items", "events"):
        (shop / f"{table}.csv").unlink()
    for found, expected in zip(read_all(shop), read_all(SHOP), strict=True):
        assert found.equals(expected)


def test_a_table_in_several_files_is_numbered_on(shop):
    lines = (shop / "events.csv").read_text().splitlines(keepends=True)
    (shop / "events.csv").unlink()
    (shop / "events-1.csv").write_text("".join(lines[:8]))
    (shop / "year" / "day").mkdir(parents=True)
    (shop / "year" / "day" / "events-2.csv").write_text("".join([lines[0], *lines[8:]]))
    file = b'"time": "bought_at", "file": "**/events-*"'
    edit(shop / "dataset.json", b'"time": "bought_at"', file)
    assert Dataset.open(shop).events().equals(Dataset.open(SHOP).events())
    edit(shop / "year" / "day" / "events-2.csv", b"dee", b"eve")
    assert "events-2.csv, row 2, column 'customer': 'eve'" in error_of(shop)
    # Of lines that cannot be read the first one of the first file is named.
    edit(shop / "year" / "day" / "events-2.csv", b"ana", b"a,na")
    (shop / "events-1.csv").write_text("".join([*lines[:4], "a,b,c,d\n", *lines[4:8], "a\n"]))
    assert "events-1.csv, row 3: " in error_of(shop)


def test_a_byte_order_mark_is_no_part_of_the_first_column(shop):
    (shop / "users.csv").write_bytes(b"\xef\xbb\xbf" + (shop / "users.csv").read_bytes())
    assert len(Dataset.open(shop).users) == 4


def test_row_numbers_skip_blank_lines_and_count_line_breaks_in_quotes(shop):
    edit(shop / "users.csv", b"ben,51,Leeds,tea\n", b'ben,51,"Le\neds",tea\n\n\n')
    edit(shop / "users.csv", b"27", b"x")
    assert "users.csv, row 2, column 'age': 'x'" in error_of(shop)
    assert Dataset.open(SHOP).users.num_rows == 4
