"""The data that the requests of a task are told with: columns, template, catalogue, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m6rec_jax.data.sources import default_cache_dir
from m6rec_jax.engine.bundle import DATASETS_FOLDER, Bundle
from m6rec_jax.engine.task_settings import dialogue_part, task_name
from m6rec_jax.errors import ConfigError
from m6rec_jax.requests.serving_data import ServingData, prepared_dataset_spec


def open_serving_data(
    bundle: Bundle,
    task: str = "",
    prepared: str | None = None,
    items: str | None = None,
    *,
    with_statistics: bool = True,
    any_data_set: bool = False,
) -> ServingData:
    """Catalogue and statistics for a task of a model.

    Args:
      bundle: of the model.
      task: name; there is no need to name the only one.
      prepared: folder with the catalogue and the statistics; None: what the task was trained on, in
        the data folder; '': neither, requests bring all of it.
      items: Parquet or CSV file of a newer catalogue.
      with_statistics: see `ServingData.open`.
      any_data_set: whether `prepared` may be of a data set that the task was not trained on; its
        own columns and template are then used.

    Raises:
      ConfigError: no such task, one whose requests have another form, or the model folder does not
        say which data it was trained on.
      DataError: the data are missing or damaged.
    """
    task = task_name(bundle.settings.tasks, task)
    folder = Path(prepared).expanduser() if prepared else None
    own = bundle.settings.tasks[task].prepared
    spec = _spec(bundle, task, folder, any_data_set)
    if spec is None:
        raise ConfigError(_without_data_set(bundle, task))
    if prepared is None:
        if not own:
            raise ConfigError(
                f"the model folder does not say which prepared data '{task}' was trained on; name "
                "them with --gin.PREPARED=FOLDER, or --gin.PREPARED=\"''\" where requests bring all"
            )
        folder = default_cache_dir() / own
    file = None if items is None else Path(items).expanduser()
    return ServingData.open(spec, folder, file, with_statistics=with_statistics)


def refuse_dialogues(bundle: Bundle, task: str = "") -> None:
    """Raises ConfigError for a task of dialogues, and where there is no such task."""
    task = task_name(bundle.settings.tasks, task)
    part = dialogue_part(bundle.settings.tasks[task])
    if part:
        raise ConfigError(
            f"'{task}' is a task of dialogues ({part}), for which there is no job of requests: it "
            "reads turns, not behaviours. `m6rec chat --gin.MODEL_DIR=...` talks with the model, "
            "and needs no index"
        )


def _spec(
    bundle: Bundle, task: str, folder: Path | None, any_data_set: bool
) -> Mapping[str, Any] | None:
    own = bundle.settings.tasks[task].prepared
    if folder is not None and (any_data_set or not own):
        known, there = bundle.saved_dataset_spec(task), prepared_dataset_spec(folder)
        # Told as in training, where the model was trained on this data set.
        if known is not None and known.get("name") == there.get("name"):
            return known
        if any_data_set:
            return there
    return bundle.dataset_spec(task)


def _without_data_set(bundle: Bundle, task: str) -> str:
    others = [name for name in bundle.settings.tasks if bundle.saved_dataset_spec(name)]
    own = bundle.settings.tasks[task].prepared
    return (
        f"'{task}' was trained on no data set of users, items and events (there is no "
        f"inference/{DATASETS_FOLDER}/{own or 'NAME'}.json in the model folder, or no dataset.json "
        "with the task of a bank), so nothing is known of the columns "
        "and the template of its requests; tasks of the model that have one: "
        f"{', '.join(sorted(others)) or 'none'}"
    )
