"""`m6rec data sample`: a smaller data set folder, of some users and the items they met often."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m6rec_jax.data.event_table import EventTable
from m6rec_jax.data.prepared import fingerprint
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.schema import SPEC_FILE, LabelSpec
from m6rec_jax.data.splits import PART_NAMES
from m6rec_jax.data.template_needs import TemplateNeeds
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.progress import progress_bar

log = logging.getLogger(__name__)

_FILES = ("users.parquet", "items.parquet", "events.parquet")


@gin.configurable
def sample_dataset(
    dataset_dir: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    name: str | None = None,
    users: int | None = None,
    min_user_events: int = 1,
    min_item_events: int = 1,
    min_value: float | None = None,
    value_scale: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes a data set folder with a part of another one's users, items and events.

    First everything is left out that is too rare: users and items with too few events, over and
    over until none is left (what is called a k-core). Then some of the users are drawn, and with
    them alone the same is done again. Events of too small a value count for nothing in this.
    Whether a user is drawn depends on their id and the seed, not on the order of the tables.

    Events lie in a database on disk meanwhile; in memory are the tables of users and items, and
    one byte per event.

    Args:
      dataset_dir: the folder to draw from.
      out: where the new folder goes, under its name.
      name: of the new data set; None: the old name with `-small` at its end.
      users: how many users are drawn; None: all.
      min_user_events: events of a user, at least.
      min_item_events: events of an item, at least.
      min_value: value of an event, at least, such as 1 where 0 means that none was given;
        None: any.
      value_scale: what values are multiplied by, and with them the one from which an event is a
        like and those of the template's outcomes, so that data sets share a scale.
      seed: of the draw.
      progress: whether to show a bar.

    Returns:
      the new folder: three Parquet files and `dataset.json`, whose provenance says how it was made.
      If it is there already, made in the same way from the same data, it is left alone.

    Raises:
      DataError: something is wrong with the folder, an event is there twice, nothing would be
        left, or there is no room on the disk.
      ConfigError: an impossible number, something about values where events have none, a template
        that does not fit, or the new folder has a data set that is no sample.
    """
    for option, value in (
        ("users", users),
        ("min_user_events", min_user_events),
        ("min_item_events", min_item_events),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"sample_dataset.{option} = {value} must be at least 1")
    if not 0 < value_scale < math.inf:
        raise ConfigError(f"sample_dataset.value_scale = {value_scale} must be above 0")
    dataset = Dataset.open(dataset_dir)
    name = name or f"{dataset.spec.name}-small"
    if name == dataset.spec.name:
        raise ConfigError(f"sample_dataset.name = {name!r} is the name of the data set itself")
    folder = Path(out) / name
    if folder.resolve() == Path(dataset_dir).resolve():
        raise ConfigError(
            f"sample_dataset.name = {name!r} is the folder of the data set itself, {folder}"
        )
    of_values = {"min_value": (min_value, None), "value_scale": (value_scale, 1.0)}
    changed = {name: given for name, (given, unset) in of_values.items() if given != unset}
    if changed and dataset.spec.events.value is None:
        given_text = ", ".join(
            f"sample_dataset.{name} = {given}" for name, given in changed.items()
        )
        raise ConfigError(
            f"{given_text}, but the events of {dataset.directory} have no "
            "values: its dataset.json names no events.value"
        )
    # Told before anything is read: outcomes of the template are scaled, too.
    TemplateNeeds.of(dataset.spec, str(dataset.directory / SPEC_FILE))
    tables = (*dataset.user_files, *dataset.item_files, *dataset.event_files)
    made = {
        "from": dataset.spec.name,
        "fingerprint": fingerprint(files=(dataset.directory / SPEC_FILE, *tables)),
        "users": users,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "seed": seed,
        # Not named where unset: samples of before these options are the same.
        **changed,
    }
    if (there := _made_of(folder)) == made:
        log.info("%s is there already", folder)
        return folder
    if there is None and (folder / "dataset.json").exists():
        raise ConfigError(
            f"{folder} is a data set that was not made by sampling; it stays as it is. Give "
            "another sample_dataset.name"
        )
    with (
        tempfile.TemporaryDirectory(prefix="m6rec-events-") as scratch,
        EventTable(dataset, Path(scratch) / "table") as events,
    ):
        if min_value is not None:
            events.leave_out("value < ?", [min_value])
        _leave_out_rare(events, min_user_events, min_item_events, progress)
        if users is not None:
            events.leave_out("user NOT IN (SELECT unnest(?))", [_drawn(events, users, seed)])
            _leave_out_rare(events, min_user_events, min_item_events, progress)
        if not events.acting_users():
            raise DataError(
                f"{dataset.directory}: nothing is left of {events.num_rows:,} events with "
                f"min_user_events={min_user_events}, min_item_events={min_item_events}, "
                f"min_value={min_value}, users={users}; lower them"
            )
        _write(events, folder, name, value_scale, made)
    return folder


