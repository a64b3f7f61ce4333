import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.splitting.splits import TEST, TRAIN
from m6rec_jax.errors import CheckpointError, DataError

SHOP = Path(__file__).parents[1] / "data" / "shop"

SPEC = {
    "name": "tiny",
    "users": {"id": "user", "columns": {"age": "int"}},
    "items": {"id": "item", "columns": {"title": "string", "tags": "list<string>"}},
    "events": {"user": "user", "item": "item", "time": "time", "value": "rating"},
    "label": {"at_least": 4},
}
USERS = ["user,age", "a,1", "b,2"]
ITEMS = ["item,title,tags", "x,Fargo,crime|drama", "y,Emma,"]
EVENTS = ["user,item,time,rating", "a,x,10,5", "b,y,20,1"]


def write(folder, users=USERS, items=ITEMS, events=EVENTS, spec=SPEC):
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(spec))
    for name, lines in (("users", users), ("items", items), ("events", events)):
        raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
        (folder / f"{name}.csv").write_bytes(b"\n".join(raw) + b"\n")
    return folder


def of_kind(report, kind):
    return [problem for problem in report.problems if problem.kind == kind]


def rejected(report):
    with (report.clean / "rejected.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def found(report):
    """{(kind, table, column): (count, rows)} of a report."""
    return {
        (problem.kind, problem.table, problem.column): (problem.count, problem.rows)
        for problem in report.problems
    }


TEMPLATE = {
    "profile": "[{age} years old]",
    "event": "{outcome} {title}, {ago}",
    "candidate": "{title}[, {tags}]",
    "item": "{title}[, {tags}]",
    "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
}


def told(of=SPEC, **changed):
    return {**of, "template": {**TEMPLATE, **changed}}


def test_rows_that_a_template_could_not_tell_are_errors(tmp_path):
    assert check_dataset(write(tmp_path / "good", spec=told())).problems == []
    users, items = [*USERS, "c,", "d,many"], [*ITEMS, "z, ,drama"]
    events = [*EVENTS, "c,x,30,5", "a,z,40,5", "a,y,50,3.5", "b,x,60,2"]
    outcomes = [{"at_least": 4, "text": "liked"}, {"at_least": 2, "text": "disliked"}]
    spec = told(profile="{age} years old", outcomes=outcomes, item="{title}, {tags}")
    report = check_dataset(write(tmp_path / "bad", users, items, events, spec))
    assert found(report) == {
        ("missing_words", "users", "age"): (1, [2]),
        ("wrong_type", "users", "age"): (1, [3]),  # said once
        ("missing_words", "items", "title"): (1, [2]),
        ("missing_words", "items", "tags"): (1, [1]),
        # Of a rejected user, of rejected items.
        ("unknown_user", "events", "user"): (1, [2]),
        ("unknown_item", "events", "item"): (3, [1, 3, 4]),
        ("missing_words", "events", "rating"): (1, [1]),
    }
    [problem] = [p for p in report.problems if p.column == "age" and p.kind == "missing_words"]
    assert problem.example == "nothing there, and template 'profile' needs {age}"


def test_items_of_which_nothing_is_told_are_errors(tmp_path):
    spec = told(event="[{title}] {ago}", item="[{title}]", candidate="[{tags}]")
    items = ["item,title,tags", "x,Fargo,crime|drama", "y,,comedy", "z,Emma,"]
    report = check_dataset(write(tmp_path, items=items, events=EVENTS[:2], spec=spec))
    assert found(report) == {("missing_words", "items", "item"): (2, [1, 2])}
    assert of_kind(report, "missing_words")[0].example == "template 'item' says nothing of it"


BAD_ROWS = [
    ("c,x", ("wrong_type", "users", "age")),
    ("a,3", ("duplicate_id", "users", "user")),
    (",3", ("missing_value", "users", "user")),
    (b"c\xff,3", ("bad_line", "users", "")),
    ("c,3,4", ("bad_line", "users", "")),
    ("c", ("bad_line", "users", "")),
    ("z,T,a||b", ("wrong_type", "items", "tags")),
    ("a,x,10,5", ("duplicate_event", "events", "user")),
    ("c,x,30,5", ("unknown_user", "events", "user")),
    ("a,z,30,5", ("unknown_item", "events", "item")),
    ("a,,30,5", ("missing_value", "events", "item")),
    ("a,x,,5", ("missing_value", "events", "time")),
    ("a,x,soon,5", ("wrong_type", "events", "time")),
    ("a,x,-1,5", ("time_out_of_range", "events", "time")),
    ("a,x,1700000000000,5", ("time_out_of_range", "events", "time")),
    ("a,x,30,nan", ("wrong_type", "events", "rating")),
    ("a,x,30,", ("missing_value", "events", "rating")),
]


@pytest.mark.parametrize(("line", "problem"), BAD_ROWS)
def test_every_kind_of_bad_row_is_found_and_set_aside(tmp_path, line, problem):
    table = problem[1]
    good = {"users": USERS, "items": ITEMS, "events": EVENTS}
    folder = write(tmp_path / "data", **{table: [*good[table], line]})
    report = check_dataset(folder, tmp_path / "clean")
    assert found(report) == {problem: (1, [2])}
    assert not report.ok
    assert report.num_rejected[table] == 1
    (row,) = rejected(report)
    assert (row["rejected_table"], row["rejected_row"]) == (table, "2")
    assert row["rejected_file"] == f"{table}.csv"
    assert row["rejected_reason"]
    # What is left is what the folder was before, and reads strictly.
    clean, before = Dataset.open(report.clean), Dataset.open(write(tmp_path / "before"))
    assert clean.users.equals(before.users)
    assert clean.items.equals(before.items)
    assert clean.events().equals(before.events())


def test_the_clean_folder_keeps_the_column_of_parts(tmp_path):
    spec = SPEC | {"events": SPEC["events"] | {"part": "fold"}}
    events = ["user,item,time,rating,fold", "a,x,10,5,train", "b,y,20,1,test"]
    events += ["a,y,30,5,tset", "b,x,30,5,"]
    folder = write(tmp_path / "data", events=events, spec=spec)
    report = check_dataset(folder, tmp_path / "clean")
    assert found(report) == {("unknown_part", "events", "fold"): (2, [2, 3])}
    assert Dataset.open(report.clean).event_parts().tolist() == [TRAIN, TEST]


def test_notes_about_texts(tmp_path):
    folder = write(
        tmp_path,
        users=["user,age", "a ,", "b,"],
        items=[
            *("item,title,tags", "x,a\x07b,ok|\x1b", "y,cafÃ© â€™,fine", "z,caf\ufffd,NaN"),
            *("nan,Nan bread,NaT", "v,And Then There Were None,"),
        ],
        events=["user,item,time,rating", "a ,x,10,5", "b,y,20,1"],
    )
    report = check_dataset(folder)
    assert report.ok
    assert found(report) == {
        ("empty_column", "users", "age"): (1, []),
        ("control_characters", "items", "title"): (1, [0]),
        ("control_characters", "items", "tags"): (1, [0]),
        ("wrong_encoding", "items", "title"): (2, [1, 2]),
        ("missing_as_text", "items", "tags"): (2, [2, 3]),
        ("missing_as_text", "items", "item"): (1, [3]),
    }


def test_repeats_of_which_nothing_is_said_are_noted(tmp_path):
    events = [*EVENTS, "a,x,30,5", "b,x,40,1", "nobody,x,50,1"]
    report = check_dataset(write(tmp_path, events=events))
    (problem,) = of_kind(report, "repeats")
    assert problem.severity == "note"
    assert problem.example.startswith("25.0% of the events")
    told = check_dataset(write(tmp_path, events=events, spec={**SPEC, "repeats": "ignore"}))
    assert not of_kind(told, "repeats")


def test_good_text_in_many_languages_is_not_suspected(tmp_path):
    titles = ["Ão Ãs", "Pâté à la crème", "Ñandú", "東京物語", "Ирония", "🎬 “x” – ‘y’…", "naïve"]
    items = ["item,title,tags", *[f'{"xyzuvwt"[n]},"{title}",' for n, title in enumerate(titles)]]
    report = check_dataset(write(tmp_path, items=items))
    assert {problem.kind for problem in report.problems} == {"empty_column"}


KEYS = st.lists(st.tuples(*map(st.sampled_from, ("abc", "xyz", (10, 20), (1, 5)))), max_size=9)


@settings(max_examples=40)
@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), KEYS, KEYS)
def test_keys_agree_with_dictionaries(tmp_path_factory, users, events, more):
    """Of users, and of events in two files, each of which numbers its own rows."""
    base = tmp_path_factory.mktemp("keys")
    spec = {**SPEC, "events": {**SPEC["events"], "file": "*/part.csv"}}
    folder = write(base / "data", users=["user,age", *[f"{user},1" for user in users]], spec=spec)
    expected, seen = [], {}  # file, kind, row, what the reason says
    for row, user in enumerate(users):
        if users.index(user) < row:
            text = f"{user!r} stands in row {users.index(user)} already"
            expected.append(("users.csv", "duplicate_id", row, text))
    for file, part in (("0/part.csv", events), ("1/part.csv", more)):
        (folder / file).parent.mkdir()
        lines = [EVENTS[0], *[",".join(map(str, event)) for event in part]]
        (folder / file).write_text("\n".join(lines) + "\n")
        for row, event in enumerate(part):
            user, item, *_ = event
            wrong = [("user", user)] * (user not in users) + [("item", item)] * (item == "z")
            for table, name in wrong:
                text = f"{name!r} is not in the {table}s table"
                expected.append((file, f"unknown_{table}", row, text))
            if not wrong and event in seen:
                first, place = seen[event]
                text = f"{place} of {first}" if first != file else place
                text = f"the same event stands in {text} already"
                expected.append((file, "duplicate_event", row, text))
            elif not wrong:
                seen[event] = (file, f"row {row}")
    report = check_dataset(folder, base / "clean")
    rows = rejected(report)
    reasons = {(r["rejected_file"], int(r["rejected_row"])): r["rejected_reason"] for r in rows}
    assert {*reasons} == {(file, row) for file, _, row, _ in expected}
    assert all(text in reasons[file, row] for file, _, row, text in expected)
    errors = [p for p in report.problems if p.severity == "error"]
    assert {(p.file, p.kind, row) for p in errors for row in p.rows} == {e[:3] for e in expected}


