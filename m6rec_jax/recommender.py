"""A trained model in a notebook or a program: `m6rec_jax.load` and what it returns.

    rec = m6.load("runs/ctr", bank="runs/bank", index="runs/films.index")
    rec.score(user={"age": 24}, history=[{"item": "50", "time": 881250949, "value": 5}],
              candidates=["181", {"title": "A new film", "genres": ["drama"]}])

Users, behaviours and items are dictionaries, dataclasses or data frames with the columns of the
data set's tables, or with a request's names for them (`id`; `item`, `time`, `value`); an item is
its id, too. Numbers and arrays may be numpy's. Every method may be called from several threads.
"""

from __future__ import annotations

import dataclasses
import logging
import time as clock
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import pyarrow as pa

from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.answering import Accepted, ScoredItem, title_of
from m6rec_jax.jobs.conversation import Conversation
from m6rec_jax.requests.request import RejectedRow, RequestParser
from m6rec_jax.requests.serving_data import prepared_dataset_spec
from m6rec_jax.serving.conversations import conversation_folder, open_conversation
from m6rec_jax.serving.service import Service, ServiceOptions
from m6rec_jax.text.records import Item

logger = logging.getLogger(__name__)

# A mapping, a dataclass, or None.
Record = Any
# Records or ids, or a data frame of pandas, polars or pyarrow.
Records = Any
# Fields of `Asked` and of methods that are `Records`, or ids alone.
_LISTS = ("history", "candidates", "exclude")
# Why something of a request is left out.
_NO_COLUMN = "the data set has no such columns"
_NO_ITEM = "the catalogue does not have these items of the history"


class GeneratedText(NamedTuple):
    """A text that the model generated.

    Attributes:
      id, title: of the item that it is about; empty where it is about none.
      text: without its prefix.
      log_probability: of the text.
    """

    id: str
    title: str
    text: str
    log_probability: float


def load(
    model_dir: str | Path,
    *,
    bank: str | Path | None = None,
    index: str | Path | Mapping[str, str] | None = None,
    prepared: str | Path | None = None,
    items: str | Path | None = None,
    step: int | None = None,
    warm_up: bool = False,
) -> Recommender:
    """Loads a trained model, on the default device.

    Args:
      model_dir: of a training run; with a bank, of one that has its tasks' backbone.
      bank: folder of a prompt bank; None: the run's own tasks.
      index: folder of `m6rec index build`, for retrieval; or one for each task by name.
      prepared: folder with catalogue and statistics; None: what each task was trained on; '':
        neither, requests bring all of it.
      items: Parquet or CSV file of a newer catalogue.
      step: which checkpoint; None: the newest.
      warm_up: compile every program now, so that no call does later, but for those of dialogues,
        which the first ones compile.

    Raises:
      CheckpointError: no model, or a bank or an index of another one.
      ConfigError: an index of a task that there is not.
    """
    options = ServiceOptions(
        prepared=None if prepared is None else str(prepared),
        items=None if items is None else str(items),
        index=index if index is None or isinstance(index, Mapping) else str(index),
    )
    recommender = Recommender(Service.open(model_dir, bank=bank, step=step, options=options))
    if warm_up:
        recommender.service.warm_up()
    return recommender


class Known(TypedDict, total=False):
    """Fields of a request that say what is known of a user, see `requests.request`.

    Attributes:
      user: columns of the users table, with the id to look statistics up; without it nothing is
        known.
      history: what the user did, oldest first: columns of the events table, or records with `item`,
        `time` and, where the data set's events have one, `value`.
      time: the moment that is asked about, unix seconds or ISO 8601; without it now, and of
        dialogues right after all that is known.
      statistics: of the user and the moment, in place of what is looked up.
    """

    user: Record
    history: Records
    time: Any
    statistics: Mapping[str, Any]


class Asked(Known, total=False):
    """Fields of a request.

    Attributes:
      exclude: ids of items that must not be recommended, beside those of the history.
      about: the item that a generated title's prefix is about.
      task: which of the model's tasks; without it the only one that fits.
    """

    exclude: Sequence[str]
    about: Record
    task: str


