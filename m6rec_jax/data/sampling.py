"""`m6rec data sample`: a smaller data set folder, of some users and the items they met often."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
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
from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.data.splits import PART_NAMES
from m6rec_jax.data.template_needs import TemplateNeeds
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.progress import progress_bar

log = logging.getLogger(__name__)

_USERS, _ITEMS, _EVENTS = "users.parquet", "items.parquet", "events.parquet"


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

    First users and items with too few events are left out until none is left (a k-core). Then some
    of the users are drawn, and with them alone the same is done again. Events of too small a value
    are left out before. Whether a user is drawn depends on their id and the seed alone.

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
    defaults = {"min_value": None, "value_scale": 1.0}
    given = {"min_value": min_value, "value_scale": value_scale}
    changed = {name: value for name, value in given.items() if value != defaults[name]}
    if changed and dataset.spec.events.value is None:
        raise ConfigError(
            f"sample_dataset: {changed}, but the events of {dataset.directory} have no values: its "
            "dataset.json names no events.value"
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
    if there is None and (folder / SPEC_FILE).exists():
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

    def key(index: int) -> bytes:
        text = f"{seed}:{ids[index]}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=8).digest()

    return sorted(events.acting_users(), key=key)[:number]


def _write(
    events: EventTable, folder: Path, name: str, value_scale: float, made: Mapping[str, object]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dataset, spec = events.dataset, events.dataset.spec
    # Last comes dataset.json: without it the folder is no data set.
    (folder / SPEC_FILE).unlink(missing_ok=True)
    acting = {"user": np.zeros(dataset.users.num_rows, bool)}
    acting["item"] = np.zeros(dataset.items.num_rows, bool)
    user_ids, item_ids = dataset.users[spec.users.id], dataset.items[spec.items.id]
    if spec.events.part is not None:
        events.give_parts(events.lookup("row", dataset.event_parts()))

    def columns(batch: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
        yield spec.events.user, user_ids.take(batch["user"])
        yield spec.events.item, item_ids.take(batch["item"])
        yield spec.events.time, batch["time"]
        if spec.events.value is not None:
            yield spec.events.value, pc.multiply(batch["value"], value_scale)
        if spec.events.part is not None:
            yield spec.events.part, pa.array(np.asarray([*PART_NAMES])[batch["part"]])

    num_events = 0
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for batch in events.ordered("row"):
            num_events += batch.num_rows
            for key, mask in acting.items():
                mask[batch[key]] = True
            table = pa.table(dict(columns(batch)))
            writer = writer or stack.enter_context(
                pq.ParquetWriter(folder / _EVENTS, table.schema, compression="zstd")
            )
            writer.write_table(table)
    tables = {"user": (_USERS, dataset.users), "item": (_ITEMS, dataset.items)}
    for key, (file, table) in tables.items():
        pq.write_table(table.filter(pa.array(acting[key])), folder / file, compression="zstd")
    num_users, num_items = (int(mask.sum()) for mask in acting.values())
    counted = f"{num_users:,} users, {num_items:,} items and {num_events:,} events"
    label, template = spec.label, dict(spec.template)
    if label.at_least is not None:
        label = dataclasses.replace(label, at_least=label.at_least * value_scale)
    if "outcomes" in template:
        template["outcomes"] = [
            o | ({"at_least": o["at_least"] * value_scale} if "at_least" in o else {})
            for o in template["outcomes"]
        ]
    dataclasses.replace(
        spec,
        name=name,
        users=dataclasses.replace(spec.users, file=_USERS),
        items=dataclasses.replace(spec.items, file=_ITEMS),
        events=dataclasses.replace(spec.events, file=_EVENTS),
        label=label,
        template=template,
        description=f"A sample of {spec.name}: {counted}",
        provenance={**spec.provenance, "sample": dict(made)},
    ).save(folder)
    log.info("%s: %s", folder, counted)


def _made_of(folder: Path) -> object:
    try:
        return Dataset.open(folder).spec.provenance.get("sample")
    except DataError:
        return None
