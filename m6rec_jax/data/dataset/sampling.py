"""`m6rec data sample`: a smaller data set folder, of some users and the items they met often."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from pathlib import Path

import gin

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import SPEC_FILE, DatasetSpec, LabelSpec
from m6rec_jax.data.dataset.tables import Tables
from m6rec_jax.data.rendering.template_needs import TemplateNeeds
from m6rec_jax.data.store.manifest import fingerprint
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import replaced_folder

log = logging.getLogger(__name__)


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
) -> Path:
    """Writes a data set folder with a part of another one's users, items and events.

    First users and items with too few events are left out until none is left (a k-core). Then some
    of the users are drawn, and with them alone the same is done again. Events of too small a value
    are left out before. Whether a user is drawn depends on their id and the seed alone. A folder
    that was made in the same way from the same data is left alone.

    Args:
      dataset_dir, out: the folder to draw from; where the new one, which is returned, goes by name.
      name: of the new data set; None: the old name with `-small` at its end.
      users: how many users are drawn; None: all.
      min_user_events, min_item_events: of a user and of an item, at least.
      min_value: of an event, at least, such as 1 where 0 means that none was given; None: any.
      value_scale: what values are multiplied by, and with them the label's and the outcomes'
        bounds, so that data sets share a scale.
      seed: of the draw.

    Raises:
      DataError: something is wrong with the folder, or nothing would be left.
      ConfigError: an impossible number, or the new folder has a data set that is no sample.
    """
    options = {
        "users": users,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "min_value": min_value,
        "value_scale": value_scale,
        "seed": seed,
    }
    counts = (min_user_events, min_item_events, 1 if users is None else users)
    if min(counts) < 1 or not 0 < value_scale < math.inf:
        raise ConfigError(
            f"sample_dataset: {options}: counts must be at least 1, the scale above 0"
        )
    dataset = Dataset.open(dataset_dir)
    spec = dataset.spec
    TemplateNeeds.of(spec, str(dataset.directory / SPEC_FILE))  # raises
    if (min_value is not None or value_scale != 1) and spec.events.value is None:
        raise ConfigError(
            f"sample_dataset.min_value = {min_value} and value_scale = {value_scale}, but the "
            f"events of {dataset.directory} have no values: its {SPEC_FILE} names no events.value"
        )
    name = name or f"{spec.name}-small"
    folder = Path(out) / name
    tables_read = (*dataset.user_files, *dataset.item_files, *dataset.event_files)
    read = fingerprint(files=(dataset.directory / SPEC_FILE, *tables_read))
    made = {"from": spec.name, "fingerprint": read, **options}
    if (folder / SPEC_FILE).exists():
        there = DatasetSpec.load(folder).provenance.get("sample")
        if there == made:
            log.info("%s is there already", folder)
            return folder
        if there is None or name == spec.name:
            raise ConfigError(
                f"{folder} is a data set that was not made by sampling; it stays as it is. Give "
                f"another sample_dataset.name than {name!r}"
            )
    # Rows of users and items with too few events.
    rare = " OR ".join(
        f"{one} IN (SELECT {one} FROM events GROUP BY {one} HAVING count(*) < {least})"
        for one, least in (("user", min_user_events), ("item", min_item_events))
    )
    with Tables(dataset.directory) as tables:
        dataset.read(tables)
        if min_value is not None:
            tables.rows("DELETE FROM events WHERE value < ?", [min_value])
        _delete_all(tables, rare)
        if users is not None:
            ids = [user for (user,) in tables.rows("SELECT DISTINCT user FROM events")]
            drawn = sorted(ids, key=lambda user: _draw(user, seed))[:users]
            tables.rows("DELETE FROM events WHERE user NOT IN (SELECT unnest(?))", [drawn])
            _delete_all(tables, rare)
        if not tables.rows("FROM events LIMIT 1"):
            raise DataError(
                f"{dataset.directory}: nothing is left of {tables.num_rows['events']:,} events "
                f"with {options}; lower some of them"
            )
        tables.rows("DELETE FROM users WHERE id NOT IN (SELECT user FROM events)")
        tables.rows("DELETE FROM items WHERE id NOT IN (SELECT item FROM events)")
        if value_scale != 1:
            tables.rows("UPDATE events SET value = value * ?", [value_scale])
            spec = _scaled(spec, value_scale)
        provenance = {**spec.provenance, "sample": made}
        changed = {"name": name, "description": f"A sample of {spec.name}"}
        with replaced_folder(folder) as written:
            tables.write(spec, written, provenance=provenance, **changed)
    return folder


def _delete_all(tables: Tables, where: str) -> None:
    """Deletes events for which a condition holds until there are none."""
    while tables.rows(f"DELETE FROM events WHERE {where}") != [(0,)]:
        pass


def _draw(user: str, seed: int) -> bytes:
    """A number of a user for a seed, by which users are drawn."""
    text = f"{seed}:{user}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest()


def _scaled(spec: DatasetSpec, scale: float) -> DatasetSpec:
    """A data set of values that are so many times as high."""
    label, template = spec.label, dict(spec.template)
    if label.at_least is not None:
        label = LabelSpec(label.at_least * scale)
    if "outcomes" in template:
        template["outcomes"] = [
            one | {"at_least": one["at_least"] * scale} if "at_least" in one else one
            for one in template["outcomes"]
        ]
    return dataclasses.replace(spec, label=label, template=template)