class Recommender:
    """Everything that a model's tasks can do; make it with `load`.

    Methods take the fields of `Asked` by name. All raise

      RejectedRow: the request cannot be answered; says what is missing or wrong.
      ConfigError: no such task or field, or something is missing, such as an index.

    Args:
      service: answers the requests.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def tasks(self) -> dict[str, str]:
        """Name and kind of every task."""
        return {name: task.kind for name, task in self.service.model.tasks.items()}

    def score(self, candidates: Records, **asked: Unpack[Asked]) -> list[ScoredItem]:
        """How likely the user likes, clicks or buys each candidate, in their order."""
        return self._answer("scoring", asked, candidates=candidates)[1].items

    def likelihood(self, candidates: Records, **asked: Unpack[Asked]) -> list[ScoredItem]:
        """How likely each candidate's better outcome is, in their order: needs no training.

        See `LikelihoodAnswers` for other questions.
        """
        return self._answer("likelihood", asked, candidates=candidates)[1].items

    def retrieve(self, k: int = 10, **asked: Unpack[Asked]) -> list[ScoredItem]:
        """The k items of the index that are most similar to the user, best first."""
        return self._answer("retrieval", asked, k=k)[1].items

    def recommend(
        self, k: int = 10, by: str = "reranking", **asked: Unpack[Asked]
    ) -> list[ScoredItem]:
        """The k items that the user is likeliest to want next, best first.

        Args:
          k: how many; by 'titles', how many titles, each with all items that share it.
          by: 'reranking', what towers, co-occurrence and words find, in the order that `m6rec
            calibrate` has learnt; or 'titles', generated titles of the catalogue.
          **asked: see `Asked`.
        """
        job = {"titles": "title_recommendation"}.get(by, by)
        return self._answer(job, asked, k=k)[1].items

    def explain(self, candidates: Records, **asked: Unpack[Asked]) -> list[GeneratedText]:
        """Why the user may like each candidate, in their order."""
        tasks = self.service.model.tasks
        own = [name for name, task in tasks.items() if task.writing == "explanations"]
        if not own and "task" not in asked:
            known = ", ".join(tasks)
            raise ConfigError(f"no task of this model writes explanations (it has: {known})")
        if len(own) == 1:
            asked.setdefault("task", own[0])
        return self.write(candidates, **asked)

    def write(self, candidates: Records = (), **asked: Unpack[Asked]) -> list[GeneratedText]:
        """What a task of generation writes: about each candidate, or one text about none."""
        accepted, found = self._answer("generation", asked, candidates=candidates)
        about = accepted.request.candidates or [Item("", {})] * len(found.texts)
        rows = zip(about, *found.values.values(), strict=True)
        return [GeneratedText(item.id, title_of(item), text, score) for item, text, score in rows]

    def chat(
        self, *, prepared: str | None = None, titles: str = "", **known: Unpack[Known]
    ) -> Conversation:
        """A dialogue: `rec.chat(user={"age": 24}).answer("I liked Fargo. What else?")`.

        Args:
          prepared, titles, and other errors: see `serving.conversations`.
          **known: see `Known`.
        """
        _check_fields(known, Known)
        service, model, row = self.service, self.service.model, None
        prepared = service.options.prepared if prepared is None else prepared
        if told := {name: value for name, value in known.items() if value is not None}:
            spec = prepared_dataset_spec(conversation_folder(model, prepared))
            row = _request(told, DatasetSpec.from_dict(spec, "the prepared data"))
        return open_conversation(service, prepared, titles, row)

    def embed_items(
        self, items: Records = None, *, task: str | None = None
    ) -> tuple[list[str], np.ndarray]:
        """Unit vectors of items by the item tower.

        Args:
          items: records or ids; None: the whole catalogue.
          task: of retrieval.

        Returns:
          Ids, and float32 `[items, retrieval]`.
        """
        name = self.service.task(task, "retrieval")
        data = self.service.data(name)
        found = [*data.items.values()]
        if items is not None:
            entries = _renamed(_records(items), _request_names(data.spec)["candidates"])
            ignored: set[str] = set()
            found = RequestParser(data.spec, data.items).items(entries, ignored)
            _warn(ignored, _NO_COLUMN)
        texts = [data.template.item(item) for item in found]
        vectors = self.service.retriever().embed_items(texts, name)
        return [item.id for item in found], vectors

    def answer(self, rows: Iterable[Mapping[str, Any]], **asked: Any) -> list[Any]:
        """Many requests at once: a result or a `RejectedRow` for each, in their order.

        Args:
          rows: see `requests.request`.
          asked: `task` and `job`, see `Service.accept`.
        """
        return [result for _, result in self._answered(map(_plain, rows), **asked)]

    def _answered(self, rows: Iterable[Any], **asked: Any) -> list[tuple[Any, Any]]:
        """Each row's `Accepted` and result, or `RejectedRow` twice."""
        checked = [self.service.accept(row, number=i, **asked) for i, row in enumerate(rows)]
        accepted = [one for one in checked if isinstance(one, Accepted)]
        _warn({name for one in accepted for name in one.request.ignored}, _NO_COLUMN)
        _warn({item for one in accepted for item in one.request.unknown}, _NO_ITEM)
        results = iter(self.service.answer(accepted))
        return [(one, next(results) if isinstance(one, Accepted) else one) for one in checked]

    def _answer(self, job: str, asked: Asked, **fields: Any) -> tuple[Accepted, Any]:
        """A request and its result."""
        _check_fields(asked, Asked)
        given: dict[str, Any] = {"history": (), "time": clock.time(), **asked, **fields}
        task = self.service.task(given.pop("task", None), job)
        row = _request(given, self.service.handler(task, self.service.job(task, job)).data.spec)
        ((accepted, result),) = self._answered([row], task=task, job=job)
        if isinstance(result, RejectedRow):
            raise result
        return accepted, result


