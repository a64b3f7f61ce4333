"""`m6rec data import`: files of another format become a data set folder with a drafted template.

Readers are `atomic_files` and `sequences`; another format is one more function in `FORMATS`. Events
are streamed; in memory are the tables of users and items.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from m6rec_jax.data.columns import ID, TIME, VALUE, arrow_schema
from m6rec_jax.data.draft import (
    NOT_USED,
    drafted_template,
    positives,
    text_columns,
    title_column,
    without_taken,
)
from m6rec_jax.data.imports.atomic_files import read_atomic_files
from m6rec_jax.data.imports.lines import Report
from m6rec_jax.data.imports.records import (
    ITEM,
    LINE,
    POSITION,
    RATING,
    TIMESTAMP,
    USER,
    Imported,
)
from m6rec_jax.data.imports.sequences import read_sequences
from m6rec_jax.data.key_table import key_table
from m6rec_jax.data.schema import DatasetSpec, EventsSpec, ItemsSpec, LabelSpec, TableSpec
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import check_new, new_folder
from m6rec_jax.io.closest import did_you_mean

FORMATS: Mapping[str, Callable[[Path, Report], Imported]] = {
    "recbole": read_atomic_files,
    "sequences": read_sequences,
}
FILES = {"users": "users.parquet", "items": "items.parquet", "events": "events.parquet"}
# So many distinct ratings are counted to choose a threshold.
_MOST_RATINGS = 10_000


def import_dataset(
    format_name: str,
    source: Path,
    output: Path,
    *,
    name: str | None = None,
    at_least: float | None = None,
) -> list[str]:
    """Reads `source` and writes a data set folder that `m6rec data check` accepts.

    Items without text are left out, and events with items that are left out or unknown, or that
    are there twice; all that is left out is counted. Nothing is there under `output` until all of
    it is.

    Args:
      format_name: one of `FORMATS`.
      source: a folder in that format.
      output: a new folder.
      name: of the data set; None: what the source is called.
      at_least: from which rating an event is a positive; None: the rating that divides the events
        most evenly.

    Returns:
      lines for the user: what was written, decided and left out.

    Raises:
      ConfigError: no such format, or a threshold that divides nothing.
      DataError: a file is missing or a line of it is wrong.
      CheckpointError: `output` is there already, or cannot be written.
    """
    reader = FORMATS.get(format_name)
    if reader is None:
        raise ConfigError(
            f"there is no format {format_name!r}{did_you_mean(format_name, FORMATS)} "
            f"(known: {', '.join(FORMATS)})"
        )
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the one that holds the files")
    check_new(output)
    report = Report()
    imported = reader(source, report)
    with new_folder(output) as folder:
        counts, spec = _write(imported, folder, report, name, at_least)
        spec.save(folder)
    sizes = ", ".join(f"{count:,} {table}" for table, count in counts.items())
    return [f"{spec.name}: {sizes} in {output}", *report.render()]


def _write(
    imported: Imported, folder: Path, report: Report, name: str | None, at_least: float | None
) -> tuple[dict[str, int], DatasetSpec]:
    """Writes the three tables; their sizes, and what describes them."""
    items = imported.items
    item_columns = without_taken(imported.item_columns, of_items=True)
    user_columns = without_taken(imported.user_columns)
    given = {**imported.item_columns, **imported.user_columns}
    if taken := given.keys() - {**item_columns, **user_columns}:
        report.notes.append(f"{NOT_USED}: {', '.join(sorted(taken))}")
    values = {name: items[name].to_pylist() for name in item_columns}
    texts = text_columns(item_columns, imported.item_file, values)
    silent = np.logical_not(_says(items[texts[0]]))
    report.count(
        f"items without {texts[0]!r}, left out",
        imported.item_file,
        items[LINE].to_numpy()[silent],
    )
    items = items.filter(pa.array(~silent)).drop_columns([LINE])
    pq.write_table(items, folder / FILES["items"], compression="zstd")
    users, num_events, ratings = _write_events(imported, items[ITEM], folder, report)
    num_users = _write_users(imported, users, folder, report)
    threshold = None
    if imported.has_ratings:
        threshold, told = positives(ratings, at_least)
        report.notes.append(told)
    elif at_least is not None:
        raise ConfigError(f"{imported.event_file} has no ratings that a threshold could divide")
    when = TIMESTAMP if imported.has_times else POSITION
    provenance = {
        "format": "m6rec data import",
        "files": [imported.event_file.name, imported.item_file.name],
        "notes": report.render(),
    }
    if not imported.has_times:
        provenance["times"] = (
            f"There are none. '{POSITION}' is {imported.order}, so that splits and histories keep "
            "the order; templates must not name {ago}, {weekday}, or the like"
        )
        report.notes.append(f"no times: {POSITION!r} is {imported.order}; the template names none")
    spec = DatasetSpec(
        name=name or imported.name,
        users=TableSpec(USER, user_columns, FILES["users"]),
        items=ItemsSpec(ITEM, item_columns, FILES["items"], title_column(texts, values)),
        events=EventsSpec(USER, ITEM, when, None if threshold is None else RATING, FILES["events"]),
        label=LabelSpec(threshold),
        template=drafted_template(user_columns, texts, threshold, imported.has_times),
        provenance=provenance,
    )
    return {"users": num_users, "items": items.num_rows, "events": num_events}, spec


def _says(values: pa.ChunkedArray) -> np.ndarray:
    """Which of the values `[n]` have words."""
    if pa.types.is_list(values.type):
        says = pc.greater(pc.list_value_length(values), 0)
    else:
        says = pc.not_equal(pc.utf8_trim_whitespace(values), "")
    return says.fill_null(False).to_numpy()


def _write_events(
    imported: Imported, items: pa.ChunkedArray, folder: Path, report: Report
) -> tuple[list[str], int, Counter[float]]:
    """Writes the events of known items; their users, their number, and each rating's number."""
    kinds = {USER: ID, ITEM: ID, (TIMESTAMP if imported.has_times else POSITION): TIME}
    kinds |= {RATING: VALUE} if imported.has_ratings else {}
    schema = arrow_schema(kinds)
    users: dict[str, None] = {}
    ratings: Counter[float] = Counter()
    count = 0
    events = _of_known_items(imported, items.combine_chunks(), report)
    if imported.has_times:  # else their places tell all events apart
        events = _each_once(events, schema.append(pa.field(LINE, pa.int64())), imported, report)
    with pq.ParquetWriter(folder / FILES["events"], schema, compression="zstd") as writer:
        for batch in events:
            count += len(batch)
            users |= dict.fromkeys(pc.unique(batch[USER]).to_pylist())
            if imported.has_ratings and len(ratings) < _MOST_RATINGS:
                for pair in pc.value_counts(batch[RATING]).to_pylist():
                    ratings[pair["values"]] += pair["counts"]
            writer.write_batch(batch.select(schema.names))
    if not count:
        raise DataError(
            f"{imported.event_file} has no event with an item of {imported.item_file}: are ids "
            "written alike in both?"
        )
    return list(users), count, ratings