def _leave_out_rare(events: EventTable, of_user: int, of_item: int, progress: bool) -> None:
    """Leaves out users and items with too few events, until that changes nothing."""
    rare = (
        f"user IN (SELECT user FROM events GROUP BY user HAVING count(*) < {of_user}) OR "
        f"item IN (SELECT item FROM events GROUP BY item HAVING count(*) < {of_item})"
    )
    title = "leaving out what is rare"
    with progress_bar(desc=title, unit=" passes", disable=not progress) as bar:
        while events.leave_out(rare):
            bar.update()


def _drawn(events: EventTable, number: int, seed: int) -> list[int]:
    """Indices of so many of the users that have events, or of all where there are fewer."""
    ids = events.dataset.users.column(events.dataset.spec.users.id).to_pylist()
    return sorted(events.acting_users(), key=lambda index: _hash(f"{seed}:{ids[index]}"))[:number]


def _write(
    events: EventTable, folder: Path, name: str, value_scale: float, made: Mapping[str, object]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dataset, spec = events.dataset, events.dataset.spec
    # Last comes dataset.json: without it the folder is no data set.
    (folder / "dataset.json").unlink(missing_ok=True)
    # Of those that have events.
    users, items = np.zeros(dataset.users.num_rows, bool), np.zeros(dataset.items.num_rows, bool)
    user_ids, item_ids = dataset.users[spec.users.id], dataset.items[spec.items.id]
    codes = np.zeros(events.num_rows, np.int8)
    if spec.events.part is not None:
        codes = dataset.event_parts()
    num_events = 0
    writer: pq.ParquetWriter | None = None
    for batch in events.known(codes, "row"):
        num_events += batch.num_rows
        users[batch["user"]] = items[batch["item"]] = True
        columns = {
            spec.events.user: user_ids.take(batch["user"]),
            spec.events.item: item_ids.take(batch["item"]),
            spec.events.time: batch["time"],
        }
        if spec.events.value is not None:
            columns[spec.events.value] = pc.multiply(batch["value"], value_scale)
        if spec.events.part is not None:
            columns[spec.events.part] = pa.array(np.asarray([*PART_NAMES])[batch["part"]])
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(folder / _FILES[2], table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    for file, table, mask in (
        (_FILES[0], dataset.users, users),
        (_FILES[1], dataset.items, items),
    ):
        pq.write_table(table.filter(pa.array(mask)), folder / file, compression="zstd")
    counts = (int(users.sum()), int(items.sum()), num_events)
    counted = "{:,} users, {:,} items and {:,} events".format(*counts)
    dataclasses.replace(
        spec,
        name=name,
        users=dataclasses.replace(spec.users, file=_FILES[0]),
        items=dataclasses.replace(spec.items, file=_FILES[1]),
        events=dataclasses.replace(spec.events, file=_FILES[2]),
        label=_scaled_label(spec.label, value_scale),
        template=_scaled_outcomes(spec.template, value_scale),
        description=f"A sample of {spec.name}: {counted}",
        provenance={**spec.provenance, "sample": dict(made)},
    ).save(folder)
    log.info("%s: %s", folder, counted)


def _scaled_label(label: LabelSpec, scale: float) -> LabelSpec:
    if label.at_least is None or scale == 1:
        return label
    return dataclasses.replace(label, at_least=label.at_least * scale)


def _scaled_outcomes(template: Mapping[str, Any], scale: float) -> Mapping[str, Any]:
    if scale == 1 or "outcomes" not in template:
        return template
    outcomes = [
        {**outcome, "at_least": outcome["at_least"] * scale} if "at_least" in outcome else outcome
        for outcome in template["outcomes"]
    ]
    return {**template, "outcomes": outcomes}


def _made_of(folder: Path) -> object:
    try:
        return Dataset.open(folder).spec.provenance.get("sample")
    except DataError:
        return None


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
