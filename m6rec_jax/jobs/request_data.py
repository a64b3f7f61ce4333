"""The data that requests of a task are rendered with: columns, template, catalogue, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m6rec_jax.data.getting.sources import default_data_dir
from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.engine.model_folder import DATASETS_FOLDER
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import kept_copy, path_of
from m6rec_jax.requests.serving_data import ServingData, prepared_dataset_spec


def open_serving_data(
    model: LoadedModel,
    task: str = "",
    prepared: str | None = None,
    items: str | None = None,
    *,
    with_statistics: bool = True,
    any_data_set: bool = False,
) -> ServingData:
    """Catalogue and statistics for a task of a model.

    Args:
      model: of the model.
      task: name; there is no need to name the only one.
      prepared: folder with the catalogue and the statistics; None: what the task was trained on, in
        the model's own data or the data folder; '': neither, requests bring all of it.
      items: Parquet or CSV file of a newer catalogue.
      with_statistics: see `ServingData.open`.
      any_data_set: whether `prepared` may be of a data set that the task was not trained on; its
        own columns and template are then used.

    Raises:
      ConfigError: no such task, one whose requests have another form, or the model folder does not
        say which data it was trained on.
      DataError: the data are missing or damaged.
    """
    task = task_name(model.settings.tasks, task)
    own = model.settings.tasks[task].prepared
    spec = dataset_spec_of(model, task, prepared, any_data_set)
    if spec is None:
        raise ConfigError(
            f"'{task}' was trained on no data set of users, items and events (there is no "
            f"inference/{DATASETS_FOLDER}/{own or 'NAME'}.json in the model folder, or no "
            "dataset.json with the task of a bank), so nothing renders its requests"
        )
    if prepared is None:
        if not own:
            raise ConfigError(
                f"the model folder does not say which prepared data '{task}' was trained on; name "
                "them with --gin.PREPARED=FOLDER, or --gin.PREPARED=\"''\" where requests bring all"
            )
        folder: Path | None = kept_copy((model.data_dir or default_data_dir()) / own)
    else:
        folder = _folder_of(prepared)
    file = None if items is None else Path(items).expanduser()
    return ServingData.open(spec, folder, file, with_statistics=with_statistics)


def dataset_spec_of(
    model: LoadedModel, task: str, prepared: str | None, any_data_set: bool
) -> Mapping[str, Any] | None:
    """What `dataset.json` says of the data that a task's requests are rendered with, if anything.

    Arguments as `open_serving_data`.

    Raises:
      DataError: the data are missing or damaged.
      ConfigError: they are of another kind than users, items and events.
    """
    folder = _folder_of(prepared) if prepared else None
    own = model.settings.tasks[task].prepared
    if folder is not None and (any_data_set or not own):
        known, there = model.dataset_spec(task), prepared_dataset_spec(folder)
        # Rendered as in training, where the model was trained on this data set.
        if known is not None and known.get("name") == there.get("name"):
            return known
        if any_data_set:
            return there
    return model.dataset_spec(task)


def _folder_of(prepared: str) -> Path | None:
    return kept_copy(path_of(prepared).expanduser()) if prepared else None
