"""Opens dialogues with a model: its tasks, prepared data, and what is known of the user."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from m6rec_jax.data.features.co_occurrence import FILE as CO_OCCURRENCE
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.getting.sources import default_data_dir
from m6rec_jax.data.store.prepared import CATALOGUE, Catalogue, read_catalogue
from m6rec_jax.engine.computed_folder import read_manifest
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.engine.index.index_files import INDEX_COMMAND, catalogue_fingerprint
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import kept_copy, path_of
from m6rec_jax.jobs.conversation import Conversation, UserRead
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestFields, RequestParser
from m6rec_jax.requests.serving_data import ServingData, prepared_dataset_spec
from m6rec_jax.text.format_strings import Template
from m6rec_jax.text.records import Event

logger = logging.getLogger(__name__)


def open_conversation(
    resources: Resources,
    prepared: str | None = None,
    titles: str = "",
    user: Mapping[str, Any] | None = None,
) -> Conversation:
    """A dialogue with a model.

    The model's tasks say what it can do: a task of replies, one of titles, one of retrieval; at
    least one of them (`pipeline.registration`). Without any, its one task of kind 'retrieval'
    recommends: it reads the items that are liked in the dialogue as a user's history.

    Args:
      resources: with the engines of the tasks.
      prepared: folder of prepared data with the catalogue; None: what the model was trained on.
      titles: how items of another catalogue are called, as in '{title}[ ({year})]': as the model
        was trained to write them. Empty: by the texts of the catalogue.
      user: what is known of the user, see `known_user`; None: nothing.

    Raises:
      ConfigError: a model without such tasks, or settings that do not fit the data.
      DataError: data are missing or wrong, or what is known of the user is.
    """
    tasks = conversation_tasks(resources.model)
    folder = conversation_folder(resources.model, prepared)
    if resources.options.items is not None:
        logger.warning("dialogues are about the catalogue in %s: ITEMS is not for them", folder)
    catalogue = read_catalogue(folder)
    of_dialogues = all(dialogue_part(resources.settings(task)) for task in tasks.values())
    columns, index, reranker, towers = catalogue.items[0].attributes, None, None, None
    if "retrieval" in tasks:
        towers = resources.settings(tasks["retrieval"])
        index = _catalogue_index(resources, tasks["retrieval"], catalogue)
        if (folder / CO_OCCURRENCE).is_file():
            reranker = Reranker(
                CoOccurrence.load(folder),
                Ease.load(folder),
                catalogue.texts,
                catalogue.train_counts,
                weights=towers.ranking,
                # What is liked in a dialogue is all that a task of retrieval reads; tasks of
                # dialogues read the rest, too.
                kinds=None if of_dialogues else catalogue.kinds,
            )
    if not titles and not of_dialogues and "title" in columns:
        # Nothing was trained to write titles in another way.
        titles = "{title}" + "[ ({year})]" * ("year" in columns)
    written = catalogue.texts
    if titles:
        template = Template.parse(titles, "chat.titles")
        template.validate(columns)
        written = [template.render(item.attributes) for item in catalogue.items]
    known = None
    if user is not None or not of_dialogues:
        known = known_user(user or {}, folder, None if of_dialogues else towers)
    return Conversation(
        resources,
        tasks,
        catalogue,
        written,
        index,
        reranker,
        known=known,
        reads_liked=not of_dialogues,
    )


def conversation_tasks(model: LoadedModel) -> dict[str, str]:
    """Part of the dialogue (`dialogue_part`) -> name of the model's task for it.

    A model without tasks of dialogues recommends by its one task of kind 'retrieval'.

    Raises:
      ConfigError: there is none, or several of one part.
    """
    parts: dict[str, str] = {}
    for name, settings in model.settings.tasks.items():
        part = dialogue_part(settings)
        if part in parts:
            raise ConfigError(
                f"{name} is the model's second task of {part}; chat needs one of each (of a bank's "
                "tasks --gin.load_bank.tasks=\"['NAME', ...]\" takes some)"
            )
        if part:
            parts[part] = name
    towers = [name for name, task in model.settings.tasks.items() if task.kind == "retrieval"]
    if not parts and len(towers) == 1:
        return {"retrieval": towers[0]}
    if not parts:
        known = ", ".join(model.settings.tasks) or "none"
        raise ConfigError(
            f"the model has no task to converse with (its tasks: {known}); train it on tasks of "
            "register_dialogue_tasks, such as inspired_conversation"
        )
    return parts


def conversation_folder(model: LoadedModel, prepared: str | None = None) -> Path:
    """Of the prepared data that a dialogue reads: `prepared`, or what its tasks were trained on.

    Raises:
      ConfigError: there are no such data, or no such tasks.
    """
    if not prepared:
        names = {model.settings.tasks[task].prepared for task in conversation_tasks(model).values()}
        if len(names) > 1 or names == {""}:
            raise ConfigError(
                "the model's tasks of dialogues were trained on several catalogues, or the model "
                f"folder does not say on which ({', '.join(sorted(names))}); name the folder with "
                "the catalogue with --gin.PREPARED=FOLDER"
            )
        prepared = str((model.data_dir or default_data_dir()) / names.pop())
    folder = kept_copy(path_of(prepared).expanduser())
    if not (folder / CATALOGUE).is_file():
        raise ConfigError(
            f"there is no prepared data in {folder}, so no catalogue; name the folder that `m6rec "
            "data prepare` printed with --gin.PREPARED=FOLDER"
        )
    return folder


def _catalogue_index(resources: Resources, task: str, catalogue: Catalogue) -> CatalogueIndex:
    """What `m6rec index build` made of the catalogue for the task, or else an index made now."""
    built = resources.indexes.get(task)
    if built and read_manifest(built, INDEX_COMMAND).model == resources.model.fingerprint(task):
        stored, ids = resources.index(task), [item.id for item in catalogue.items]
        texts = dict(zip(ids, catalogue.texts, strict=True))
        if stored.manifest.content == catalogue_fingerprint(texts):
            return stored.search
    return resources.retriever().index(catalogue.texts, task)


def known_user(
    row: Mapping[str, Any], folder: Path, retriever: TaskSettings | None
) -> Callable[[Sequence[int]], UserRead]:
    """What is known of a user, with the items that a dialogue says are liked, by their places.

    Args:
      row: a request's `user`, `history`, `time` and `statistics` (`requests.request`); no time:
        right after all that is known. A warning names columns that the data set does not have.
      folder: of the prepared data.
      retriever: the task of retrieval that reads it; None: tasks of dialogues do.

    Raises:
      ConfigError: data without users, items and events.
      RejectedRow: something in `row` is wrong; when called, too.
    """
    data = ServingData.open(prepared_dataset_spec(folder), folder)
    parser = RequestParser(data.spec, data.items, data.statistics_names(), RequestFields(None))
    # A task of retrieval reads as much of a history as it was trained on.
    max_events = data.max_events if retriever is None else retriever.max_events
    renderer = RequestRenderer(data.template, data.statistics, max_events)
    items, places = [*data.items.values()], {id_: place for place, id_ in enumerate(data.items)}
    request = parser.parse(row)
    if request.ignored:
        logger.warning(
            "left out of what is known of the user, since the data set has no such columns: %s",
            ", ".join(sorted(request.ignored)),
        )
    assert data.statistics is not None  # read with the folder
    times = [event.time for event, _ in request.history if not math.isnan(event.time)]
    now = max(0.0, data.statistics.totals.last_time + 1, *times)  # of no event -inf
    time = now if request.time is None else request.time

    def read(liked: Sequence[int]) -> UserRead:
        user, value = request.user.id, data.spec.label.at_least
        events = [(Event(user, items[n].id, time, value), items[n]) for n in liked]
        told = dataclasses.replace(request, time=time, history=(*request.history, *events))
        past = [places[item.id] for _, item in told.history if item.id in places]
        return UserRead(renderer.render(told).history, past, data.spec.repeats_count)

    return read
