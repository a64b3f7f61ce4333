"""Mistakes that people make with a data set folder: each is named where it is, with a remedy."""

import json
import shutil
from pathlib import Path

import pytest

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.prepare import prepare
from m6rec_jax.errors import ConfigError, DataError

SHOP = Path(__file__).parents[1] / "data" / "shop"
BAD_ID, NO_TIME = b"ben,0004", b"2024-03-03T16:45:00Z"
ROW_4 = "row 4"


def edit(file, old, new):
    """Writes other bytes into a file; without old ones, the whole of it."""

    def mistake(folder):
        path = folder / file
        raw = path.read_bytes() if old else b""
        assert not old or old in raw
        path.write_bytes(raw.replace(old, new, 1) if old else new)

    return mistake


def declare(key, value):
    """Sets a dotted key of dataset.json; None removes it."""

    def mistake(folder):
        path = folder / "dataset.json"
        raw = json.loads(path.read_text())
        *parents, last = key.split(".")
        section = raw
        for name in parents:
            section = section[name]
        section.pop(last, None)
        if value is not None:
            section[last] = value
        path.write_text(json.dumps(raw))

    return mistake


def rate(threshold, *ratings):
    """Gives the events a column of ratings, `ratings` again and again, and a label."""

    def mistake(folder):
        path = folder / "events.csv"
        head, *rows = path.read_text().splitlines()
        rows = [f"{row},{ratings[place % len(ratings)]}" for place, row in enumerate(rows)]
        path.write_text("\n".join([f"{head},stars", *rows]))
        declare("events.value", "stars")(folder)
        declare("label", {"at_least": threshold})(folder)

    return mistake


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def copy(old, new):
    return lambda folder: shutil.copyfile(folder / old, folder / new)


def remove(file):
    return lambda folder: (folder / file).unlink()


