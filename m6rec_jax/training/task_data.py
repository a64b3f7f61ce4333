"""The batches of a registered task: what the loop reads unless it is given another source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from m6rec_jax.training.data_state import Batch, ResumableBatches

# (mixture_or_task_name, feature_lengths, batch_size, process_index=, process_count=) -> batches
MakeBatches = Callable[..., ResumableBatches]
MakeEvaluationBatches = Callable[..., Iterable[Batch]]


def training_batches(
    name: str, feature_lengths: Mapping[str, int], batch_size: int, make: MakeBatches | None
) -> ResumableBatches:
    """This process's part of the training batches; `make` None: `pipeline.BatchIterator`."""
    if make is None:
        from m6rec_jax.pipeline.batches import BatchIterator  # imports tensorflow

        make = BatchIterator
    return make(name, feature_lengths, batch_size, **_process())


def validation_batches(
    name: str,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    make: MakeEvaluationBatches | None,
) -> Iterable[Batch]:
    """This process's part of one pass; `make` None: `pipeline.EvaluationBatches`."""
    if make is None:
        from m6rec_jax.pipeline.batches import EvaluationBatches

        make = EvaluationBatches
    return make(name, feature_lengths, batch_size, **_process())


def vocabulary_of(name: str, make: MakeBatches | None) -> str | None:
    """Fingerprint of a registered task's vocabulary; None for batches of another source."""
    if make is not None and "pipeline" not in getattr(make, "__module__", ""):
        return None
    from m6rec_jax.pipeline.batches import find_provider

    for feature in find_provider(name).output_features.values():
        text = getattr(feature.vocabulary, "text", None)
        if text is not None:
            return text.fingerprint
    return None


def _process() -> dict[str, Any]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
