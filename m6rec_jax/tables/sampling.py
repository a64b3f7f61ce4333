"""`m6rec data sample`: a smaller data set folder, of some users and the items they met often."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.progress import progress_bar
from m6rec_jax.tables.preparation import dataset_fingerprint
from m6rec_jax.tables.reading import Dataset

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
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes a data set folder with a part of another one's users, items and events.

    First everything is left out that is too rare: users and items with too few events, over and
    over until none is left (what is called a k-core). Then some of the users are drawn, and with
    them alone the same is done again. Whether a user is drawn depends on their id and the seed,
    not on the order of the tables.

    Events are streamed, several times over; in memory are the tables of users and items, and one
    byte per event.

    Args:
      dataset_dir: the folder to draw from.
      out: where the new folder goes, under its name.
      name: of the new data set; None: the old name with `-small` at its end.
      users: how many users are drawn; None: all.
      min_user_events: events of a user, at least.
      min_item_events: events of an item, at least.
      seed: of the draw.
      progress: whether to show a bar.

    Returns:
      the new folder: three Parquet files and `dataset.json`, whose provenance says how it was made.
      If it is there already, made in the same way from the same data, it is left alone.

    Raises:
      DataError: something is wrong with the folder, or nothing would be left.
      ConfigError: an impossible number.
    """
    for option, value in (
        ("users", users),
        ("min_user_events", min_user_events),
        ("min_item_events", min_item_events),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"sample_dataset.{option} = {value} must be at least 1")
    dataset = Dataset.open(dataset_dir)
    name = name or f"{dataset.spec.name}-small"
    if name == dataset.spec.name:
        raise ConfigError(f"sample_dataset.name = {name!r} is the name of the data set itself")
    folder = Path(out) / name
    made = {
        "from": dataset.spec.name,
        "fingerprint": dataset_fingerprint(dataset),
        "users": users,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "seed": seed,
    }
    if _made_of(folder) == made:
        log.info("%s is there already", folder)
        return folder
    sampler = _Sampler(dataset, min_user_events, min_item_events, progress)
    sampler.leave_out_rare()
    if users is not None:
        sampler.draw_users(users, seed)
        sampler.leave_out_rare()
    if not sampler.kept.any():
        raise DataError(
            f"{dataset.directory}: nothing is left of {len(sampler.kept):,} events with "
            f"min_user_events={min_user_events}, min_item_events={min_item_events}, users={users}; "
            "lower them"
        )
    _write(dataset, sampler, folder, name, made)
    return folder


class _Sampler:
    """Which users, items and events are kept.

    Attributes:
      users, items: bool, in the order of their tables.
      kept: bool `[events]`, in the order of the events table.
    """

    def __init__(
        self, dataset: Dataset, min_user_events: int, min_item_events: int, progress: bool
    ) -> None:
        self._dataset = dataset
        self._least = (min_user_events, min_item_events)
        self._progress = progress
        self.users = np.ones(dataset.users().num_rows, bool)
        self.items = np.ones(dataset.items().num_rows, bool)
        self.kept = np.zeros(0, bool)

    def leave_out_rare(self) -> None:
        """Leaves out users and items with too few events, until that changes nothing."""
        title = "leaving out what is rare"
        with progress_bar(desc=title, unit=" passes", disable=not self._progress) as bar:
            while True:
                counts = self._count()
                bar.update()
                enough = [c >= least for c, least in zip(counts, self._least, strict=True)]
                if (enough[0] == self.users).all() and (enough[1] == self.items).all():
                    return
                self.users &= enough[0]
                self.items &= enough[1]

    def draw_users(self, number: int, seed: int) -> None:
        """Keeps `number` of the users that are left, or all where there are fewer."""
        places = np.flatnonzero(self.users)
        ids = self._dataset.users().column(self._dataset.spec.users.id).to_pylist()
        drawn = sorted(places.tolist(), key=lambda place: _hash(f"{seed}:{ids[place]}"))[:number]
        self.users[:] = False
        self.users[drawn] = True

    def _count(self) -> tuple[np.ndarray, np.ndarray]:
        """Events of every user and item, counting those of which both are kept."""
        users, items = np.zeros(len(self.users), np.int64), np.zeros(len(self.items), np.int64)
        kept = []
        for batch in self._dataset.iter_events(with_ids=False):
            of_user = batch.column("user_index").to_numpy()
            of_item = batch.column("item_index").to_numpy()
            both = self.users[of_user] & self.items[of_item]
            kept.append(both)
            users += np.bincount(of_user[both], minlength=len(users))
            items += np.bincount(of_item[both], minlength=len(items))
        self.kept = np.concatenate(kept)
        return users, items


def _write(
    dataset: Dataset, sampler: _Sampler, folder: Path, name: str, made: Mapping[str, object]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec = dataset.spec
    # Last comes dataset.json: without it the folder is no data set.
    (folder / "dataset.json").unlink(missing_ok=True)
    for file, table, mask in (
        (_FILES[0], dataset.users(), sampler.users),
        (_FILES[1], dataset.items(), sampler.items),
    ):
        pq.write_table(table.filter(pa.array(mask)), folder / file, compression="zstd")
    names = {spec.events.user: "user_id", spec.events.item: "item_id", spec.events.time: "time"}
    if spec.events.value is not None:
        names[spec.events.value] = "value"
    writer: pq.ParquetWriter | None = None
    first = 0
    for batch in dataset.iter_events():
        mask = pa.array(sampler.kept[first : first + batch.num_rows])
        first += batch.num_rows
        part = pa.table({new: batch.column(old) for new, old in names.items()}).filter(mask)
        if writer is None:
            writer = pq.ParquetWriter(folder / _FILES[2], part.schema, compression="zstd")
        writer.write_table(part)
    assert writer is not None
    writer.close()
    counts = (int(sampler.users.sum()), int(sampler.items.sum()), int(sampler.kept.sum()))
    told = "{:,} users, {:,} items and {:,} events".format(*counts)
    dataclasses.replace(
        spec,
        name=name,
        users=dataclasses.replace(spec.users, file=_FILES[0]),
        items=dataclasses.replace(spec.items, file=_FILES[1]),
        events=dataclasses.replace(spec.events, file=_FILES[2]),
        description=f"A sample of {spec.name}: {told}",
        provenance={**spec.provenance, "sample": dict(made)},
    ).save(folder)
    log.info("%s: %s", folder, told)


def _made_of(folder: Path) -> object:
    try:
        return Dataset.open(folder).spec.provenance.get("sample")
    except DataError:
        return None


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
