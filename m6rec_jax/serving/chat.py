"""`m6rec chat`: a dialogue with a model in a terminal, or line by line from a file.

Replies are printed as in the training dialogues; below them stand what was understood and the items
that are recommended, by generating their titles and by the two towers.
"""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import gin
import numpy as np

from m6rec_jax.bank.loading import load_with_bank
from m6rec_jax.data.features.co_occurrence import FILE as CO_OCCURRENCE
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.getting.sources import default_data_dir
from m6rec_jax.data.store.prepared import CATALOGUE, read_catalogue
from m6rec_jax.dialogue.state import SYSTEM
from m6rec_jax.engine.computed_folder import read_manifest
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.engine.index.index_files import INDEX_COMMAND, catalogue_fingerprint
from m6rec_jax.engine.index.ranking_weights import RankingWeights
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import kept_copy, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.conversation import Answer, Conversation, ConversationCatalogue, Read
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RejectedRow, Request, RequestFields, RequestParser
from m6rec_jax.requests.serving_data import ServingData, prepared_dataset_spec
from m6rec_jax.sharding import LogicalRules, make_mesh
from m6rec_jax.text.format_strings import Template

HELP = "Say something; /new starts anew, /quit (or the end of input) ends."
_PROMPT = "> "
# What a request may say of a user.
_KNOWN = ("user", "history", "time", "statistics")

logger = logging.getLogger(__name__)


@gin.configurable(denylist=["user", "lines", "out"])
def chat(
    model_dir: str | Path = gin.REQUIRED,
    *,
    bank: str | None = None,
    prepared: str | None = None,
    titles: str = "",
    step: int | None = None,
    rules: LogicalRules | None = None,
    user: Path | None = None,
    lines: Iterable[str] | None = None,
    out: TextIO | None = None,
) -> Conversation:
    """Talks until the user ends it.

    Args:
      model_dir, bank, step: see `Service.open`.
      prepared, titles: see `open_conversation`.
      rules: logical-axis rules, by which the model lies over the mesh of `make_mesh` (gin); None:
        it is on the default device.
      user: JSON file with what is known of the user, see `open_conversation`; the prepared data
        must then be of users, items and events.
      lines: what the user says; None: standard input.
      out: where answers go; None: standard output.

    Returns:
      The conversation as it ended.

    Raises:
      CheckpointError: no model. ConfigError, DataError: as `open_conversation`; or the user's file
        is missing or wrong.
    """
    mesh = None if rules is None else make_mesh()
    model = load_with_bank(model_dir, bank=bank, step=step, mesh=mesh, rules=tuple(rules or ()))
    known = None if user is None else _read_user(user)
    conversation = open_conversation(model, prepared, titles, known)
    out = out or sys.stdout
    print(HELP, file=out)
    for line in _typed(out) if lines is None else lines:
        text = line.strip()
        if text == "/quit":
            break
        if text == "/new":
            conversation.restart()
            print("(a new dialogue)", file=out)
        elif text.startswith("/"):
            print(HELP, file=out)
        elif text:
            print(_shown(conversation.answer(text)), file=out, flush=True)
    return conversation


