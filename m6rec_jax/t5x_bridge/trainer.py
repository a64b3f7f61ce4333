"""Gradient accumulation that equals the whole batch's step.

t5x adds up the gradients of microbatches, as if losses were sums. Ours are means over tokens,
labels or items, of which microbatches have unequal numbers. So the counts of the whole batch go
along with every row, and the losses of the microbatches add up to that of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cached_property
import gin
import jax
import jax.numpy as jnp
from t5x import trainer

from m6rec_jax.sharding.processes import are_joined
from m6rec_jax.training.preemption import PreemptionGuard

Array = jax.Array
_PREFIX = "counts/"


@gin.configurable
class M6RecTrainer(trainer.Trainer):
    """t5x's trainer with its arguments; see the module's docstring."""

    def compile_train(self, batch: Mapping[str, Any]) -> None:
        """As t5x's; between steps a run of joined processes then heeds SIGTERM.

        t5x saves a checkpoint when a step raises PreemptionError, which nothing of it does.
        """
        super().compile_train(batch)
        if not are_joined():
            return
        compiled: Any = self._compiled_train_step
        guard = PreemptionGuard()

        def step(train_state: Any, batch: Mapping[str, Array]) -> Any:
            after, metrics = compiled(train_state, batch)
            if guard.stopped_by():
                self.train_state = after
                raise trainer.PreemptionError("SIGTERM")
            return after, metrics

        self._compiled_train_step: Any = step

    @cached_property.cached_property
    def _partitioned_train_step(self) -> Any:
        def step(train_state: Any, batch: Mapping[str, Array]) -> Any:
            return trainer.train_with_lr(
                train_state,
                with_counts(batch, self._model.loss_counts(train_state.params, batch)),
                learning_rate=self._learning_rate_fn(train_state.step),
                dropout_rng=self._get_step_rng(train_state.step),
                model=self._model,
                num_microbatches=self._num_microbatches,
                weight_metrics_computer=self._weight_metrics_computer,
                data_partition_spec=self._partitioner.data_partition_spec,
            )

        return self._partitioner.partition(
            step,
            in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
            out_axis_resources=(self._train_state_axes, None),
            donate_argnums=(0,),
        )


def with_counts(batch: Mapping[str, Array], counts: Mapping[str, Array]) -> dict[str, Array]:
    """The batch with what its losses are divided by, `[rows]` each, which microbatches keep."""
    rows = next(iter(batch.values())).shape[0]
    return {
        **batch,
        **{_PREFIX + name: jnp.broadcast_to(value, (rows,)) for name, value in counts.items()},
    }


def without_counts(
    batch: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """Features, and the counts of the batch that they are of; None: of themselves."""
    features = {name: x for name, x in batch.items() if not name.startswith(_PREFIX)}
    counts = {name.removeprefix(_PREFIX): batch[name][0] for name in batch.keys() - features.keys()}
    return features, counts or None