def _of_known_items(
    imported: Imported, known: pa.Array, report: Report
) -> Iterator[pa.RecordBatch]:
    for batch in imported.events:
        there = pc.is_in(batch[ITEM], value_set=known)
        unknown = batch.filter(pc.invert(there))
        what = "events of unknown items, or of such without text, left out"
        report.count(what, imported.event_file, unknown[LINE].to_numpy())
        yield batch.filter(there)


def _each_once(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, imported: Imported, report: Report
) -> Iterator[pa.RecordBatch]:
    """Leaves out events that equal an earlier one; all wait on disk until these are known."""
    with tempfile.TemporaryFile() as file, key_table() as keys:
        with pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.select(schema.names))
                key = {
                    "row": batch[LINE],
                    "user": batch[USER],
                    "item": batch[ITEM],
                    "time": batch[TIMESTAMP],
                    "value": batch[RATING] if imported.has_ratings else batch[TIMESTAMP],
                }
                keys.add(pa.table(key))
        keys.find_repeats()
        file.seek(0)
        for batch in pa.ipc.open_stream(file):
            if not len(batch):
                continue
            first, last = batch[LINE][0].as_py(), batch[LINE][-1].as_py()
            again = pa.array([line for line, _ in keys.repeats(first, last + 1)], pa.int64())
            what = "events that are there twice, left out"
            report.count(what, imported.event_file, again.to_numpy())
            yield batch.filter(pc.invert(pc.is_in(batch[LINE], value_set=again)))


def _write_users(imported: Imported, seen: list[str], folder: Path, report: Report) -> int:
    """Writes those of the users' file, then those of events that it lacks; returns how many."""
    users = pa.table({USER: pa.array(seen, pa.string())})
    if imported.users is not None:
        known = imported.users.drop_columns([LINE])
        users = users.filter(pc.invert(pc.is_in(users[USER], value_set=known[USER])))
        if users.num_rows:
            first = users[USER][0].as_py()
            report.notes.append(
                f"users without a row of their own: {users.num_rows:,}, first {first!r}; they "
                "have no attributes"
            )
        users = pa.concat_tables([known, users], promote_options="default")
    pq.write_table(users, folder / FILES["users"], compression="zstd")
    return users.num_rows