def open_conversation(
    model: LoadedModel,
    prepared: str | None = None,
    titles: str = "",
    user: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
) -> Conversation:
    """A dialogue with a model.

    The model's tasks say what it can do: a task of replies, one of titles, one of retrieval; at
    least one of them (`pipeline.registration`). Without any, its one task of kind 'retrieval'
    recommends: it reads the items that are liked in the dialogue as a user's history.

    Args:
      model: of a run or a bank.
      prepared: folder of prepared data with the catalogue; None: what the model was trained on.
      titles: how items of another catalogue are called, as in '{title}[ ({year})]': as the model
        was trained to write them. Empty: by the texts of the catalogue.
      user: what is known of the user, a request's `user`, `history`, `time` and `statistics`
        (`requests.request`). A warning names columns that the data set does not have.
      resources: whose engines are asked, for dialogues of a `Service`; None: engines of its own.

    Raises:
      ConfigError: a model without such tasks, settings that do not fit the data, or something else
        in `user`.
      DataError: data are missing or wrong, or what is known of the user is.
    """
    tasks = _tasks(model)
    folder = conversation_folder(model, prepared)
    engines: dict[str, Any] = {}
    for part, name in tasks.items():
        if resources is not None:
            engines[part] = (
                resources.retriever() if part == "retrieval" else resources.generator(name)
            )
        elif part == "retrieval":
            engines[part] = model.retriever(name, batch_sizes=(1, 32))
        else:
            engines[part] = model.generator(name, batch_sizes=(1,))
    index = None
    if resources is not None and resources.options.items is not None:
        logger.warning("dialogues are about the catalogue in %s: ITEMS is not for them", folder)
    if resources is not None and "retrieval" in tasks:
        index = _built_index(resources, tasks["retrieval"], folder)
    of_dialogues = [model.settings.tasks[name] for name in tasks.values()]
    of_dialogues = [settings for settings in of_dialogues if dialogue_part(settings)]
    turns = [settings.max_events for settings in of_dialogues]
    # A task of retrieval reads as much of a history as it was trained on.
    retriever = None if of_dialogues else model.settings.tasks[tasks["retrieval"]]
    known = None if user is None else _LikedItems(user, folder, retriever)
    told = Read([], []) if known is None else known([])
    if not titles and not of_dialogues:  # nothing was trained to write titles in another way
        columns = read_catalogue(folder).items[0].attributes
        titles = "{title}" * ("title" in columns)
        titles += "[ ({year})]" * ("title" in columns and "year" in columns)
    catalogue, reranker = read_conversation_catalogue(folder, titles), None
    if "retrieval" in tasks:
        weights = model.settings.tasks[tasks["retrieval"]].ranking
        kinds = None if of_dialogues else catalogue.kinds
        reranker = _reranker(folder, catalogue, weights, kinds)
    return Conversation(
        catalogue,
        **engines,
        index=index,
        reranker=reranker,
        tasks=tasks,
        batch_sizes=(1,) if resources is None else resources.batch_sizes,
        history=told.history,
        past=told.past,
        repeats_count=known is not None and known.repeats_count,
        read_liked=None if of_dialogues else known or _LikedItems({}, folder, retriever),
        named_items=min((settings.named_items for settings in of_dialogues), default=0),
        max_turns=min((number for number in turns if number is not None), default=None),
    )


def _reranker(
    folder: Path,
    catalogue: ConversationCatalogue,
    weights: RankingWeights | None,
    kinds: Sequence[Sequence[str]] | None,
) -> Reranker | None:
    """Of the prepared data; None where nothing says which of their items occur together.

    What is liked in a dialogue is all that a task of retrieval reads; tasks of dialogues read the
    rest, too, and need no `kinds`.
    """
    if not (folder / CO_OCCURRENCE).is_file():
        return None
    return Reranker(
        CoOccurrence.load(folder),
        Ease.load(folder),
        catalogue.texts,
        np.asarray(catalogue.popularity),
        weights=weights,
        kinds=kinds,
    )


def _built_index(resources: Resources, task: str, folder: Path) -> CatalogueIndex | None:
    """What `m6rec index build` made of the catalogue for the task; None: nothing, or of another."""
    built = resources.indexes.get(task)
    if built is None or read_manifest(built, INDEX_COMMAND).model != resources.model.fingerprint(
        task
    ):
        return None
    stored, catalogue = resources.index(task), read_catalogue(folder)
    ids = [item.id for item in catalogue.items]
    same = stored.manifest.content == catalogue_fingerprint(
        dict(zip(ids, catalogue.texts, strict=True))
    )
    return stored.search if same else None


def read_conversation_catalogue(folder: Path, titles: str = "") -> ConversationCatalogue:
    """The items of a folder of prepared data; arguments and errors as `open_conversation`."""
    catalogue = read_catalogue(folder)
    written: Sequence[str] = catalogue.texts
    if titles:
        template = Template.parse(titles, "chat.titles")
        template.validate(catalogue.items[0].attributes)
        written = [template.render(item.attributes) for item in catalogue.items]
    names = [
        str(item.attributes.get("title") or text)
        for item, text in zip(catalogue.items, written, strict=True)
    ]
    return ConversationCatalogue(
        written,
        catalogue.texts,
        names,
        catalogue.items,
        catalogue.train_counts.tolist(),
        catalogue.kinds,
    )


