"""Which job answers the requests for a task, and what it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from m6rec_jax.engine.bundle import Bundle
from m6rec_jax.engine.index_files import open_index
from m6rec_jax.engine.task_settings import TaskSettings, task_settings
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.likelihood_job import LikelihoodJob
from m6rec_jax.jobs.recommendation_job import RecommendationJob
from m6rec_jax.jobs.request_jobs import RequestJob, RetrievalJob, ScoringJob
from m6rec_jax.jobs.writing_job import WritingJob
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.serving_data import ServingData


@dataclasses.dataclass(frozen=True)
class JobParts:
    """What jobs are made of.

    Attributes:
      bundle: of the model.
      data: what requests are told with.
      task: by name.
      shapes: `batch_sizes`, `source_buckets` and `target_buckets`, one of each.
      index: folder of an index; None: there is none.
      approximate: search the index's graph.
    """

    bundle: Bundle
    data: ServingData
    task: str
    shapes: Mapping[str, Any]
    index: str | None = None
    approximate: bool = False

    @property
    def settings(self) -> TaskSettings:
        """Of the task."""
        return task_settings(self.bundle.settings.tasks, self.task)

    def renderer(self, *, candidates: bool = True) -> RequestRenderer:
        """Tells requests as the task was trained to read them."""
        spec = self.bundle.saved_dataset_spec(self.task) or {}
        # A data set that the task was not trained on has a history's length of its own.
        own = self.data.spec.name == spec.get("name")
        max_events = self.settings.max_events if own else self.data.max_events
        return RequestRenderer(
            self.data.template, self.data.statistics, max_events, tell_candidates=candidates
        )

    @property
    def writing_shapes(self) -> dict[str, Any]:
        """Of a generator, which has one length of texts."""
        return {name: sizes for name, sizes in self.shapes.items() if name != "target_buckets"}


def make_job(job: str, parts: JobParts) -> RequestJob:
    """Makes a job.

    Args:
      job: of `JOBS`.
      parts: what it is made of.

    Raises:
      ConfigError: the model or the task is none for it, or something is missing.
      CheckpointError: an index of another model.
      DataError: a catalogue without what the job needs.
    """
    return _MAKE[job](parts)


def job_of(bundle: Bundle, task: str, job: str | None = None) -> str:
    """The job that is asked for, one of `JOBS`.

    Args:
      bundle: of the model.
      task: by name.
      job: by name; None: what the task is for, as its settings say, or as the model is built.

    Raises:
      ConfigError: no such task, or no such job.
    """
    job = job or _kind(bundle, task_settings(bundle.settings.tasks, task).kind)
    if job not in JOBS:
        raise ConfigError(
            f"requests are answered by {', '.join(JOBS)}, not by {job!r}; name one of these jobs "
            "with --gin.JOB=NAME"
        )
    return job


def _kind(bundle: Bundle, kind: str) -> str:
    if kind == "generation":
        return "writing"
    if kind:
        return kind
    prompts = bundle.model.config.prompts
    scores, retrieves = prompts.head != "none", bool(prompts.retrieval_dim)
    if scores == retrieves:
        raise ConfigError(
            "the model folder does not say whether its task is scoring or retrieval; name the job "
            "with --gin.JOB=NAME"
        )
    return "scoring" if scores else "retrieval"


def _scoring(parts: JobParts) -> RequestJob:
    if parts.settings.view == "reranking":
        raise ConfigError(
            "tasks of reranking answer no requests: their candidates are told by what is near the "
            "user's last items, which only `m6rec eval` with RERANKER looks up; name a task of "
            "scoring, such as <name>_ctr"
        )
    return ScoringJob(parts.bundle.scorer(parts.task, **parts.shapes), parts.renderer())


def _retrieval(parts: JobParts) -> RequestJob:
    if parts.index is None:
        raise ConfigError(
            "retrieval needs an index of the catalogue: make one with `m6rec index build`, and "
            "name it with --index FOLDER"
        )
    bundle = parts.bundle
    stored = open_index(
        parts.index,
        bundle.fingerprint(parts.task),
        approximate=parts.approximate,
        mesh=bundle.mesh,
    )
    return RetrievalJob(bundle.retriever(parts.task, **parts.shapes), stored, parts.renderer())


def _likelihood(parts: JobParts) -> RequestJob:
    scorer = parts.bundle.likelihood_scorer(parts.task, **parts.shapes)
    renderer = parts.renderer(candidates=not scorer.sentence.as_item)
    return LikelihoodJob(scorer, renderer, parts.data.template)


def _writing(parts: JobParts) -> RequestJob:
    kind, known = parts.settings.writing, parts.data.template.writing
    if kind not in known:
        raise ConfigError(
            f"the template of {parts.data.spec.name!r} says nothing of {kind or 'texts'!r} in "
            f"'writing' (it has: {', '.join(known) or 'none'}); is the task one of "
            "register_writing_tasks?"
        )
    generator = parts.bundle.generator(parts.task, **parts.writing_shapes)
    return WritingJob(generator, parts.renderer(candidates=False), known[kind])


def _recommendation(parts: JobParts) -> RequestJob:
    beside = _retrieval_beside(parts)
    return RecommendationJob(
        parts.bundle.generator(parts.task, **parts.writing_shapes),
        parts.renderer(candidates=False),
        parts.data.template,
        parts.settings.writing,
        parts.data.items,
        None if beside is None else parts.bundle.retriever(beside, **parts.shapes),
        "" if beside is None else parts.bundle.fingerprint(beside),
    )


def _retrieval_beside(parts: JobParts) -> str | None:
    """The task with two towers of the same data; None where none is, or nobody knows which."""
    tasks = parts.bundle.settings.tasks
    names = [
        name
        for name, own in tasks.items()
        if own.kind == "retrieval" and own.prepared == parts.settings.prepared
    ]
    if len(names) != 1 or not parts.bundle.model.config.prompts.retrieval_dim:
        return None
    return names[0]


_MAKE: Mapping[str, Callable[[JobParts], RequestJob]] = {
    "scoring": _scoring,
    "retrieval": _retrieval,
    "likelihood": _likelihood,
    "writing": _writing,
    "recommendation": _recommendation,
}
JOBS = tuple(_MAKE)
