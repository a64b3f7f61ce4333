"""Answers requests: the one way in for files, the chat, notebooks and servers.

    options = ServiceOptions(index="runs/films.index")
    service = Service.open("runs/ctr", bank="runs/bank", options=options)
    service.warm_up()
    accepted = service.accept({"time": ..., "history": [...], "candidates": [...]}, task="ctr")
    results = service.answer([accepted])

A batch may hold requests of several tasks and jobs. Nothing is kept of a request, so threads may
share a service; after `warm_up` nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from m6rec_jax.bank.loading import load_with_bank
from m6rec_jax.engine.task_settings import dialogue_part, task_name
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.answering import Accepted, Answer, Handler, grouped
from m6rec_jax.jobs.job import job_of, jobs
from m6rec_jax.jobs.resources import INDEXED, Resources, ServiceOptions
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.sharding import LogicalRules, make_mesh


class UnknownTask(ConfigError):
    """The model has no task of a name."""


class Service(Resources):
    """Answers requests with a state of a model; `open` loads one, `changed` makes another."""

    @classmethod
    def open(
        cls,
        model_dir: str | Path,
        *,
        bank: str | Path | None = None,
        step: int | None = None,
        rules: LogicalRules = (),
        options: ServiceOptions | None = None,
    ) -> Service:
        """Loads a run, or the tasks of a bank on the backbone of a run.

        Args:
          model_dir: of a training run; with a bank, of one that has its tasks' backbone.
          bank: folder of a prompt bank; None: the run's own tasks.
          step: which checkpoint; None: the newest.
          rules: logical-axis rules, by which the model lies over the mesh of `make_mesh` (gin);
            none: it is on the default device.
          options: see `ServiceOptions`.

        Raises:
          CheckpointError: no model, or a bank of another backbone.
          ConfigError: an index of a task that there is not.
        """
        mesh, options = make_mesh() if rules else None, options or ServiceOptions()
        loaded = load_with_bank(model_dir, bank=bank, step=step, mesh=mesh, rules=rules)
        if options.segments is not None:
            loaded.use_segments(options.segments)
        return cls(loaded, options)

    def task(self, name: str | None = None, job: str | None = None) -> str:
        """The task that is meant: the one named, or the only one that the job can be asked of.

        Raises:
          UnknownTask: there is none of this name; names the nearest one.
          ConfigError: several fit, or none.
        """
        tasks = self.model.settings.tasks
        if name and name not in tasks:
            known = ", ".join(sorted(tasks)) or "none"
            hint = did_you_mean(name, tasks)
            raise UnknownTask(f"the model has no task '{name}'{hint}: {known}")
        if name or len(tasks) == 1 or job is None:
            return task_name(tasks, name or "")
        fitting = [task for task, own in tasks.items() if job_of(job).may_be_asked_of(own)]
        for names in ([task for task in fitting if tasks[task].kind == job], fitting):
            if len(names) == 1:
                return names[0]
        raise ConfigError(
            f"{len(fitting) or 'none'} of the model's tasks can be asked for '{job}'; name one of "
            f"them: {', '.join(sorted(fitting or tasks))}"
        )

    def job(self, task: str, job: str | None = None) -> str:
        """The job that is meant: the one named, or what the task is for.

        Raises:
          ConfigError: no such job, or one that answers no requests; names the nearest one.
        """
        settings = self.settings(task)
        if part := dialogue_part(settings):
            raise ConfigError(
                f"'{task}' is a task of dialogues ({part}): it reads turns, not behaviours. `m6rec "
                "chat` talks with the model"
            )
        name, known = job or settings.kind, [kind for kind, one in jobs().items() if one.handler]
        if name not in known:
            raise ConfigError(
                f"requests are answered by {', '.join(known)}, not by '{name}'"
                f"{did_you_mean(name, known)}; name one of these jobs (--gin.JOB=NAME)"
            )
        return name

    def accept(
        self,
        row: Mapping[str, Any],
        *,
        task: str | None = None,
        job: str | None = None,
        number: int = 0,
    ) -> Accepted | RejectedRow:
        """Checks and renders a request.

        Args:
          row: see `requests.request`.
          task, job: which are asked; None: the only one, and what the task is for.
          number: of the row in its file, from 0; what is drawn at random depends on it.

        Returns:
          What `answer` takes, or why the request cannot be answered.

        Raises:
          ConfigError, CheckpointError, DataError: there is no such task or job, or something that
            it needs is missing; no request for it could be answered.
        """
        task = self.task(task, job)
        try:
            return self.handler(task, self.job(task, job)).accept(row, number)
        except RejectedRow as problem:
            return problem

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        """Answers requests of any tasks and jobs, in their order.

        Raises:
          DataError: the model answers with NaN.
        """
        return grouped(
            accepted, lambda one: one.handler.group, lambda _, part: part[0].handler.answer(part)
        )

    def handler(self, task: str, job: str) -> Handler:
        """What answers a task's requests for a job; errors as `Handler`."""
        make = job_of(job).handler
        assert make is not None  # which `job` says
        return self.once(("handler", task, job), lambda: make(self, task))

    def warm_up(self, pairs: Iterable[tuple[str, str]] | None = None) -> None:
        """Compiles every program that requests may run, and reads the data that they need.

        Args:
          pairs: tasks and jobs; None: `answerable`.
        """
        pairs = self.answerable() if pairs is None else pairs
        for handler in [self.handler(task, job) for task, job in pairs]:
            handler.warm_up()
        segments = self.model.segments
        if segments is not None:  # all engines compute them, and not all warm them up
            self.warm_once("segments", lambda: segments.warm_up(self.model.variables))

    def answerable(self) -> list[tuple[str, str]]:
        """Each task with the job that it is for, as far as that answers requests and needs no more
        than there is.
        """
        kinds = {name for name, job in jobs().items() if job.handler}
        return [
            (task, settings.kind)
            for task, settings in self.model.tasks.items()
            if settings.kind in kinds
            and not dialogue_part(settings)
            and (settings.kind not in INDEXED or task in self.indexes)
        ]