def _read_user(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold an object, a request")
    return values


class _LikedItems:
    """What is known of a user, with the items that a dialogue says are liked.

    Args:
      user: as of `open_conversation`; no time: right after all that is known.
      folder: of the prepared data.
      retriever: the task of retrieval that reads it; None: tasks of dialogues do.

    Raises:
      ConfigError, DataError: as `open_conversation`; when called, too.
    """

    def __init__(
        self, user: Mapping[str, Any], folder: Path, retriever: TaskSettings | None
    ) -> None:
        for name in user:
            if name not in _KNOWN:
                raise ConfigError(
                    f"what is known of the user has '{name}'{did_you_mean(name, _KNOWN)}: a "
                    f"dialogue takes {', '.join(_KNOWN)}"
                )
        data = ServingData.open(prepared_dataset_spec(folder), folder)
        self._parser = RequestParser(
            data.spec, data.items, data.statistics_names(), RequestFields(None)
        )
        max_events = data.max_events if retriever is None else retriever.max_events
        self._renderer = RequestRenderer(data.template, data.statistics, max_events)
        self._ids, self._value = list(data.items), data.spec.label.at_least
        self.repeats_count = data.spec.repeats_count
        self._places = {identifier: place for place, identifier in enumerate(self._ids)}
        assert data.statistics is not None  # read with the folder
        last = data.statistics.totals.last_time  # of no event -inf
        now = last + 1 if math.isfinite(last) else 0.0
        self._user = {"user": {}, "time": now, **user, "history": user.get("history") or []}
        if "time" not in user:
            told = self._parse({**self._user, "time": None}).history
            times = [event.time for event, _ in told if not math.isnan(event.time)]
            self._user["time"] = max([now, *times])
        if ignored := self._parse(self._user).ignored:
            logger.warning(
                "left out of what is known of the user, since the data set has no such columns: %s",
                ", ".join(sorted(ignored)),
            )
        self([])  # what is wrong is said before anybody talks

    def __call__(self, liked: Sequence[int]) -> Read:
        time = self._user["time"]
        told = [{"item": self._ids[i], "time": time, "value": self._value} for i in liked]
        row = {**self._user, "history": [*self._user["history"], *told]}
        request = self._parse(row)
        past = [self._places[item.id] for _, item in request.history if item.id in self._places]
        return Read(self._renderer.render(request).history, past)

    def _parse(self, row: Mapping[str, Any]) -> Request:
        try:
            return self._parser.parse(row)
        except RejectedRow as problem:
            raise DataError(f"what is known of the user: {problem}") from None


def conversation_folder(model: LoadedModel, prepared: str | None = None) -> Path:
    """Of the prepared data that a dialogue reads: what its tasks were trained on, or what the user
    names.

    Arguments and errors as `open_conversation`.
    """
    if not prepared:
        own = {model.settings.tasks[task].prepared for task in _tasks(model).values()}
        if len(own) > 1:
            raise ConfigError(
                f"the model's tasks were trained on several catalogues: {', '.join(sorted(own))}; "
                "name one of these folders with --gin.PREPARED=FOLDER"
            )
        name = own.pop()
        if not name:
            raise ConfigError(
                "the model folder does not say which prepared data its tasks of dialogues were "
                "trained on; name the folder with the catalogue with --gin.PREPARED=FOLDER"
            )
        prepared = str((model.data_dir or default_data_dir()) / name)
    folder = kept_copy(path_of(prepared).expanduser())
    if not (folder / CATALOGUE).is_file():
        raise ConfigError(
            f"there is no prepared data in {folder}, so no catalogue; name the folder that `m6rec "
            "data prepare` printed with --gin.PREPARED=FOLDER"
        )
    return folder


def _tasks(model: LoadedModel) -> dict[str, str]:
    """Part of the dialogue -> name of the model's task for it.

    Raises:
      ConfigError: none, or several of one part.
    """
    found: dict[str, str] = {}
    for name, settings in model.settings.tasks.items():
        part = dialogue_part(settings)
        if part in found:
            raise ConfigError(
                f"{name} is the model's second task of {part}; chat needs one of each (of a bank's "
                "tasks --gin.load_bank.tasks=\"['NAME', ...]\" takes some)"
            )
        if part:
            found[part] = name
    towers = [name for name, own in model.settings.tasks.items() if own.kind == "retrieval"]
    if not found and len(towers) == 1:
        return {"retrieval": towers[0]}
    if not found:
        known = ", ".join(model.settings.tasks) or "none"
        raise ConfigError(
            f"the model has no task to converse with (its tasks: {known}); train it on tasks of "
            "register_dialogue_tasks, such as inspired_conversation"
        )
    return found


def _typed(out: TextIO) -> Iterable[str]:
    """Lines of standard input, with a prompt where somebody types them."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is not UTF-8 is read as \ufffd; it would end the dialogue.
        sys.stdin.reconfigure(errors="replace")
    while True:
        if sys.stdin.isatty():
            print(_PROMPT, end="", file=out, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _shown(answer: Answer) -> str:
    lines = [f"{SYSTEM}: {answer.reply}"] if answer.reply else []
    if answer.understood:
        lines.append(f"  understood: {answer.understood}")
    for name, found in (("written", answer.written), ("retrieved", answer.retrieved)):
        if found is not None:
            lines.append(f"  {name}: {' · '.join(found.titles) or 'nothing is left'}")
    return "\n".join(lines) or "(nothing to say)"