def _check_fields(given: Iterable[str], fields: type[Known]) -> None:
    known = fields.__annotations__
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"a request has no field '{name}'{hint}: {', '.join(known)}")


def _request(given: Mapping[str, Any], spec: DatasetSpec) -> dict[str, Any]:
    """A request of fields that are records or lists of them, by a request's names."""
    names, row = _request_names(spec), dict[str, Any]()
    for name, value in given.items():
        plain = _records(value) if name in _LISTS else _plain(value)
        row[name] = _renamed(plain, names.get(name, {}))
    for event in row.setdefault("history", []):
        if isinstance(event, dict) and "item" in event:
            event["item"] = _renamed(event["item"], names["candidates"])
    return row


def _request_names(spec: DatasetSpec) -> dict[str, dict[str, str]]:
    """By field of a request: a table's columns that it has another name for, '' where it has none.

    An event's user is who asks, and its part of the data set says nothing of it.
    """
    items, events = {spec.items.id: "id"}, spec.events
    names = {events.user: "", events.part: "", events.value: "value"}
    names |= {events.time: "time", events.item: "item"}
    history = {own: name for own, name in names.items() if own and own not in names.values()}
    user = {spec.users.id: "id"}
    return {"user": user, "history": history, "candidates": items, "about": items}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Records with a request's names, which go before the tables'; ids as they are."""
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    told = {names[own]: of for own, of in value.items() if names.get(own)}
    return told | {own: of for own, of in value.items() if own not in names}


def _warn(names: Collection[str], reason: str) -> None:
    if names:
        logger.warning("left out, since %s: %s", reason, ", ".join(sorted(names)))


def _plain(value: Any) -> Any:
    """What JSON has in place of dataclasses, tuples, and numbers and arrays of numpy."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")  # of nanoseconds numpy makes a number
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _records(values: Any) -> list[Any]:
    """Rows of a data frame, or what a sequence holds."""
    if hasattr(values, "to_list") and not hasattr(values, "columns"):  # a column of ids
        values = values.to_list()
    if hasattr(values, "reset_index"):  # of pandas, whose index would be a column
        values = values.reset_index(drop=True)
    if hasattr(values, "__arrow_c_stream__"):  # pandas, polars and pyarrow have it
        values = pa.table(values).to_pylist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(f"{values!r} is no list of records or ids, and no data frame")
    return [_plain(value) for value in values]
