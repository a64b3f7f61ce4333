"""Predictions of a task, example by example, and files of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.atomic import atomic_file
from m6rec_jax.io.json_text import json_text


@dataclasses.dataclass(frozen=True, slots=True)
class ScoringPredictions:
    """One entry per scored candidate.

    Attributes:
      users, items: int64 `[n]`, places in the users and the items table.
      labels: int64 `[n]`, 1 where the class is one of the positive ones.
      classes: int64 `[n]`, the class itself.
      probabilities: float64 `[n]`, of the positive classes.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """For `write_predictions`."""
        return {
            "user_index": self.users,
            "item_index": self.items,
            "label": self.labels,
            "class": self.classes,
            "probability": self.probabilities,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class RetrievalPredictions:
    """One entry per row of the task.

    Attributes:
      users: int64 `[n]`, places in the users table.
      targets: int64 `[n, m]`, wanted items; -1 is padding.
      ranks: int64 `[n, m]`, their ranks from 1 among all items but the seen ones; 0 is padding.
      top_items: int64 `[n, k]`, best first; -1 where fewer are left.
      scores: float32 `[n, k]`, cosine similarities, or what a reranker ordered by.
      num_ranked: int64 `[n]`, how many items were ranked, all but the seen ones.
    """

    users: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray
    top_items: np.ndarray
    scores: np.ndarray
    num_ranked: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """For `write_predictions`."""
        return {
            "user_index": self.users,
            "targets": self.targets,
            "ranks": self.ranks,
            "top_item_indices": self.top_items,
            "scores": self.scores,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class LanguagePredictions:
    """One entry per row of the task.

    Attributes:
      negative_log_likelihood: float64 `[n]`, Σ weight · -log p over the target tokens, in nats.
      correct: float64 `[n]`, Σ weight of the target tokens that are the likeliest ones.
      weight: float64 `[n]`, Σ weight.
    """

    negative_log_likelihood: np.ndarray
    correct: np.ndarray
    weight: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """For `write_predictions`."""
        return {
            "negative_log_likelihood": self.negative_log_likelihood,
            "correct": self.correct,
            "weight": self.weight,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ClassificationPredictions:
    """One entry per text.

    Attributes:
      texts: int64 `[n]`, places in the table of texts.
      labels: int64 `[n]`, classes.
      probabilities: float64 `[n, classes]`.
    """

    texts: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """For `write_predictions`."""
        return {
            "text_index": self.texts,
            "label": self.labels,
            "predicted": self.probabilities.argmax(axis=1),
            "probabilities": self.probabilities,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class LikelihoodPredictions:
    """One entry per scored candidate.

    Attributes:
      users, items: int64 `[n]`, places in the users and the items table.
      labels: int64 `[n]`, 0 or 1.
      scores: float64 `[n]`, mean log probability of the tokens that count, in nats.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """For `write_predictions`."""
        return {
            "user_index": self.users,
            "item_index": self.items,
            "label": self.labels,
            "score": self.scores,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationPredictions:
    """One entry per text.

    Attributes:
      rows: of the view, in its order.
      texts: what was written, without the prefix.
      log_probabilities: float64 `[n]`, of what was written.
      ended: bool `[n]`, False where a text was cut off at the longest length.
      language: how likely the references are.
    """

    rows: Sequence[Mapping[str, Any]]
    texts: Sequence[str]
    log_probabilities: np.ndarray
    ended: np.ndarray
    language: LanguagePredictions

    def columns(self) -> dict[str, np.ndarray]:
        """For `write_predictions`: source, beginning, reference and text, to be read."""
        named = ("text_id", "user_id", "prefix", "target")
        columns = {name: np.array([row[name] for row in self.rows], object) for name in named}
        columns["reference"] = columns.pop("target")
        return columns | {
            "written": np.array(self.texts, object),
            "log_probability": self.log_probabilities,
            "ended": self.ended,
            "source": _read_together(self.rows),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class RecommendationPredictions:
    """One entry per recommended item of a dialogue.

    Attributes:
      rows: of the view 'recommendations'.
      top_items: int64 `[n, k]`, best first, without items named before; -1 where fewer are left.
      scores: float32 `[n, k]`, log probabilities of titles or cosine similarities.
      ranks: int64 `[n]`, of the item among all items.
      new_ranks: int64 `[n]`, of the item among those that were not named before.
      language: how likely the titles are, where they are written.
    """

    rows: Sequence[Mapping[str, Any]]
    top_items: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    new_ranks: np.ndarray
    language: LanguagePredictions | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """For `write_predictions`."""
        named = ("text_id", "user_id", "target")
        columns = {name: np.array([row[name] for row in self.rows], object) for name in named}
        columns["title"] = columns.pop("target")
        return columns | {
            "ranks": self.ranks,
            "new_ranks": self.new_ranks,
            "top_item_indices": self.top_items,
            "scores": self.scores,
            "source": _read_together(self.rows),
        }


def _read_together(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array(["\n".join(filter(None, row["source"])) for row in rows], object)


Predictions = (
    ScoringPredictions
    | RetrievalPredictions
    | LanguagePredictions
    | ClassificationPredictions
    | LikelihoodPredictions
    | GenerationPredictions
    | RecommendationPredictions
)


def check_ending(path: str | epath.Path) -> None:
    """Raises ConfigError where `write_predictions` knows no such format."""
    if epath.Path(path).suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"{path}: predictions are written as .parquet or .jsonl")


def write_predictions(path: str | epath.Path, columns: Mapping[str, np.ndarray]) -> epath.Path:
    """Writes columns of equal length as `.parquet` or `.jsonl`, whole or not at all.

    Args:
      path: the file, which may be a bucket address; its folder is made when missing.
      columns: `[n]`, or `[n, m]` for a list per row.

    Raises:
      ConfigError: another ending.
    """
    check_ending(path)
    path = epath.Path(path)
    if path.suffix == ".parquet":
        # Files of a bucket are no files to pyarrow.
        sink = pa.BufferOutputStream()
        pq.write_table(_table(columns), sink, compression="zstd")
        contents: Iterable[bytes] = (sink.getvalue().to_pybytes(),)
    else:
        contents = (line.encode() for line in json_lines(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        for part in contents:
            file.write(part)
    return path


def json_lines(columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Columns of equal length as JSON objects, one per line; null for scores of no item."""
    for row in _table(columns).to_pylist():
        yield json_text(row) + "\n"


def _table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    return pa.table({name: _arrow(values) for name, values in columns.items()})


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    kind = pa.string() if values.dtype == object else pa.from_numpy_dtype(values.dtype)
    return pa.array(values.tolist(), pa.list_(kind))