def test_rows_after_lines_that_cannot_be_read_keep_their_numbers(tmp_path):
    ages, ragged, bad = [f"v{n},{n}" for n in range(50)], (0, 7, 8, 30, 49), (1, 9, 29, 31, 48)
    for row in ragged:
        ages[row] += ",more"
    for row in bad:
        ages[row] = f"v{row},old"
    ages[40] = b"v40,\xff"
    folder = write(tmp_path / "data", users=["user,age", *ages])
    report = check_dataset(folder, tmp_path / "clean")
    problems = found(report)
    assert problems["bad_line", "users", ""] == (6, sorted([*ragged, 40]))
    assert problems["wrong_type", "users", "age"] == (5, list(bad))
    kept = pq.read_table(tmp_path / "clean" / "users.parquet")["age"].to_pylist()
    assert kept == [row for row in range(50) if row not in (*ragged, *bad, 40)]
    rows = {r["rejected_row"]: r for r in rejected(report) if r["rejected_table"] == "users"}
    assert {rows[str(row)]["user"] for row in bad} == {f"v{row}" for row in bad}
    # Lines that cannot be read are kept whole.
    assert rows["40"]["rejected_line"] == "v40,?"
    assert rows["7"]["rejected_line"] == "v7,7,more"


def test_a_clean_folder_is_written_over_nothing_and_beside_the_data_set(tmp_path):
    other = write(tmp_path / "other")
    with pytest.raises(CheckpointError, match="other exists already"):
        check_dataset(SHOP, other)
    assert (other / "users.csv").read_text() == "\n".join(USERS) + "\n"
    with pytest.raises(DataError, match="lies in the data set"):
        check_dataset(other, other / "clean")


LINE = st.lists(
    st.one_of(
        st.sampled_from([b"a", b"b", b"x", b"y", b"10", b"5", b"", b'"', b"nan", b"\xff", b"a|b"]),
        st.binary(max_size=5),
    ),
    max_size=5,
).map(b",".join)


@settings(max_examples=30)
@given(st.lists(LINE, max_size=5), st.lists(LINE, max_size=5), st.lists(LINE, max_size=8))
def test_any_bytes_are_survived_and_the_clean_folder_reads(tmp_path_factory, users, items, events):
    base = tmp_path_factory.mktemp("any")
    folder = write(
        base / "data", users=[*USERS, *users], items=[*ITEMS, *items], events=[*EVENTS, *events]
    )
    report = check_dataset(folder, base / "clean")
    tables = [row["rejected_table"] for row in rejected(report)]
    for table in ("users", "items", "events"):
        assert tables.count(table) == report.num_rejected[table]
    if of_kind(report, "bad_file"):
        return
    clean = Dataset.open(report.clean)
    read = {"users": clean.users, "items": clean.items, "events": clean.events()}
    for table, rows in read.items():
        assert len(rows) == report.num_rows[table] - report.num_rejected[table]
    shutil.rmtree(base)
