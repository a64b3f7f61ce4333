"""What requests are answered with at a moment, and how that changes while the server runs.

A snapshot is never changed. Adding prompts or swapping data makes another one beside it, which
shares the backbone and all compiled programs, and then replaces a reference: whoever took the old
snapshot is answered by it to the end.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from m6rec_jax.bank.loaded import LoadedBank
from m6rec_jax.engine.candidates.rows import pack_texts
from m6rec_jax.engine.decoding.text_decoding import TextOptions
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.errors import ConfigError, DataError, M6RecError
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.jobs.conversation import Conversation
from m6rec_jax.jobs.titles import NAMING
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.server.errors import ApiError
from m6rec_jax.server.row_types import RowTypes
from m6rec_jax.serving.chat import open_conversation
from m6rec_jax.serving.service import Service
from m6rec_jax.text.records import Item, User

log = logging.getLogger(__name__)

# In place of a task's name: the only task that fits.
ANY_TASK = "m6rec"
# What `serve.jobs` may name.
FURTHER_JOBS = ("title_recommendation", "likelihood")


class Snapshot:
    """Prompts, data and indexes of one moment.

    Args:
      service: over them; warmed up here, so that no request compiles or reads anything.
      version: of the snapshots of a server, from 1.
      jobs: that may be asked beside what tasks are for, see `launch.serve`.

    Attributes:
      since: unix seconds.
      conversation: a dialogue to be `resumed`; None: the model has no tasks for it.
      no_conversation: why not.

    Raises:
      M6RecError: a task's data or index are missing or wrong.
    """

    def __init__(
        self,
        service: Service,
        version: int,
        jobs: Collection[str] = (),
    ) -> None:
        self.service, self.version, self.since = service, version, time.time()
        self._further_jobs = frozenset(jobs)
        self._row_types: dict[str, RowTypes] = {}
        self._described: dict[tuple[str, str], Mapping[str, Any]] = {}
        pairs = service.answerable()
        for task, job in list(pairs):
            if job == "retrieval" and self._has_hybrid(task):
                pairs.append((task, "reranking"))
            if "title_recommendation" in jobs and self.tasks[task].writing in NAMING:
                pairs.append((task, "title_recommendation"))
        pairs += [(task, "scoring") for task in self.named("reranking")]
        if "likelihood" in jobs or self.named("likelihood"):  # its programs depend on no task
            lacking = {task: self._without_outcomes(task) for task in self.tasks}
            if all(lacking.values()):
                why = "; ".join(dict.fromkeys(map(str, lacking.values())))
                raise ConfigError(f"no task can be asked for likelihood: {why}")
            for task, reason in lacking.items():
                if reason is None:
                    pairs.append((task, "likelihood"))
                elif not dialogue_part(self.tasks[task]):
                    log.warning("'%s' is not asked for likelihood: %s", task, reason)
        service.warm_up(pairs)
        if service.model.model.config.prompts.retrieval_dim and self.named("retrieval"):
            parts = service.parts
            retriever = parts.retriever()
            parts.warm_once("retriever", retriever.warm_up)
            task = self.named("retrieval")[0]
            parts.warm_once("items", lambda: _warm_up_items(retriever, task, parts.batch_sizes))
            pairs += [(task, "embeddings") for task in self.named("retrieval")]
        self._pairs = frozenset(pairs)
        for task, job in pairs:
            if job != "embeddings":  # of text, which takes no data
                self.describe(task, job)
        self.conversation: Conversation | None = None
        self.no_conversation = "the model has no task of dialogues"
        if any(map(dialogue_part, self.tasks.values())):
            try:
                parts = service.parts
                self.conversation = open_conversation(service.model, parts.prepared, parts=parts)
                parts.warm_once(self.conversation.shapes, self.conversation.warm_up)
            except (ConfigError, DataError) as error:
                self.no_conversation = str(error)
                log.warning("no chat: %s", error)

    @property
    def tasks(self) -> Mapping[str, TaskSettings]:
        """Settings of all tasks, by name."""
        return self.service.model.settings.tasks

    @property
    def segments(self) -> SegmentCache | None:
        """What all requests share of early layers' work; None: late interaction is off."""
        return self.service.model.segments

    def segment_counts(self) -> dict[str, dict[str, int]]:
        """`SegmentCache.counts` as of now, none where late interaction is off."""
        counts = self.segments.counts() if self.segments else {}
        return {pool: dataclasses.asdict(own) for pool, own in counts.items()}

    def named(self, *kinds: str) -> list[str]:
        """Names of the tasks of these kinds, those of dialogues left out."""
        return [n for n, s in self.tasks.items() if s.kind in kinds and not dialogue_part(s)]

    def answers(self, task: str, job: str) -> bool:
        """Whether all is there that the job needs; nothing is compiled for it any more."""
        return (task, job) in self._pairs

    def jobs(self, task: str) -> list[str]:
        """What a task can be asked for."""
        return sorted(job for own, job in self._pairs if own == task)

    def data_of(self, task: str) -> ServingData | None:
        """Catalogue and columns of a task's requests; None: it takes none."""
        if self.tasks[task].reads_text:
            return None
        jobs = [job for job in self.jobs(task) if job != "embeddings"]  # of text, which takes none
        return self.service.data(task, jobs[0]) if jobs else None

    def check_answers_as(self, old: Snapshot, but: str = "") -> None:
        """Raises ConfigError where something that could be asked no longer can.

        Args:
          old: the snapshot before.
          but: a task whose prompts were replaced or removed: only what others lose counts.
        """
        gone = old.tasks.get(but)
        if gone and but in self.tasks and self.tasks[but].kind == gone.kind:
            gone = None
        # With a task goes what others could be asked because of it.
        lost = [
            f"'{task}' for {job}"
            for task, job in sorted(old._pairs - self._pairs)
            if task != but and not (gone and job == gone.kind)
        ]
        talks = not (gone and dialogue_part(gone))
        if talks and old.conversation and not self.conversation:
            lost.append(f"a chat ({self.no_conversation})")
        if lost:
            raise ConfigError(f"with this change nobody could ask {', '.join(lost)}")

    def task(self, name: str | None, job: str, field: str = "task") -> str:
        """The task that is meant; `field` of the body names it.

        Raises:
          ApiError: 404 where there is no such task.
          ConfigError: there are several, or none that fits.
        """
        name = None if name == ANY_TASK else name
        try:
            return self.service.task(name, job)
        except ConfigError as error:
            if name and name not in self.tasks:
                raise ApiError(404, "unknown_task", str(error), field) from None
            raise

    def accept(self, row: Mapping[str, Any], task: str, job: str, number: int = 0) -> Accepted:
        """Checks and renders a request; now is its time where it names none.

        Raises:
          ValidationError: of pydantic, where a field is no field of the data set's.
          RejectedRow, ConfigError, DataError: as `Service.accept`.
        """
        self._check_compiled(task, job)
        self.row_types(task, job).check(row)
        row = {"history": [], **row}
        if row.get("time") is None:
            row["time"] = time.time()
        accepted = self.service.accept(row, task=task, job=job, number=number)
        if isinstance(accepted, RejectedRow):
            raise accepted
        return accepted

    def row_types(self, task: str, job: str) -> RowTypes:
        """What requests of a task may hold."""
        data = self.service.data(task, job)
        if data.spec.name not in self._row_types:
            self._row_types[data.spec.name] = RowTypes(data.spec, data.statistics_names())
        return self._row_types[data.spec.name]

    def all_row_types(self) -> list[RowTypes]:
        """Those of each data set."""
        asked = [(t, j) for t, j in self._pairs if j != "embeddings"]
        return [
            *{self.row_types(t, j): None for t, j in sorted(asked) if not self.tasks[t].reads_text}
        ]

    def accept_text(
        self,
        history: Sequence[str],
        task: str,
        job: str,
        candidates: Sequence[str] = (),
        items: Sequence[Item] = (),
        number: int = 0,
        wanted: TextOptions | None = None,
    ) -> Accepted:
        """A request that is text already, in place of what `accept` renders.

        Args:
          history: segments: profile, behaviours, context.
          task, job, number: as for `accept`.
          candidates: as the model reads them.
          items: what the candidates are, or what a text is about.
          wanted: of its texts; None: what `Decoding` says.

        Raises:
          RejectedRow: a candidate without words.
          ConfigError: the task is none for the job.
        """
        self._check_compiled(task, job)
        job = self.service.job(task, job)
        if candidates:
            answerer: Any = self.service.answerer(job)
            answerer.check_candidates(candidates, task)
        request = Request(User(""), time.time(), (), tuple(items))
        text = RequestText([*history], [*candidates])
        accepted = Accepted(job, task, request, text, number, wanted or TextOptions())
        return self.service.with_choices(accepted)

    def describe(self, task: str, job: str) -> Mapping[str, Any]:
        """What answered, for answers: `task`, `job`, `prompts`, `data`, `snapshot`."""
        if (task, job) not in self._described:
            self._described[task, job] = {
                "task": task,
                "job": job,
                "prompts": self.service.model.fingerprint(task),
                "data": self.service.data(task, job).fingerprint,
                "snapshot": self.version,
            }
        return self._described[task, job]

    def described(self) -> list[Mapping[str, Any]]:
        """`describe` of each task and job that was asked for, and of those that were warmed up."""
        return list(self._described.values())

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Tokens of texts, for the usage that clients are told."""
        return sum(len(self.service.model.vocabulary.encode_array(text)) for text in texts)

    def _check_compiled(self, task: str, job: str) -> None:
        """A request that compiles would hold up all others."""
        if not self.answers(task, self.service.job(task, job)):
            raise ConfigError(f"'{task}' cannot be asked for '{job}': {self._lacking(task, job)}")

    def _lacking(self, task: str, job: str) -> str:
        """Why a task cannot be asked for a job, and what to do."""
        others = [name for name in self.tasks if self.answers(name, job)]
        if others:
            return f"name one of the tasks that can: {', '.join(sorted(others))}"
        if job in FURTHER_JOBS and job not in self._further_jobs:
            return f"start the server with --gin.serve.jobs=\"['{job}']\""
        if job in ("retrieval", "reranking") and self.tasks[task].kind == "retrieval":
            return "start the server with --index FOLDER, which `m6rec index build` makes"
        able = ", ".join(self.jobs(task)) or "nothing"
        return f"it is a task of {self.tasks[task].kind}, and can be asked for {able}"

    def _without_outcomes(self, task: str) -> str | None:
        """Why it cannot be asked how likely outcomes are; None: it can."""
        try:
            self.service.job(task, "likelihood")  # not of dialogues
            self.service.answerer("likelihood").of_task(task)
        except (ConfigError, DataError) as error:  # such as data that name none
            return str(error)
        return None

    def _has_hybrid(self, task: str) -> bool:
        """Whether what a task finds can be reranked; warns where other settings would let it."""
        try:
            self.service.answerer("reranking").of_task(task)
        except DataError:  # such as data without co-occurrence
            return False
        except ConfigError as error:
            log.warning("/v1/recommend of '%s' is without the hybrid: %s", task, error)
            return False
        return True


class Snapshots:
    """The snapshot that requests take, and its changes, one at a time.

    Args:
      make: a snapshot of a service and a version.
      swapped: told of a change: 'prompts' or 'data'.
    """

    def __init__(
        self, make: Callable[[Service, int], Snapshot], swapped: Callable[[str], None]
    ) -> None:
        self._make, self._swapped = make, swapped
        self._current: Snapshot | None = None
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether there is a snapshot."""
        return self._current is not None

    @property
    def current(self) -> Snapshot:
        """The newest; raises ApiError (503) where there is none yet."""
        if self._current is None:
            raise ApiError(503, "not_ready", "the model is loading", headers={"Retry-After": "5"})
        return self._current

    def start(self, service: Service) -> None:
        """Makes the first snapshot; raises M6RecError as `Snapshot`."""
        self._current = self._make(service, 1)

    def put_prompts(self, task: str, index: str | None = None) -> Snapshot:
        """Adds a task of the bank's folder, or replaces it by what the folder holds now.

        Args:
          task: in the folder.
          index: of the catalogue, for a task of retrieval; None: as before.

        Raises:
          ApiError: 409, the server has no bank, or the task or its index does not fit; nothing has
            changed then.
        """
        return self._change_bank("put", task, index)

    def remove_prompts(self, task: str) -> Snapshot:
        """Takes a task out; raises ApiError as `put_prompts`, or 404."""
        return self._change_bank("remove", task)

    def put_data(self, data: Mapping[str, Any]) -> Snapshot:
        """Reads catalogue, statistics and indexes anew, from these folders or from the same ones.

        Args:
          data: any of `prepared`, `items` and `index`.

        Raises:
          ApiError: 409, they do not fit; nothing has changed then.
        """
        with self._lock:
            return self._swap("data", lambda service: service.changed(data=data))

    def _change_bank(
        self, what: Literal["put", "remove"], task: str, index: str | None = None
    ) -> Snapshot:
        with self._lock:
            bank = self.current.service.model
            if not isinstance(bank, LoadedBank):
                raise ApiError(
                    409, "no_bank", "the server was started without --bank: its tasks are fixed"
                )
            if what == "remove" and task not in bank.tasks:
                known = ", ".join(sorted(bank.tasks)) or "none"
                raise ApiError(404, "unknown_task", f"there is no task '{task}': {known}", "task")

            def changed(service: Service) -> Service:
                new = bank.without(task) if task in bank.tasks else bank
                if what == "put":
                    new = new.with_tasks(task)
                return service.changed(new, index=None if index is None else {task: index})

            return self._swap("prompts", changed, task)

    def _swap(
        self, what: str, change: Callable[[Service], Service], changed_task: str = ""
    ) -> Snapshot:
        old = self.current
        try:
            new = self._make(change(old.service), old.version + 1)
            new.check_answers_as(old, changed_task)
        except (M6RecError, OSError) as error:  # such as a name that no file may have
            raise ApiError(409, "cannot_be_changed", str(error)) from error
        self._current = new
        self._swapped(what)
        return new


def _warm_up_items(retriever: Retriever, task: str, sizes: Sequence[int]) -> None:
    """Compiles what embeds items given as text, for every number of rows."""
    length = retriever.options.target_length
    texts = ["a"] * length
    packed = pack_texts(retriever.vocabulary, texts, length, retriever.candidate_length)
    per_row = -(-len(texts) // len(packed.rows))
    for size in sizes:
        retriever.embed_items(["a"] * (per_row * size), task)
