"""The metrics of `m6rec eval`, by `t5x.eval` and while `t5x.train` runs.

    evaluate.inference_evaluator_cls = @T5xEvaluator
    T5xEvaluator.model = %MODEL
    T5xEvaluator.task_feature_lengths = %TASK_FEATURE_LENGTHS

seqio's own evaluator compares each row's prediction with its target. That gives no ranking over
the whole catalogue, where items are embedded once and a row has several candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import gin
import jax
import seqio
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.sharding import MESH_AXES
from m6rec_jax.t5x_bridge import variables
from m6rec_jax.t5x_bridge.data import T5xFeatureConverter
from m6rec_jax.t5x_bridge.model import M6RecModel

# Ours by t5x's. Rows are split over 'data' there, and slices are 'replica'.
_AXES = {"replica": "data", "data": "fsdp", "model": "tensor"}

Metrics = dict[str, dict[str, float]]


@gin.configurable
class T5xEvaluator:
    """Stands where t5x expects `seqio.Evaluator`.

    Args:
      mixture_or_task_name, eval_split, log_dir, logger_cls, unused: as t5x gives them.
      model: of the run.
      task_feature_lengths, batch_size, limit: see `evaluation.evaluator.Evaluator`.
    """

    def __init__(
        self,
        mixture_or_task_name: str,
        eval_split: str = "validation",
        log_dir: str | None = None,
        logger_cls: Sequence[Callable[..., Any]] = (
            seqio.PyLoggingLogger,
            seqio.TensorBoardLogger,
            seqio.JSONLogger,
        ),
        *,
        model: M6RecModel,
        task_feature_lengths: Mapping[str, int],
        batch_size: int = 32,
        limit: int = 0,
        **unused: Any,
    ) -> None:
        del unused
        self._model = model.module
        self._name, self._split, self._limit = mixture_or_task_name, eval_split, limit
        self._lengths, self._batch_size = dict(task_feature_lengths), batch_size
        self._loggers = [make(log_dir) for make in logger_cls]
        self._evaluator: Evaluator | None = None  # needs t5x's mesh

    @property
    def eval_tasks(self) -> Sequence[TaskInfo | str]:
        """t5x evaluates nothing where there are none."""
        return [self._name]

    @property
    def model_feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one row."""
        lengths = T5xFeatureConverter().get_model_feature_lengths(self._lengths)
        return {name: (length,) for name, length in lengths.items()}

    def evaluate(
        self, *, compute_metrics: bool, step: int | None = None, score_fn: Any, **unused: Any
    ) -> tuple[Future[Metrics], dict[str, Any]]:
        """Metrics by task, and no predictions; the parameters are taken from t5x's `score_fn`.

        `compute_metrics` (true on process 0) says whether they are written, at `step`.
        """
        params = _params_of(score_fn)
        mesh = _own_mesh(params)
        if self._evaluator is None:
            self._evaluator = Evaluator(
                self._name,
                self._lengths,
                self._batch_size,
                split=self._split,
                limit=self._limit,
                mesh=mesh,
            )
        own = variables.split(jax.tree.map(lambda leaf: _moved(leaf, mesh), dict(params)))
        metrics: Metrics = {}
        for task in self._evaluator.tasks:
            predicted = self._evaluator.predict(task, self._model, own)
            # By all processes: rows are counted over them.
            metrics[task.name] = self._evaluator.metrics(task, predicted)
            if not compute_metrics:
                continue
            scalars = {k: seqio.metrics.Scalar(v) for k, v in metrics[task.name].items()}
            for logger in self._loggers:
                logger(task.name, step, scalars, None, None, None)
        future: Future[Metrics] = Future()
        future.set_result(metrics)
        return future, {}

    def close(self) -> None:
        """Nothing runs in the background."""


def _params_of(score_fn: Any) -> Mapping[str, Any]:
    state = getattr(score_fn, "keywords", {}).get("train_state")
    if state is None:
        raise ConfigError(
            "T5xEvaluator got a score function without a train state; it is made for t5x's eval "
            "and train"
        )
    return state.params


def _own_mesh(params: Mapping[str, Any]) -> Mesh:
    """Our mesh of the devices that parameters lie on, in t5x's order."""
    theirs = jax.tree.leaves(dict(params))[0].sharding.mesh
    sizes = {_AXES[name]: size for name, size in theirs.shape.items()}
    shape = [sizes.get(name, 1) for name in MESH_AXES]
    return Mesh(
        theirs.devices.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def _moved(leaf: jax.Array, mesh: Mesh) -> jax.Array:
    """The same pieces on the same devices, under our names of the mesh's axes."""

    def renamed(axes: Any) -> Any:
        if axes is None:
            return None
        return _AXES[axes] if isinstance(axes, str) else tuple(_AXES[axis] for axis in axes)

    assert isinstance(leaf.sharding, NamedSharding)
    spec = PartitionSpec(*map(renamed, leaf.sharding.spec))
    return jax.device_put(leaf, NamedSharding(mesh, spec))
