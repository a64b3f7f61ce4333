"""Drafts of dataset.json: what is guessed of tables, and that the check accepts it."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.getting.init import init_dataset
from m6rec_jax.errors import ConfigError, DataError

SHOP = Path(__file__).parents[1] / "data" / "shop"


def write(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


@pytest.mark.parametrize("names", [("users", "items", "events"), ("events", "users", "items")])
def test_the_shop_is_recognised(tmp_path: Path, names: Sequence[str]) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    for name in names:
        shutil.copy(SHOP / f"{name}.csv", folder)
    said = init_dataset([folder / f"{name}.csv" for name in names])
    found, wanted = DatasetSpec.load(folder), DatasetSpec.load(SHOP)
    assert (found.users.id, found.items.id) == (wanted.users.id, wanted.items.id)
    assert dict(found.users.columns) == dict(wanted.users.columns)
    assert dict(found.items.columns) == dict(wanted.items.columns)
    events = found.events
    assert (events.user, events.item, events.time) == ("customer", "sku", "bought_at")
    assert (events.value, found.label.at_least) == (None, None)
    assert found.template["item"].startswith("{name}[, ")
    assert found.repeats == "count"
    assert "had it {user_item_times} times" in found.template["candidate"]
    assert any(line.startswith('repeats: "count": ') for line in said)
    assert check_dataset(folder).ok
    assert said[-1].endswith(f"Then: m6rec data check {folder}")
    with pytest.raises(DataError, match=r"dataset\.json is there: edit it, or remove it"):
        init_dataset([folder / f"{name}.csv" for name in names])


def test_numbers_for_ids_ratings_and_no_users(tmp_path: Path) -> None:
    """Ratings and years stand among the ids of films, too."""
    films = [(n, f"Film {n}", 1990 + n % 9, "crime|drama") for n in range(1, 60)]
    stars = [(u, 1 + u * 7 % 59, 1 + u % 5, 1_600_000_000 + u) for u in range(1, 50)]
    write(tmp_path / "movies.csv", "movie_id,title,year,genres", films)
    write(tmp_path / "ratings.csv", "user_id,movie_id,rating,timestamp", stars)
    said = init_dataset([tmp_path / "movies.csv", tmp_path / "ratings.csv"], "films")
    spec = DatasetSpec.load(tmp_path)
    events = spec.events
    assert (events.user, events.item, events.time) == ("user_id", "movie_id", "timestamp")
    assert (events.value, spec.label.at_least, spec.name) == ("rating", 4.0, "films")
    assert spec.repeats == "ignore"
    assert dict(spec.items.columns) == {"title": "string", "year": "int", "genres": "list<string>"}
    assert (spec.users.id, spec.users.file) == ("user_id", "users.parquet")
    assert any("positives are ratings of at least 4: 41% of 49 events" in line for line in said)
    assert check_dataset(tmp_path).ok
    for name in ("dataset.json", "users.parquet"):
        (tmp_path / name).unlink()
    init_dataset([tmp_path], at_least=3)
    spec = DatasetSpec.load(tmp_path)
    assert spec.label.at_least == 3
    assert spec.template["outcomes"] == [{"at_least": 3, "text": "liked"}, {"text": "disliked"}]


def test_codes_keep_their_zeros(tmp_path: Path) -> None:
    people = [(f"u{n}", f"0{1000 + n}", n % 2, 0.5 * n) for n in range(20)]
    write(tmp_path / "users.csv", "user_id,zip,member,height", people)
    write(tmp_path / "items.csv", "item_id,title", [(f"i{n}", f"Thing {n}") for n in range(9)])
    stars = [(f"u{n % 20}", f"i{n % 9}", 1_600_000_000 + n) for n in range(50)]
    write(tmp_path / "events.csv", "user_id,item_id,time", stars)
    init_dataset([tmp_path / f"{table}.csv" for table in ("users", "items", "events")])
    kinds = dict(DatasetSpec.load(tmp_path).users.columns)
    assert kinds == {"zip": "string", "member": "int", "height": "float"}


def test_empty_cells_do_not_mislead(tmp_path: Path) -> None:
    """One empty user, time and rating each, beside columns that are empty but for some cells."""
    films = [(n, f"Film {n}") for n in range(40)]
    events = [
        [n % 7, n % 40, 1_600_000_000 + n, 1 + n % 5, *(["", ""] if n % 9 else [1_500_000_000, 3])]
        for n in range(80)
    ]
    events[5][0] = events[6][2] = events[7][3] = ""
    header = "customer_id,film_id,seen_at,rating,paid_at,seller_rating"
    tables = [
        write(tmp_path / "events.csv", header, events),
        write(tmp_path / "films.csv", "film_id,title", films),
        write(tmp_path / "customers.csv", "customer_id,age", [(n, 20 + n) for n in range(7)]),
    ]
    init_dataset(tables)
    spec = DatasetSpec.load(tmp_path)
    assert tuple(spec.events.kinds) == ("customer_id", "film_id", "seen_at", "rating")
    assert spec.label.at_least == 4
    missing = {p.column for p in check_dataset(tmp_path).problems if p.kind == "missing_value"}
    assert missing == {"customer_id", "seen_at", "rating"}
    # What most events lack is not what they are worth: all of them are positives.
    rare = [[*event[:3], *event[4:]] for event in events]
    write(tmp_path / "events.csv", "customer_id,film_id,seen_at,paid_at,seller_rating", rare)
    (tmp_path / "dataset.json").unlink()
    init_dataset(tables)
    assert tuple(DatasetSpec.load(tmp_path).events.kinds) == ("customer_id", "film_id", "seen_at")


def test_what_was_paid_is_no_rating_and_items_without_titles_are_told_apart(tmp_path: Path) -> None:
    tables = [
        write(
            tmp_path / "purchases.csv",
            "household_id,product_id,purchased_at,sales_value,quantity",
            [[n % 7, n % 12, f"2024-05-{1 + n % 28:02}T10:00:00", n / 3, 1] for n in range(80)],
        ),
        write(
            tmp_path / "products.csv",
            "product_id,department,kind,size,brand",
            [[n, "DAIRY", f"CHEESE {'abc'[n % 3]}", f"{n % 6} OZ", "Own"] for n in range(12)],
        ),
    ]
    said = init_dataset(tables)
    found = DatasetSpec.load(tmp_path)
    assert (found.events.value, found.label.at_least) == (None, None)
    assert any("every event is a positive" in line for line in said)
    assert found.template["item"] == "{kind}[, {department}][, {size}][, {brand}]"
    assert found.template["event"] == "{kind}[, {size}][, {ago}]"
    assert found.items.title is None
    assert found.statistics.by == ("kind",)
    told = "[, top {item_popularity_rank}%][, had {user_kind_counts}]"
    assert told in found.template["candidate"]
    assert check_dataset(tmp_path).ok
    for name in ("dataset.json", "users.parquet"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="no column of ratings"):
        init_dataset(tables, at_least=3)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_words_are_read_as_the_data_are(tmp_path: Path, suffix: str) -> None:
    """Of any alphabet; and an empty text is none, so its column is no text that all items have."""
    kinds, colours = ["чай", "кофе", "вода"], ["красный", "синий", "белый", "серый", ""]
    items = [(f"i{n}", kinds[n % 3], colours[n % 5]) for n in range(30)]
    events = [(f"u{n}", f"i{n % 30}", 1_600_000_000 + n) for n in range(90)]
    write(tmp_path / "events.csv", "user_id,item_id,bought_at", events)
    path = write(tmp_path / "items.csv", "item_id,kind,colour", items)
    if suffix == "parquet":
        table = dict(zip(("item_id", "kind", "colour"), zip(*items, strict=True), strict=True))
        path = tmp_path / "items.parquet"
        columns = {name: pa.array(own) for name, own in table.items()}
        columns["tags"] = pa.array([["a", "b"]] * 30, pa.large_list(pa.string()))
        columns["boxed"] = pa.array([True, False] * 15)
        pq.write_table(pa.table(columns), path)
    init_dataset([tmp_path / "events.csv", path])
    spec = DatasetSpec.load(tmp_path)
    if suffix == "parquet":
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
def test_what_cannot_be_told_is_asked_for(tmp_path: Path, header, row, message) -> None:
    items = write(tmp_path / "items.csv", "sku,name", [("a", "tea"), ("b", "mug")])
    events = write(tmp_path / "events.csv", header, [row] * 2)
    with pytest.raises(DataError, match=message):
        init_dataset([items, events])
    with pytest.raises(DataError, match="name two or three tables"):
        init_dataset([events])
