"""What a job is: one thing that the model does for a recommender, in one file of this folder.

A job says what it computes on the devices, how that becomes predictions and metrics, and how it
answers requests. `jobs()` finds jobs by the kind of a registered task; evaluation, the t5x bridge,
requests and the bank read it. A new job needs a new file here and nothing else.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.engine.decoding.generation import Generator
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.model import M6Rec

if TYPE_CHECKING:
    from m6rec_jax.jobs.answering import Handler
    from m6rec_jax.jobs.retrieval import Retrieval, RetrievalPredictions

Array = jax.Array
Variables = Mapping[str, Any]
Features = Mapping[str, Array]
# Outputs of all rows of a part, `{name: [rows, ...]}`.
Found = Mapping[str, np.ndarray]
Columns = dict[str, np.ndarray]
Row = Mapping[str, Any]


class ExampleScores(NamedTuple):
    """How good a model's predictions are, example by example.

    Attributes:
      name: of the score.
      users: of the examples, int64 `[n]`.
      values: higher is better, float64 `[n]`.
    """

    name: str
    users: np.ndarray
    values: np.ndarray


class TaskData(Protocol):
    """A registered task and the prepared rows of one part ('train', 'validation' or 'test'), see
    `pipeline.prepared_rows`.
    """

    name: str
    view: str
    part: str
    positive_classes: tuple[int, ...]  # whose probabilities add up to the score

    @property
    def repeats_count(self) -> bool: ...  # whether rows want items that the user had before
    def prepared(self) -> Prepared: ...
    def rows(
        self, columns: Sequence[str] | None = None, *, part: str = ""
    ) -> Iterator[dict[str, Any]]: ...  # in their order; of another part where one is named
    def user_names(self) -> Mapping[int, str]: ...  # ids by index in the users table
    def past_events(self) -> tuple[np.ndarray, np.ndarray]: ...  # users and items that rows see
    def past_items(self) -> list[np.ndarray]: ...  # of each row's user before it, oldest first
    def interactions(self, part: str) -> Any: ...


class Evaluation(Protocol):
    """One task being evaluated with one model, see `evaluation.evaluator`."""

    data: TaskData
    ks: tuple[int, ...]  # cut-offs of ranked lists; the longest is the length of the lists
    depth: int  # how many items to retrieve

    # The evaluated rows, those of all processes; of 'text_to_text' seqio's examples.
    def rows(self, columns: Sequence[str] | None = None) -> list[dict[str, Any]]: ...
    def outputs(self) -> Found: ...  # and identity, for all of these rows
    def past_items(self) -> list[np.ndarray]: ...  # see `TaskData`
    def retriever(self) -> Retriever: ...
    def index(self) -> CatalogueIndex: ...
    def generator(self) -> Generator: ...

    # What `make` gives, made once for the task and kept from one validation to the next.
    def once(self, key: Hashable, make: Callable[[], Any]) -> Any: ...
    def seqio_metrics(
        self, tokens: np.ndarray, log_probabilities: np.ndarray, scores: np.ndarray
    ) -> dict[str, float]: ...

    # What was retrieved, by the reranker that the evaluation has, if any, and cut to ks.
    def reranked(self, found: Retrieval) -> RetrievalPredictions: ...


class Job(abc.ABC):
    """One kind of task.

    Attributes:
      kind: name in the registry, and of registered tasks.
      needs: part of a model that it reads: 'classes', 'retrieval projections' or '' (see
        `task_settings.check_part`).
      tasks: of every data set of users, items and events: the suffix of the task's name, the view
        of its rows, and the function of `pipeline.preprocessors` that lays them out.
      identity: features returned beside the outputs, to say what each is of.
      has_scores: whether `t5x.infer` in 'score' mode has numbers of it, see `scores`.
      needs_text_metrics: whether its metrics need the libraries of `metrics.generation`.
      ranks_catalogue: whether it orders all items of the catalogue.
      handler: answers requests, see `answering`; None: there are none for this job.
      asked_of: kinds of tasks that requests may name; none: its own.
      on_request: whether a server answers it only where a task is for it or `serve.jobs` names it,
        since it takes programs of its own.
    """

    kind: ClassVar[str]
    needs: ClassVar[str] = ""
    tasks: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    identity: ClassVar[tuple[str, ...]] = ()
    has_scores: ClassVar[bool] = False
    needs_text_metrics: ClassVar[bool] = False
    ranks_catalogue: ClassVar[bool] = False
    handler: ClassVar[type[Handler] | None] = None
    asked_of: ClassVar[tuple[str, ...]] = ()
    on_request: ClassVar[bool] = False

    # On the devices.

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """What is computed of a batch, `{name: [rows, ...]}`; for use inside jit.

        Args:
          model, variables: the model.
          features: a batch of the task's rows.
        """
        raise NotImplementedError(self.kind)

    def scores(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """As `outputs`, for `t5x.infer`, where a batch does not say which task its rows are of."""
        return self.outputs(model, variables, features)

    # Evaluation.

    def predictions(self, data: TaskData, found: Found) -> Any:
        """Predictions, example by example, of the outputs and identity of all rows.

        Raises:
          DataError: there are no rows, or they are not of this job.
        """
        raise NotImplementedError(self.kind)

    def predict(self, evaluation: Evaluation) -> Any:
        """Predictions, example by example; overridden where they need more than the outputs.

        Raises:
          DataError: as `predictions`.
        """
        return self.predictions(evaluation.data, evaluation.outputs())

    @abc.abstractmethod
    def metrics(self, evaluation: Evaluation, predictions: Any) -> dict[str, float]:
        """Metrics of predictions.

        Raises:
          DataError: they are undefined, such as those of NaN.
        """

    def baselines(self, evaluation: Evaluation, predictions: Any) -> dict[str, dict[str, float]]:
        """Baseline to metrics on the same rows, without a model; none by default."""
        del evaluation, predictions
        return {}

    def example_scores(self, predictions: Any) -> ExampleScores:
        """How good each prediction is, by which two models are compared.

        Raises:
          ConfigError: this job has no such score.
        """
        del predictions
        raise ConfigError(
            f"tasks of kind '{self.kind}' have no score of single examples, so that two models "
            "cannot be compared; scoring and retrieval have"
        )

    @abc.abstractmethod
    def columns(self, data: TaskData, predictions: Any) -> Columns:
        """Columns of a file of predictions, `[n]` or `[n, m]`: ids and names in front."""

    def score_columns(self, data: TaskData, found: Found) -> Columns:
        """Columns of a file of `scores`."""
        return self.columns(data, self.predictions(data, found))

    # Requests.

    def may_be_asked_of(self, settings: TaskSettings) -> bool:
        """Whether requests for this job may name a task with these settings."""
        kinds = self.asked_of or (self.kind,)
        return settings.kind in kinds and not dialogue_part(settings)


def labelled(found: Found, job: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and decoder positions that have a label.

    Raises:
      DataError: there are none; the message asks whether the task is one of `job`.
    """
    rows, positions = np.nonzero(found["decoder_labels"] >= 0)
    if not len(rows):
        raise DataError(f"none of the rows has a label; is this a {job} task?")
    return rows, positions


def candidate_names(data: TaskData, users: np.ndarray, items: np.ndarray) -> Columns:
    """Ids and indices of users and candidates `[n]`: the first columns of their files."""
    known = data.user_names()
    ids = np.array([item.id for item in data.prepared().catalogue().items], object)
    return {
        "user_id": np.array([known[int(user)] for user in users], object),
        "item_id": ids[items],
        "user_index": users,
        "item_index": items,
    }


_JOBS: dict[str, Job] = {}


def register(job: type[Job]) -> type[Job]:
    """Class decorator: adds a job under its kind."""
    _JOBS[job.kind] = job()
    return job


def jobs() -> Mapping[str, Job]:
    """All jobs by kind, in the order of their names; the modules of this folder register theirs."""
    return dict(sorted(_JOBS.items()))


def job_of(kind: str) -> Job:
    """The job of a kind.

    Raises:
      ConfigError: no such job; names the nearest one.
    """
    if kind not in _JOBS:
        names = ", ".join(jobs())
        raise ConfigError(f"there is no job '{kind}'{did_you_mean(kind, _JOBS)}: {names}")
    return _JOBS[kind]
