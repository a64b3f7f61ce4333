"""What requests are answered with at a moment, and how that changes while the server runs.

A snapshot is never changed. Adding prompts or swapping data makes another one beside it, which
shares the backbone and all compiled programs, and then replaces a reference: whoever took the old
snapshot is answered by it to the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.errors import ConfigError, DataError, M6RecError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.answering import Accepted, Handler
from m6rec_jax.jobs.conversation import Conversation
from m6rec_jax.jobs.job import job_of
from m6rec_jax.jobs.job import jobs as all_jobs
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.server.errors import ApiError
from m6rec_jax.server.metrics import Metrics
from m6rec_jax.serving.conversations import open_conversation
from m6rec_jax.serving.scheduler import Scheduler
from m6rec_jax.serving.service import Service
from m6rec_jax.text.records import Item, User

log = logging.getLogger(__name__)

# In place of a task's name: the only task that fits.
ANY_TASK = "m6rec"


class Snapshot:
    """Prompts, data and indexes of one moment.

    Args:
      service: over them; warmed up here, so that no request compiles or reads anything.
      version: of the snapshots of a server, from 1.
      jobs: that may be asked beside what tasks are for, see `launch.serve`.

    Attributes:
      handlers: of tasks and the jobs that they can be asked for; nothing is compiled for these any
        more.
      described: by pair what answered, for answers.
      since: unix seconds.
      conversation: a dialogue to be `resumed`; None: the model has no tasks for it.
      no_conversation: why not.

    Raises:
      M6RecError: a task's data or index are missing or wrong.
    """

    def __init__(self, service: Service, version: int, jobs: Collection[str] = ()) -> None:
        self.service, self.version, self.since = service, version, time.time()
        self.tasks: Mapping[str, TaskSettings] = service.model.settings.tasks
        self._jobs = frozenset(jobs)
        pairs = [*service.answerable(), *self._further_pairs()]
        service.warm_up(pairs)
        self.handlers = {pair: service.handler(*pair) for pair in pairs}
        self.described: Mapping[tuple[str, str], Mapping[str, Any]] = {
            (task, job): {
                "task": task,
                "job": job,
                "prompts": service.model.fingerprint(task),
                "data": handler.data.fingerprint,
                "snapshot": version,
            }
            for (task, job), handler in self.handlers.items()
        }
        self.conversation: Conversation | None = None
        self.no_conversation = "the model has no task of dialogues"
        if any(map(dialogue_part, self.tasks.values())):
            try:
                self.conversation = open_conversation(service, service.options.prepared)
                service.warm_once(self.conversation.shapes, self.conversation.warm_up)
            except (ConfigError, DataError) as error:
                self.no_conversation = str(error)
                log.warning("no chat: %s", error)
        service.earlier.clear()  # all that is needed has been read

    def named(self, kind: str) -> list[str]:
        """Names of the tasks of a kind, those of dialogues left out."""
        return [n for n, s in self.tasks.items() if s.kind == kind and not dialogue_part(s)]

    def jobs(self, task: str) -> list[str]:
        """What a task can be asked for."""
        return sorted(job for name, job in self.handlers if name == task)

    def data_of(self, task: str) -> ServingData | None:
        """Catalogue and columns of a task's requests; None: it takes none."""
        data = (handler.data for (name, _), handler in self.handlers.items() if name == task)
        return None if self.tasks[task].reads_text else next(data, None)

    def task(self, name: str | None, job: str) -> str:
        """The task that is meant; errors as `Service.task`."""
        return self.service.task(None if name == ANY_TASK else name, job)

    def handler(self, task: str, job: str) -> Any:
        """What answers a task's requests for a job.

        Raises:
          ConfigError: nothing is compiled for it, which would hold up all others; says what to do.
        """
        if (task, job) in self.handlers:
            return self.handlers[task, job]
        self.service.job(task, job)  # what is no job at all, or is no task for requests
        kind = self.tasks[task].kind
        advice = f"it is a task of {kind}, and can be asked for {', '.join(self.jobs(task))}"
        if others := sorted(name for name in self.tasks if (name, job) in self.handlers):
            advice = f"name one of the tasks that can: {', '.join(others)}"
        elif job_of(job).on_request and job not in self._jobs:
            advice = f"start the server with --gin.serve.jobs=\"['{job}']\""
        elif job in ("retrieval", "reranking") and kind == "retrieval":
            advice = "start the server with --index FOLDER, which `m6rec index build` makes"
        raise ConfigError(f"'{task}' cannot be asked for '{job}': {advice}")

    def accept(self, row: Mapping[str, Any], task: str, job: str, number: int = 0) -> Accepted:
        """Checks and renders a request; raises as `handler` and `parsed`."""
        handler: Handler = self.handler(task, job)
        request = parsed(row, handler)
        return handler.rendered(request, handler.render(request), number)

    def num_tokens(self, texts: Iterable[str]) -> int:
        """Tokens of texts, for the usage that clients are told."""
        return sum(len(self.service.model.vocabulary.encode_array(text)) for text in texts)

    def _further_pairs(self) -> Iterator[tuple[str, str]]:
        """Tasks and the jobs that they can be asked for beside what they are for."""
        for name, job in all_jobs().items():
            is_named = name in self._jobs
            if job.handler is None or (job.on_request and not (is_named or self.named(name))):
                continue
            pairs, reasons = list[tuple[str, str]](), list[str]()
            for task, settings in self.tasks.items():
                if settings.kind != name and job.may_be_asked_of(settings):
                    try:
                        self.service.handler(task, name)
                        pairs.append((task, name))
                    except (ConfigError, DataError) as error:  # such as data without co-occurrence
                        reasons.append(f"'{task}' cannot be asked for {name}: {error}")
                        log.log(logging.WARNING if is_named else logging.INFO, "%s", reasons[-1])
            if reasons and is_named and not pairs:
                raise ConfigError("; ".join(reasons))
            yield from pairs


