"""Drafts of dataset.json: what is guessed of tables, and that the check accepts it."""

import csv
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.getting.init import init_dataset
from m6rec_jax.errors import ConfigError, DataError

SHOP = Path(__file__).parents[1] / "data" / "shop"
NOW = 1_600_000_000


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def drafted(folder, ok=True, **tables):
    """The draft of CSV files, name=(header, rows), and what is said of it."""
    for made in ("dataset.json", "users.parquet"):
        (folder / made).unlink(missing_ok=True)
    paths = [write(folder / f"{name}.csv", *of) for name, of in tables.items()]
    said = init_dataset(paths)
    assert check_dataset(folder).ok == ok
    return DatasetSpec.load(folder), "\n".join(said), paths


@pytest.mark.parametrize("names", [("users", "items", "events"), ("events", "users", "items")])
def test_the_shop_is_recognised(tmp_path, names):
    tables = [shutil.copy(SHOP / f"{name}.csv", tmp_path) for name in names]
    said = init_dataset([*map(Path, tables)])
    found, wanted = DatasetSpec.load(tmp_path), DatasetSpec.load(SHOP)
    assert (found.users.id, found.items.id) == (wanted.users.id, wanted.items.id)
    assert dict(found.users.columns) == dict(wanted.users.columns)
    assert dict(found.items.columns) == dict(wanted.items.columns)
    events = found.events
    assert (events.user, events.item, events.time) == ("customer", "sku", "bought_at")
    assert (events.value, found.label.at_least) == (None, None)
    assert found.template["item"].startswith("{name}[, ")
    assert found.repeats == "count"
    assert "had it {user_item_times} times" in found.template["candidate"]
    assert check_dataset(tmp_path).ok
    assert said[-1].endswith(f"Then: m6rec data check {tmp_path}")
    with pytest.raises(DataError, match=r"dataset\.json is there: edit it, or remove it"):
        init_dataset([*map(Path, tables)])


def test_numbers_for_ids_ratings_and_no_users(tmp_path):
    """Ratings and years stand among the ids of films, too."""
    films = [(n, f"Film {n}", 1990 + n % 9, "crime|drama") for n in range(1, 60)]
    stars = [(u, 1 + u * 7 % 59, 1 + u % 5, NOW + u) for u in range(1, 50)]
    ratings = ("user_id,movie_id,rating,timestamp", stars)
    spec, said, _ = drafted(tmp_path, movies=("movie_id,title,year,genres", films), ratings=ratings)
    assert tuple(spec.events.kinds) == ("user_id", "movie_id", "timestamp", "rating")
    assert (spec.label.at_least, spec.repeats) == (4.0, "ignore")
    assert dict(spec.items.columns) == {"title": "string", "year": "int", "genres": "list<string>"}
    assert (spec.users.id, spec.users.file) == ("user_id", "users.parquet")
    assert "positives are ratings of at least 4: 41% of 49 events" in said
    with pytest.raises(DataError, match=r"dataset\.json is there"):
        init_dataset([tmp_path])
    for name in ("dataset.json", "users.parquet"):
        (tmp_path / name).unlink()
    init_dataset([tmp_path], "films", at_least=3)
    spec = DatasetSpec.load(tmp_path)
    assert (spec.name, spec.label.at_least) == ("films", 3)
    assert spec.template["outcomes"] == [{"at_least": 3, "text": "liked"}, {"text": "disliked"}]


def test_codes_keep_their_zeros(tmp_path):
    people = [(f"u{n}", f"0{1000 + n}", n % 2, 0.5 * n) for n in range(20)]
    spec, *_ = drafted(
        tmp_path,
        users=("user_id,zip,member,height", people),
        items=("item_id,title", [(f"i{n}", f"Thing {n}") for n in range(9)]),
        events=("user_id,item_id,time", [(f"u{n % 20}", f"i{n % 9}", NOW + n) for n in range(50)]),
    )
    assert dict(spec.users.columns) == {"zip": "string", "member": "int", "height": "float"}


