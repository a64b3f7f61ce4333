"""The jitted functions of evaluation, and gathering what they return over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.likelihood import mean_target_log_probabilities, token_sums
from m6rec_jax.engine.retrieval import user_embeddings
from m6rec_jax.engine.runtime import Runtime, read_back
from m6rec_jax.engine.scoring import class_log_probabilities, positive_probability
from m6rec_jax.model import M6Rec

Array = jax.Array
Batch = Mapping[str, np.ndarray]
Program = Callable[[Mapping[str, Any], Mapping[str, Array]], dict[str, Array]]


def scoring_program(model: M6Rec, runtime: Runtime, positive_classes: tuple[int, ...]) -> Program:
    """Probability of the positive classes at every decoder position, `[rows, target]`."""

    def run(variables: Mapping[str, Any], features: Mapping[str, Array]) -> dict[str, Array]:
        log_probabilities = class_log_probabilities(model, variables, features)
        return {
            "probability": positive_probability(log_probabilities, positive_classes),
            **_identity(features, "decoder_labels", "decoder_item_ids", "user_ids"),
        }

    return runtime.jit(run)


def retrieval_program(model: M6Rec, runtime: Runtime) -> Program:
    """Embedding of every row's user, `[rows, retrieval]`."""

    def run(variables: Mapping[str, Any], features: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "user": user_embeddings(model, variables, features),
            **_identity(features, "decoder_item_ids", "user_ids"),
        }

    return runtime.jit(run)


def language_program(model: M6Rec, runtime: Runtime) -> Program:
    """Sums over the target tokens of every row, `[rows]`."""

    def run(variables: Mapping[str, Any], features: Mapping[str, Array]) -> dict[str, Array]:
        return token_sums(model, variables, features)._asdict() | _identity(features)

    return runtime.jit(run)


def classification_program(model: M6Rec, runtime: Runtime) -> Program:
    """Log probability of every class at every decoder position, `[rows, target, classes]`."""

    def run(variables: Mapping[str, Any], features: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "log_probabilities": class_log_probabilities(model, variables, features),
            **_identity(features, "decoder_labels", "decoder_item_ids"),
        }

    return runtime.jit(run)


def likelihood_program(model: M6Rec, runtime: Runtime) -> Program:
    """Mean log probability of the tokens that count in each packed text, `[rows, target]`."""

    def run(variables: Mapping[str, Any], features: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "score": mean_target_log_probabilities(model, variables, features),
            **_identity(features, "decoder_labels", "decoder_item_ids", "user_ids"),
        }

    return runtime.jit(run)


def run_program(
    program: Program, variables: Mapping[str, Any], batches: Iterable[Batch], runtime: Runtime
) -> dict[str, np.ndarray]:
    """Runs a program over batches; returns its results for all rows that are not filling.

    With several processes each gives its own rows, and every process gets the results of all.

    Returns:
      `{name: [rows, ...]}`.
    """
    results = (program(variables, runtime.place(batch)) for batch in batches)
    parts: dict[str, list[np.ndarray]] = {}
    for values in read_back(results):
        real = values.pop("example_weights") > 0
        for name, value in values.items():
            parts.setdefault(name, []).append(value[real])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _identity(features: Mapping[str, Array], *names: str) -> dict[str, Array]:
    """Features handed through, so that they come back for the rows of all processes."""
    return {name: jnp.asarray(features[name]) for name in ("example_weights", *names)}
