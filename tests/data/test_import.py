"""`m6rec data import`: tables come back whole from files of other formats, mistakes are named."""

import json
import string
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.getting.imports import import_dataset
from m6rec_jax.errors import CheckpointError, ConfigError, DataError

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "u1\ti1\t5\t100\nu1\ti2\t1\t200\nu2\ti1\t4\t150\nu2\ti2\t3\t150\n"
)
ITEMS = (
    "item_id:token\ttitle:token_seq\tgenre:token_seq\tprice:float\tvector:float_seq\n"
    "i1\tToy Story\tcomedy children\t2.5\t0.1 0.2\ni2\tHeat\t\t\t\n"
)
USERS = "user_id:token\tage:token\nu1\t24\n"


def write(folder, **files):
    """A folder with files `a.inter`, `sequences.txt`, ... from names with `_` for the dot."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / ".".join(name.rsplit("_", 1))).write_bytes(data)
    return folder


def imported(folder, form="recbole", **files):
    """The folder that is made of files, what is printed, and its `dataset.json`."""
    source, out = write(folder / "soaps", **files), folder / "out"
    printed = "\n".join(import_dataset(form, source, out))
    assert check_dataset(out).ok
    return out, printed, json.loads((out / "dataset.json").read_text())


def rows(folder, table):
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def sequence_of(folder):
    """Items in the order of users and times."""
    events = Dataset.open(folder).events()
    events = events.sort_by([("user_index", "ascending"), ("time", "ascending")])
    return events["item_id"].to_pylist()


# ---- atomic files


def test_atomic_files(tmp_path):
    inter = INTER + "u2\ti1\t4\t150\n" * 2
    files = {"shop_inter": inter, "shop_item": ITEMS, "shop_user": USERS}
    out, printed, spec = imported(tmp_path, **files)
    for line in (
        "shop.inter, column 'user_id', 2 rows (4, 5): duplicate event",
        "shop: 2 users, 2 items, 4 events",
        "ratings of at least 4: 67% of 6 events",
        "shop.item: not used, as float_seq: vector",
        "users without a row in shop.user: 1",
    ):
        assert line in printed
    heat = {"item_id": "i2", "title": "Heat", "genre": None, "price": None}
    toys = {"item_id": "i1", "title": "Toy Story", "genre": ["comedy", "children"], "price": 2.5}
    assert rows(out, "items") == [toys, heat]
    assert rows(out, "users") == [{"user_id": "u1", "age": "24"}, {"user_id": "u2", "age": None}]
    assert spec["label"] == {"at_least": 4.0}
    assert spec["template"] == {
        "event": "[{outcome} ]{title}[, {ago}]",
        "candidate": "{title}[, {genre}][, {item_positive_percent}% of {item_count} liked it]",
        "item": "{title}[, {genre}]",
        "profile": "user[, age {age}]",
        "context": "[{weekday} {part_of_day}]",
        "outcomes": [{"at_least": 4.0, "text": "liked"}, {"text": "disliked"}],
    }


ids = st.text(string.ascii_letters + string.digits + "-é|\"',", min_size=1, max_size=5)
words = st.text(string.ascii_letters + "é'\"{}[],|", min_size=1, max_size=6)
tables = st.fixed_dictionaries(
    {
        "items": st.dictionaries(
            ids,
            st.tuples(
                st.lists(words, min_size=1, max_size=3),  # title
                st.lists(words, max_size=3),  # genre
                st.none() | st.floats(-1e6, 1e6),  # price
            ),
            min_size=1,
            max_size=6,
        ),
        "users": st.dictionaries(ids, st.none() | words, min_size=1, max_size=5),
    }
)


@settings(max_examples=25)
@given(tables, st.data(), st.sampled_from(["\n", "\r\n"]))
def test_tables_come_back_from_atomic_files(made, data, end):
    event = st.tuples(
        st.sampled_from(sorted(made["users"])),
        st.sampled_from(sorted(made["items"])),
        st.sampled_from([1.0, 2.5, 5.0]),
        st.integers(0, 4_000_000_000).filter(lambda time: not 19e6 < time < 22e6),  # dates
    )
    events = data.draw(st.lists(event, min_size=1, max_size=20))
    item_rows = ["item_id:token\ttitle:token_seq\tgenre:token_seq\tprice:float"] + [
        f"{item}\t{' '.join(title)}\t{' '.join(genre)}\t{'' if price is None else repr(price)}"
        for item, (title, genre, price) in made["items"].items()
    ]
    user_rows = ["user_id:token\tcity:token"] + [
        f"{user}\t{city or ''}" for user, city in made["users"].items()
    ]
    event_rows = ["timestamp:float\trating:float\titem_id:token\tuser_id:token"] + [
        f"{time}\t{rating}\t{item}\t{user}" for user, item, rating, time in events
    ]
    with tempfile.TemporaryDirectory() as scratch:
        files = {"inter": event_rows, "item": item_rows, "user": user_rows}
        texts = {f"a_{kind}": end.join(made) + end for kind, made in files.items()}
        source = write(Path(scratch) / "in", **texts)
        out = Path(scratch) / "out"
        import_dataset("recbole", source, out)
        assert rows(out, "items") == [
            {"item_id": item, "title": " ".join(title), "genre": genre or None, "price": price}
            for item, (title, genre, price) in made["items"].items()
        ]
        assert rows(out, "users") == [
            {"user_id": user, "city": city} for user, city in made["users"].items()
        ]
        assert rows(out, "events") == [
            {"user_id": user, "item_id": item, "timestamp": float(time), "rating": rating}
            for user, item, rating, time in dict.fromkeys(events)
        ]
        # Titles of braces alone and the like are for `data check` to judge; ids and times are not.
        kinds = {problem.kind for problem in check_dataset(out).problems}
        assert not kinds & {"unknown_item", "unknown_user", "bad_time"}
        assert not kinds & {"duplicate_id", "duplicate_event"}


def test_without_times_the_order_of_the_file_is_kept(tmp_path):
    events = "user_id:token\titem_id:token\nu\ti2\nu\ti1\nv\ti1\nu\ti2\n"
    out, printed, spec = imported(tmp_path, a_inter=events, a_item=ITEMS)
    assert "no times: 'position' is the place of an event in a.inter" in printed
    assert spec["events"]["time"] == "position"
    assert spec["template"]["event"] == "{title}"
    assert "context" not in spec["template"]
    assert sequence_of(out) == ["i2", "i1", "i2", "i1"]


def test_what_is_left_out_is_counted_and_kept(tmp_path):
    events = INTER + "u9\ti7\t5\t100\nu9\ti1\t\t100\nu1\ti1\t5\nu1\ti1\tgood\t5\n"
    events += "u1\ti1\t5\t1700000000000\n\n"
    items = ITEMS.encode() + b"i3\t\tdrama\t1\t\ni1\tAgain\t\t\t\ni4\tCaf\xe9\t\t\t\n"
    out, printed, spec = imported(tmp_path, a_inter=events, a_item=items)
    for line in (
        "a.item, column 'title', 1 rows (2): missing words",
        "a.item, column 'item_id', 1 rows (3): duplicate id: 'i1' stands in row 0",
        "a.item, 1 rows (4): bad line",
        "column 'item_id', 1 rows (4): unknown item",
        "column 'rating', 1 rows (5): missing value",
        "bad line: Expected Number of Columns: 4 Found: 3",
        "column 'rating', 1 rows (7): wrong type: 'good'",
        "milliseconds",
    ):
        assert line in printed, line
    assert spec["provenance"]["notes"] == printed.split("\n")[1:]
    assert len(rows(out, "events")) == 4
    assert len((out / "rejected.csv").read_text().splitlines()) == 1 + 3 + 5


# ---- sequences

SEQUENCES = "u1 1 2 3\nu2 3\nu3 2 1 1 2\n"
PRODUCTS = "item_id\ttext\n1\tsoap\n2\tbrush\n3\tcomb\n"

sequences = st.dictionaries(
    ids.filter(lambda name: name.isalnum()),
    st.lists(st.sampled_from(["1", "2", "3", "7"]), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
).filter(lambda made: any({"1", "2", "3"} & set(items) for items in made.values()))


@settings(max_examples=25)
@given(sequences, st.sampled_from([" ", "\t", "  "]))
def test_sequences_as_a_loop_reads_them(made, blank):
    text = "".join(blank.join([user, *items]) + "\n" for user, items in made.items())
    expected = [
        {"user_id": user, "item_id": item, "position": float(place)}
        for user, items in made.items()
        for place, item in enumerate(items)
        if item != "7"  # not in the items file
    ]
    with tempfile.TemporaryDirectory() as scratch:
        source = write(Path(scratch) / "in", sequences_txt=text, items_tsv=PRODUCTS)
        printed = "\n".join(import_dataset("sequences", source, Path(scratch) / "out", name="x"))
        assert rows(Path(scratch) / "out", "events") == expected
        unknown = sum(items.count("7") for items in made.values())
        assert (f"'item_id', {unknown} rows" in printed) == bool(unknown)
        assert check_dataset(Path(scratch) / "out").ok


def test_splits_and_templates_of_sequences_know_no_time(tmp_path):
    items = PRODUCTS.replace("text", "text (short)", 1)
    out, _, spec = imported(tmp_path, "sequences", sequences_txt=SEQUENCES, items_tsv=items)
    assert (spec["name"], spec["repeats"]) == ("soaps", "count")
    candidate = "{text_short}[, had it {user_item_times} times]"
    text = "{text_short}"
    assert spec["template"] == {"event": text, "candidate": candidate, "item": text}
    assert spec["provenance"]["notes"][-1].startswith("no times: 'position' is ")
    assert sequence_of(out) == ["1", "2", "3", "3", "2", "1", "1", "2"]


ATOMIC = {"a_inter": INTER, "a_item": ITEMS}
SEQUENCE = {"sequences_txt": SEQUENCES, "items_tsv": PRODUCTS}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_inter": INTER}, r"a\.item is missing"),
        ({"a_item": ITEMS}, r"one \.inter file \(there: none\)"),
        ({**ATOMIC, "b_inter": INTER}, r"there: a\.inter, b\.inter"),
        ({**ATOMIC, "a_inter": INTER.replace("item_id", "item")}, "line 1: .*did you mean 'item'"),
        ({**ATOMIC, "a_item": ITEMS.replace("_seq", "s", 1)}, "line 1: .*did you mean 'token"),
        ({**ATOMIC, "a_item": "item_id:token\tprice:float\ni1\t2\n"}, "no column of text"),
        ({**ATOMIC, "a_item": ""}, r"a\.item: its first line is empty"),
        ({**ATOMIC, "a_item": ITEMS.replace("i1", "j1").replace("i2", "j2")}, "no event is left"),
        ({"sequences_txt": SEQUENCES}, r"no items\.tsv"),
        ({"sequence_txt": SEQUENCES, "items_tsv": PRODUCTS}, r"mean 'sequence\.txt'"),
        ({**SEQUENCE, "items_tsv": PRODUCTS.split("\n", 1)[1]}, "line 1: '1' is an item"),
        ({**SEQUENCE, "items_tsv": PRODUCTS.replace("text", "Item ID")}, "line 1: .*twice"),
        ({**SEQUENCE, "items_tsv": "1\n2\n"}, "line 1: one field"),
        ({**SEQUENCE, "sequences_txt": SEQUENCES.encode() + b"u\xff 1\n"}, "UTF-8: .*Line: 4"),
    ],
)
def test_mistakes_in_files(tmp_path, files, message):
    source = write(tmp_path / "in", **files)
    form = "sequences" if files.keys() & {"sequences_txt", "sequence_txt"} else "recbole"
    with pytest.raises(DataError, match=message):
        import_dataset(form, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("form", "to", "options", "error", "message"),
    [
        ("recbol", "out", {}, ConfigError, r"did you mean 'recbole'"),
        ("recbole", "out", {"at_least": 6}, ConfigError, "from 1 to 5"),
        ("recbole", "in", {}, CheckpointError, "exists already"),
    ],
)
def test_settings_that_fit_nothing(tmp_path, form, to, options, error, message):
    source = write(tmp_path / "in", **ATOMIC)
    with pytest.raises(error, match=message):
        import_dataset(form, source, tmp_path / to, **options)