def test_empty_cells_do_not_mislead(tmp_path):
    """One empty user, time and rating each, beside columns that are empty but for some cells."""
    events = [
        [n % 7, n % 40, NOW + n, 1 + n % 5, *(["", ""] if n % 9 else [NOW, 3])] for n in range(80)
    ]
    events[5][0] = events[6][2] = events[7][3] = ""
    tables = {
        "films": ("film_id,title", [(n, f"Film {n}") for n in range(40)]),
        "customers": ("customer_id,age", [(n, 20 + n) for n in range(7)]),
    }
    header = "customer_id,film_id,seen_at,rating,paid_at,seller_rating"
    spec, *_ = drafted(tmp_path, ok=False, events=(header, events), **tables)
    assert tuple(spec.events.kinds) == ("customer_id", "film_id", "seen_at", "rating")
    missing = {p.column for p in check_dataset(tmp_path).problems if p.kind == "missing_value"}
    assert missing == {"customer_id", "seen_at", "rating"}
    # What most events lack is not what they are worth: all of them are positives.
    rare = [[*event[:3], *event[4:]] for event in events]
    header = header.replace("rating,paid", "paid")
    spec, *_ = drafted(tmp_path, ok=False, events=(header, rare), **tables)
    assert tuple(spec.events.kinds) == ("customer_id", "film_id", "seen_at")


def test_what_was_paid_is_no_rating_and_items_without_titles_are_told_apart(tmp_path):
    bought = [[n % 7, n % 12, f"2024-05-{1 + n % 28:02}T10:00:00", n / 3, 1] for n in range(80)]
    things = [[n, "DAIRY", f"CHEESE {'abc'[n % 3]}", f"{n % 6} OZ", "Own"] for n in range(12)]
    header = "household_id,product_id,purchased_at,sales_value,quantity"
    columns = "product_id,department,kind,size,brand"
    spec, said, paths = drafted(tmp_path, purchases=(header, bought), products=(columns, things))
    assert (spec.events.value, spec.label.at_least) == (None, None)
    assert "every event is a positive" in said
    assert spec.template["item"] == "{kind}[, {department}][, {size}][, {brand}]"
    assert spec.template["event"] == "{kind}[, {size}][, {ago}]"
    assert (spec.items.title, spec.statistics.by) == (None, ("kind",))
    told = "[, top {item_popularity_rank}%][, had {user_kind_counts}]"
    assert told in spec.template["candidate"]
    for name in ("dataset.json", "users.parquet"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="no column of ratings"):
        init_dataset(paths, at_least=3)


def test_words_are_read_as_the_data_are(tmp_path):
    """Of any alphabet; and an empty text is none, so its column is no text that all items have."""
    columns = {
        "item_id": [f"i{n}" for n in range(30)],
        "kind": ["чай", "кофе", "вода"] * 10,
        "colour": ["красный", "синий", "белый", "серый", ""] * 6,
        "tags": pa.array([["a", "b"]] * 30, pa.large_list(pa.string())),
        "boxed": [True, False] * 15,
    }
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    bought = [(f"u{n}", f"i{n % 30}", NOW + n) for n in range(90)]
    write(tmp_path / "events.csv", "user_id,item_id,bought_at", bought)
    init_dataset([tmp_path / "events.csv", tmp_path / "items.parquet"])
    spec = DatasetSpec.load(tmp_path)
    typed = {"kind": "string", "colour": "string", "tags": "list<string>", "boxed": "bool"}
    assert spec.items.columns == typed
    assert spec.template["item"].startswith("{kind}[, {colour}]")
    assert spec.statistics.by[0] == "colour"
    assert check_dataset(tmp_path).ok


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("who,sku,at", ("u", "a", "2024-01-01"), "which column is the user .*who, sku, at"),
        ("user,sku,number", ("u", "a", 1), "when things happened"),
        ("user,sku,at", ("u", "x", "2024-01-01"), "holds the ids of the other ones"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path, header, row, message):
    items = write(tmp_path / "items.csv", "sku,name", [("a", "tea"), ("b", "mug")])
    events = write(tmp_path / "events.csv", header, [row] * 2)
    with pytest.raises(DataError, match=message):
        init_dataset([items, events])
    with pytest.raises(DataError, match="name two or three tables"):
        init_dataset([events])