# How the folder is broken -> what the message must say.
MISTAKES = {
    # dataset.json
    "no dataset.json": (remove("dataset.json"), ["dataset.json", "does not exist"]),
    "no JSON": (edit("dataset.json", b'"licence":', b'"licence"'), ["dataset.json", "line 4"]),
    "no UTF-8": (edit("dataset.json", b"Twenty", b"\xe9"), ["dataset.json", "0xe9", "UTF-8"]),
    "a list": (edit("dataset.json", b"", b"[]"), ["dataset.json", "object", "array"]),
    "unknown key": (declare("lable", {}), ["dataset.json", "'lable'", "'label'", "known"]),
    "unknown key of a table": (declare("users.colums", {}), ["'users.colums'", "'columns'"]),
    "title of users": (declare("users.title", "city"), ["'users.title'", "not a known key"]),
    "missing key": (declare("users.id", None), ["'users'", "`id`"]),
    "missing table": (declare("users", None), ["dataset.json", "`users`"]),
    "wrong type of a key": (declare("events.user", 3), ["'events.user'", "`str`", "(3)"]),
    "wrong type in a list": (declare("statistics.by", ["kinds", 3]), ["'statistics.by[1]'", "(3)"]),
    "list of columns": (declare("users.columns", ["age"]), ["'users.columns'", "(['age'])"]),
    "empty name": (declare("name", ""), ["dataset.json", "'name'"]),
    "type of a column": (declare("users.columns.age", "flaot"), ["'age'", "'flaot'", "'float'"]),
    "id among columns": (declare("users.columns.customer", "int"), ["'customer'", "leave it out"]),
    "taken column": (declare("items.columns.statistics", "int"), ["'statistics'", "rename it"]),
    "one column twice": (declare("events.item", "customer"), ["'events'", "'customer'", "twice"]),
    "repeats": (declare("repeats", "counted"), ['"count" or "ignore"', "'counted'"]),
    "label of no values": (declare("label", {"at_least": 4}), ["'label.at_least'", "events.value"]),
    "label no number": (declare("label", {"at_least": "4"}), ["'label.at_least'", "('4')"]),
    "statistic": (declare("statistics.by", ["kind"]), ["'kind'", "(name, price,", "'kinds'"]),
    "title of numbers": (declare("items.title", "price"), ["'items'", "'price'", "(name)"]),
    # files
    "no file": (remove("users.csv"), ["users.parquet or users.csv", "items.csv", '"file"']),
    "two files": (copy("users.csv", "users.parquet"), ["users.parquet or users.csv", "remove one"]),
    "misspelt file": (declare("items.file", "item.csv"), ["item.csv", "'items.csv'"]),
    "pattern of nothing": (declare("items.file", "item-*.csv"), ["item-*.csv", "items.csv"]),
    "spreadsheet": (
        lambda folder: (
            rename("items.csv", "items.xlsx")(folder),
            declare("items.file", "items.xlsx")(folder),
        ),
        ["items.xlsx", "save it as CSV"],
    ),
    "empty file": (edit("items.csv", b"", b""), ["items.csv", "name the columns"]),
    "cut off": (
        lambda folder: (
            edit("users.parquet", b"", b"PAR1 and no more")(folder),
            remove("users.csv")(folder),
        ),
        ["users.parquet (16 bytes)", "cut off", "copy or write it again"],
    ),
    "header no UTF-8": (edit("users.csv", b"city", b"cit\xe9"), ["users.csv", "UTF-8", "header"]),
    "two columns": (edit("items.csv", b"sku,name", b"sku,sku"), ["items.csv", "'sku'", "rename"]),
    "missing column": (edit("items.csv", b"name", b"nmae"), ["items.csv", "'name'", "'nmae'"]),
    "semicolons": (edit("users.csv", b"r,age,ci", b"r;age;ci"), ["r;age;city", "commas"]),
    "for Excel": (edit("users.csv", b"cust", b"sep=,\ncust"), ["users.csv", "sep=", "first line"]),
    "no rows": (
        edit("users.csv", b"", b"customer,age,city,interests\n\n\n"),
        ["users.csv has no rows", "add some"],
    ),
    "blank lines": (edit("users.csv", b"", b"\n\n\n"), ["users.csv", "must name the columns"]),
    # rows
    "too many values": (edit("items.csv", b"Teapot", b"Tea,pot"), ["items.csv", "row 5", "quotes"]),
    "too few values": (edit("items.csv", b"0006,", b""), ["items.csv", "row 5", "Columns: 5"]),
    "open quote": (edit("events.csv", b"dee,0004", b'dee,"0004'), ["row 9", "never closed"]),
    "invalid UTF-8": (edit("users.csv", b"Leeds", b"Le\xe9ds"), ["users.csv", "row 1", "as UTF-8"]),
    "int": (edit("users.csv", b"51", b"old"), ["'age'", "row 1", "'old' is not a whole number"]),
    "bool": (edit("items.csv", b"false", b"gone"), ["'in_stock'", "'gone' is not true or false"]),
    "list": (edit("users.csv", b"coffee|", b"||"), ["'interests'", "'||travel'", "'|' between"]),
    "printed list": (edit("users.csv", b"tea", b"['tea']"), ["'['tea']'", "without brackets"]),
    "same id": (edit("users.csv", b"dee", b"ana"), ["'customer'", "'ana' stands in row 0"]),
    "no id": (edit("events.csv", BAD_ID, b",0004"), ["events.csv", ROW_4, "is missing"]),
    "no time": (edit("events.csv", NO_TIME, b""), ["'bought_at'", ROW_4, "is missing"]),
    "time as text": (edit("events.csv", NO_TIME, b"soon"), ["'soon'", ROW_4, "ISO 8601"]),
    "milliseconds": (edit("events.csv", NO_TIME, b"1709484300000"), [ROW_4, "divide by 1000"]),
    "unknown item": (edit("events.csv", BAD_ID, b"ben,99"), ["'sku'", "'99' is not in the items"]),
    "unknown user": (edit("events.csv", BAD_ID, b"eve,4"), ["'eve' is not in the users table"]),
    "id as a float": (
        edit("items.csv", b"0006,Tea", b"0006.0,Tea"),
        ["'0006' is not in the items table", "as a float"],
    ),
    "no value": (rate(4, 5, ""), ["'stars'", "row 1", "is missing"]),
    "NaN": (rate(4, 5, "nan"), ["'stars'", "row 1", "'nan' is not a finite"]),
    "value no number": (rate(4, 5, "good"), ["'stars'", "row 1", "'good' is not a finite number"]),
}
# These are said by `check` and by what comes after reading.
MISTAKES_OF_TEMPLATES = {
    "unknown field": (declare("template.item", "{nmae}"), ["item", "{nmae}", "'name'"]),
    "open bracket": (declare("template.item", "[{name}"), ["'['", "never closed"]),
    "statistic that may be missing": (
        declare("template.candidate", "{name} {item_count}"),
        ["'candidate'", "{item_count}", "optional clause"],
    ),
    "unknown split": (
        declare("splits.mine", {"kind": "leave_two_out"}),
        ["leave_two_out", "leave_one_out"],
    ),
    "one label": (rate(1, 2, 3), ["positive", "label.at_least = 1", "leave `label` out"]),
}


def read(folder, name):
    Dataset.open(folder).events()


def prepared(folder, name):
    split = "mine" if name == "unknown split" else "leave_one_out"
    prepare(folder, folder.with_name("out"), split)


@pytest.mark.parametrize(
    ("use", "name"),
    [(read, name) for name in MISTAKES] + [(prepared, name) for name in MISTAKES_OF_TEMPLATES],
)
def test_checking_and_using_say_what_is_wrong(tmp_path, use, name):
    mistake, words = (MISTAKES | MISTAKES_OF_TEMPLATES)[name]
    shutil.copytree(SHOP, folder := tmp_path / "shop")
    mistake(folder)
    report = check_dataset(folder)
    assert not report.ok
    with pytest.raises(DataError if use is read else (ConfigError, DataError)) as error:
        use(folder, name)
    for word in words:
        assert word in str(error.value)
        # A report names rows apart: "2 rows (1, 3)".
        assert word in report.render() or (use is read and word.startswith("row ")), report.render()