def parsed(row: Mapping[str, Any], handler: Handler) -> Request:
    """A checked request; now is its time where it names none.

    Raises:
      RejectedRow: as `RequestParser.parse`, and where a field is none of the data set's.
    """
    given = {name: value for name, value in row.items() if value is not None}
    request = handler.parser.parse({"history": [], "time": time.time(), **given}, strict=True)
    check_known(request.ignored, handler)
    return request


def check_known(ignored: Iterable[str], handler: Handler) -> None:
    """Raises RejectedRow for a field that the data set does not have; names the nearest one."""
    for field in sorted(ignored):
        spec = handler.data.spec
        names = {"id", "item", "time", "value", "statistics", *handler.data.statistics_names()}
        names |= {*spec.users.columns, *spec.items.columns}
        hint = did_you_mean(field.rpartition(".")[2], names)
        raise RejectedRow("unknown_field", f"'{field}': there is no such field{hint}")


def text_request(items: Sequence[Item] = ()) -> Request:
    """A request of which nothing is known but its texts, and what these are about."""
    return Request(User(""), time.time(), (), tuple(items))


class Server:
    """What routes share: the snapshot that requests take, which changes, and what runs them.

    Args:
      jobs: that may be asked beside what tasks are for, see `launch.serve`.
      timeout: seconds that a request may wait where it does not say.
      scheduler: options of the `Scheduler`; those that are left out are gin's.
    """

    def __init__(self, jobs: Collection[str] = (), timeout: float = 30.0, **scheduler: Any) -> None:
        self.timeout, self._jobs = timeout, jobs
        self._current: Snapshot | None = None
        self._lock = threading.Lock()  # changes come one at a time
        self.metrics = Metrics(lambda: self.scheduler.depth, lambda: self.ready)
        self.scheduler = Scheduler(observe=self.metrics.batch, **scheduler)

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
        self._current = Snapshot(service, 1, self._jobs)

    def swap(self, change: Callable[[Service], Service], *, keeps_jobs: bool) -> Snapshot:
        """Replaces the snapshot by one of a changed service.

        Args:
          change: makes it of the current one.
          keeps_jobs: whether all that can be asked for must stay so.

        Raises:
          ApiError: 409, what is new does not fit. Nothing has changed then.
        """
        with self._lock:
            old = self.current
            try:
                new = Snapshot(change(old.service), old.version + 1, self._jobs)
                gone = old.handlers.keys() - new.handlers.keys()
                lost = sorted(f"'{task}' for {job}" for task, job in gone)
                if lost and keeps_jobs:
                    raise ConfigError(f"with these data nobody could ask {', '.join(lost)}")
            except (M6RecError, OSError, ValueError) as error:  # a name that no file may have
                raise ApiError(409, "cannot_be_changed", str(error)) from error
            self._current = new
            return new
