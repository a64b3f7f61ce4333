"""What a frozen foundation tells of a text by itself: linear models of its embeddings and states.

    python -m benchmarks.frozen_states [--foundations runs/foundation runs/foundation_answers]
        [--tasks film_reviews_sentiment film_plots_genre]

For every task of the study of tuning that asks about a text, a logistic regression on

    pieces              which pieces of the vocabulary stand in the text; needs no foundation
    mean of embeddings  of the text's pieces, a foundation's
    state at [EOS]      of the question, the foundation frozen: what a linear probe is given

with the penalty that does best on the validation part. A tuning method that leaves the backbone as
it is starts from the last line; full fine-tuning can make its way back to the first. The test
part's figures go to `benchmarks/results/frozen_states.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from benchmarks.command_line import errors_told
from benchmarks.piece_bags import piece_bags
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from benchmarks.tuned_run import backbone_of
from benchmarks.tuning import files_of
from m6rec_jax import configuration
from m6rec_jax.engine.model_folder import restore_model
from m6rec_jax.errors import DataError
from m6rec_jax.metrics.classification import multiclass_metrics
from m6rec_jax.pipeline.evaluation_batches import EvaluationBatches

RESULTS = "frozen_states"
TASKS = ("film_reviews_sentiment", "film_plots_genre")
PARTS = ("train", "validation", "test")
# Inverse strengths, wide enough that validation chooses neither end.
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)
BATCH_SIZE = 64

# [n, features] of each part.
Features = Mapping[str, np.ndarray | sparse.csr_matrix]


def linear_model(features: Features, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Figures of the test part of the logistic regression that does best on the validation part.

    Args:
      features: `[n, features]` of each of `PARTS`.
      labels: int `[n]` of each.

    Returns:
      `auc`, `accuracy` and the others of `multiclass_metrics`, and the `inverse_penalty` chosen.
    """
    sparse_ones = sparse.issparse(features["train"])
    scaler = (MaxAbsScaler() if sparse_ones else StandardScaler()).fit(features["train"])
    scaled = {part: scaler.transform(features[part]) for part in PARTS}
    classes = 1 + max(int(labels[part].max()) for part in PARTS)

    def probabilities(model: LogisticRegression, part: str) -> np.ndarray:
        found = np.zeros((len(labels[part]), classes))
        found[:, model.classes_] = model.predict_proba(scaled[part])
        return found

    best: tuple[float, float, LogisticRegression] | None = None
    for inverse in PENALTIES:
        model = LogisticRegression(C=inverse, max_iter=2_000).fit(scaled["train"], labels["train"])
        auc = multiclass_metrics(labels["validation"], probabilities(model, "validation"))["auc"]
        if best is None or auc > best[0]:
            best = (auc, inverse, model)
    assert best is not None
    _, inverse, model = best
    figures = multiclass_metrics(labels["test"], probabilities(model, "test"))
    return {**figures, "inverse_penalty": inverse}


def frozen_states(
    foundation: Path, task: str, lengths: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(mean of the source's embeddings, state at the question's `[EOS]`) `[n, embed]` by part.

    Args:
      foundation: MODEL_DIR of one task's model, as it is.
      task: name of a registered classification task.
      lengths: `{"inputs": S, "targets": T}`.

    Raises:
      CheckpointError: there is no checkpoint.
      DataError: the task's data are not prepared.
    """
    restored = restore_model(foundation)
    model, variables = restored.model, restored.variables

    @jax.jit
    def read(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        tokens, task_ids = batch["encoder_input_tokens"], batch["task_ids"].reshape(-1)
        vectors = model.apply(variables, tokens, task_ids, method=model.embed)
        held = (batch["encoder_block_ids"] > 0)[..., None]
        mean = jnp.sum(vectors * held, 1) / jnp.maximum(jnp.sum(held, 1), 1)
        outputs = model.apply(variables, batch)
        place = jnp.argmax(batch["decoder_labels"], axis=1)
        return mean, outputs.hidden[jnp.arange(len(place)), place]

    means: dict[str, np.ndarray] = {}
    states: dict[str, np.ndarray] = {}
    for part in PARTS:
        found = []
        for batch in EvaluationBatches(task, lengths, BATCH_SIZE, split=part, limit=0):
            real = batch["decoder_labels"].max(axis=1) >= 0
            numbers = {name: values for name, values in batch.items() if values.ndim == 2}
            found.append([np.asarray(values, np.float32)[real] for values in read(numbers)])
        means[part], states[part] = (np.concatenate(values) for values in zip(*found, strict=True))
    return means, states


def measure(task: str, foundations: Sequence[Path]) -> None:
    """Adds the rows of a task."""
    unused = [f"{name}='unused'" for name in ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH")]
    configuration.parse_config(files_of(task, "linear_probe"), unused)
    name: str = configuration.macro("MIXTURE_OR_TASK_NAME")
    lengths: Mapping[str, int] = configuration.macro("TASK_FEATURE_LENGTHS")
    vocab_size = restore_model(foundations[0]).model.config.vocab_size
    bags = {part: piece_bags(name, lengths, part, vocab_size) for part in PARTS}
    labels = {part: found.classes for part, found in bags.items()}

    def add(model: str, features: Features, **known: Any) -> None:
        figures = linear_model(features, labels)
        rows = metric_rows(
            {metric: figures[metric] for metric in ("auc", "accuracy", "inverse_penalty")},
            model=model,
            dataset=task,
            split="test",
            seed=None,
            config="logistic regression (scikit-learn), penalty by validation",
        )
        add_rows(results_path(RESULTS), [row | known for row in rows])
        print(f"{task}, {model}: AUC {figures['auc']:.4f}")

    add("pieces", {part: found.pieces for part, found in bags.items()})
    for foundation in foundations:
        means, states = frozen_states(foundation, name, lengths)
        known = {"foundation": backbone_of(foundation)}
        add(f"{foundation.name}, mean of embeddings", means, **known)
        add(f"{foundation.name}, state at [EOS]", states, **known)


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Linear models of a frozen foundation.")
    runs = ROOT / "runs"
    parser.add_argument(
        "--foundations",
        nargs="+",
        type=Path,
        default=[runs / "foundation", runs / "foundation_answers"],
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    options = parser.parse_args(arguments)
    names = [path.name for path in options.foundations]
    if len(set(names)) < len(names):
        raise DataError(f"foundations need names of their own, not {', '.join(names)}")
    for task in options.tasks:
        measure(task, [path.resolve() for path in options.foundations])
    return 0


if __name__ == "__main__":
    sys.exit(main())
