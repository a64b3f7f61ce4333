"""What the vocabulary and the data of a registered task are."""

from __future__ import annotations

from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.pipeline.task_rows import find_provider
from m6rec_jax.text.vocabulary import Vocabulary


def task_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a registered task or mixture."""
    features = find_provider(name).output_features
    vocabulary: Vocabulary = features["encoder_input_tokens"].vocabulary.text
    return vocabulary


def sampling_rate(task: TaskInfo) -> float:
    """Share of the negatives that a scoring task's data hold; 1 for logged impressions."""
    view = task.prepared().manifest["views"].get(task.view, {})
    return float(view.get("negatives", {}).get("sampling_rate", 1.0))
