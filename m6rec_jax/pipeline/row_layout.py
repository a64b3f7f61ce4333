"""How a task's rows are laid out: from the columns of a view to tokens, as a seqio preprocessor.

A preprocessor is a function of a `RowLayout` and of settings that returns a function from columns
to a row, which `preprocessor` turns into one of seqio's:

    @preprocessor("source", "target")
    def generation_rows(layout):
        return lambda example: layout.generation([example["source"]], example["target"])

Rows have every feature of `pipeline.features.TASK_FEATURES`. They are made by `m6rec_jax.text.rows`
within `tf.numpy_function(stateful=False)`: training runs the code that serving runs, and tf.data
can save its iterators.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.source import SeqioVocabulary, numpy_map, python_value
from m6rec_jax.text import rows
from m6rec_jax.text.layout import Row, pad_batch
from m6rec_jax.text.rows import Text
from m6rec_jax.text.vocabulary import Vocabulary

Example = Mapping[str, Any]
# Of an example, or of one and a generator.
MakeRows = Callable[..., Row | list[Row]]

_FOR_TRAINING = contextvars.ContextVar("rows are made for training", default=False)


@contextlib.contextmanager
def training_rows() -> Iterator[None]:
    """Pipelines built inside may vary their rows at random (word dropout)."""
    token = _FOR_TRAINING.set(True)
    try:
        yield
    finally:
        _FOR_TRAINING.reset(token)


class RowLayout(NamedTuple):
    """A task's vocabulary and lengths.

    Attributes:
      text: its vocabulary.
      task_name: its row of the prompt bank is used, see `prompt_row`.
      source_length, target_length: most tokens of a row, S and T.
      prepared: returns the data that its rows are of; None: they are of another source.
    """

    text: Vocabulary
    task_name: str
    source_length: int
    target_length: int
    prepared: Callable[[], Prepared] | None = None

    def data(self) -> Prepared:
        """The prepared data; raises DataError where they are missing, ConfigError for others."""
        if self.prepared is None:
            raise ConfigError(f"the rows of task '{self.task_name}' are not of prepared data")
        return self.prepared()

    def source(self, segments: Sequence[Text]) -> Row:
        """The encoder's features, see `text.rows.source_row`."""
        return rows.source_row(self.text, segments, self.source_length)

    def candidates(self, texts: Sequence[str], *values: Any, **options: Any) -> Row:
        """The decoder's features of texts with an end each, see `text.rows.packed_candidates`."""
        return rows.packed_candidates(self.text, texts, self.target_length, *values, **options)

    def generation(self, source: Sequence[Text], target: Text, **options: Any) -> Row:
        """A whole row: the target is written, given the source; see `text.rows.generation_row`."""
        row = rows.generation_row(
            self.text, source, target, self.source_length, self.target_length, **options
        )
        return self.row(row)

    def row(self, row: Row, *, user: int = -1, retrieval: int = 0) -> Row:
        """With `task_ids`, `retrieval`, `user_ids` `[1]` and `decoder_job_ids` `[n]`."""
        positions = len(row["decoder_input_tokens"])
        return row | {
            "task_ids": np.array([prompt_row(self.task_name)], np.int32),
            "retrieval": np.array([retrieval], np.int32),
            "user_ids": np.array([user], np.int32),
            "decoder_job_ids": np.full(positions, job_id(self.task_name), np.int32),
        }

    def dropout(self, setting: str, share: float, make: Callable[..., Row]) -> MakeRows:
        """Rows for which `make` drops a share of the words, in training alone.

        Args:
          setting: gin's name of the share, for the ConfigError where it is none.
          share: of the words.
          make: from an example and the function that drops words of a text to a row.
        """
        if not 0 <= share < 1:
            raise ConfigError(f"{setting} = {share} is not from 0 up to below 1")
        if not share or not _FOR_TRAINING.get():
            return lambda example: make(example, str)
        return lambda example, rng: make(example, lambda text: rows.drop_words(text, share, rng))


def preprocessor(
    *columns: str, optional: Sequence[str] = ()
) -> Callable[[Callable[..., MakeRows]], Callable[..., tf.data.Dataset]]:
    """Turns a function of a `RowLayout` and gin's settings into a preprocessor of seqio.

    The preprocessor takes rows with the columns, `sequence_length`, a `vocabulary`, a `task_name`,
    perhaps `data` (`RowLayout.prepared`) and settings; it raises ConfigError where the rows lack a
    column. `optional` columns are read where the data have them. Functions of an example and a
    generator have one for each row, seeded by seqio's seed for it.
    """

    def decorate(function: Callable[..., MakeRows]) -> Callable[..., tf.data.Dataset]:
        configurable = gin.configurable(function)

        @functools.wraps(function)
        def preprocess(
            ds: tf.data.Dataset,
            sequence_length: Mapping[str, int],
            *,
            vocabulary: SeqioVocabulary,
            task_name: str,
            data: Callable[[], Prepared] | None = None,
            **settings: Any,
        ) -> tf.data.Dataset:
            lengths = sequence_length["inputs"], sequence_length["targets"]
            layout = RowLayout(vocabulary.text, task_name, *lengths, data)
            names = [*columns, *(name for name in optional if name in ds.element_spec)]
            if missing := [name for name in names if name not in ds.element_spec]:
                raise ConfigError(
                    f"the rows of '{task_name}' have no column '{missing[0]}', only "
                    f"{', '.join(sorted(ds.element_spec))}; is this the right view, and was it "
                    "prepared by this version (`m6rec data prepare` prepares it anew)?"
                )
            make = configurable(layout, **settings)
            to_tensors = _tensor_rows(make, names)
            if len(inspect.signature(make).parameters) > 1:
                return seqio.map_over_dataset(to_tensors, num_seeds=1)(ds).unbatch()
            return ds.map(to_tensors, num_parallel_calls=tf.data.AUTOTUNE).unbatch()

        del preprocess.__wrapped__  # seqio asks for the signature of what it calls
        return preprocess

    return decorate


def _tensor_rows(make: MakeRows, columns: Sequence[str]) -> Callable[..., dict[str, tf.Tensor]]:
    """A function from an example in tensors, and perhaps a seed, to all features of its rows."""

    def numpy_rows(*values: Any) -> list[np.ndarray]:
        example = {n: python_value(value) for n, value in zip(columns, values, strict=False)}
        seeds = values[len(columns) :]
        made = make(example, *(np.random.default_rng(seed.astype("uint32")) for seed in seeds))
        several = made if isinstance(made, list) else [made]
        lengths = {name: max(len(row[name]) for row in several) for name in TASK_FEATURES}
        return list(pad_batch(several, lengths).values())

    def tensor_rows(example: Mapping[str, tf.Tensor], seed: Any = None) -> dict[str, tf.Tensor]:
        values = [*(example[name] for name in columns), *([] if seed is None else [seed])]
        return numpy_map(numpy_rows, values, {name: [None, None] for name in TASK_FEATURES})

    return tensor_rows


def job_id(task_name: str) -> int:
    """The number that marks the rows of a seqio task: the CRC-32 of its name without the sign bit,
    the same in every mixture, process and launch.
    """
    return zlib.crc32(task_name.encode("utf-8")) & 0x7FFFFFFF


@gin.configurable
def prompt_task_ids(ids: Mapping[str, int] | None = None) -> Mapping[str, int]:
    """The rows of the prompt bank that gin gives to tasks.

        prompt_task_ids.ids = {"movielens_100k_ctr": 0, "movielens_100k_retrieval": 1}

    Not needed with one set of prompts for all tasks (`PromptConfig.num_tasks` 1). Tasks with the
    same number share its row.
    """
    return ids or {}


def prompt_row(task: str, num_tasks: int | None = None) -> int:
    """The row of the prompt bank that a seqio task uses, of `num_tasks` (None: not checked).

    Raises ConfigError where `prompt_task_ids.ids` has no row for the task, though it has some or
    the bank several; or a row that the bank has not.
    """
    ids = prompt_task_ids()
    row = ids.get(task) if ids or num_tasks not in (None, 1) else 0
    if type(row) is not int or not 0 <= row < (num_tasks or row + 1):
        raise ConfigError(
            f"prompt_task_ids.ids gives '{task}' the row {row!r} of the prompt bank: give it a "
            f"whole number from 0 to below PromptConfig.num_tasks ({num_tasks}), that of another "
            f"task where they share prompts. It has: {', '.join(sorted(ids)) or 'none'}"
        )
    return row


def check_prompt_rows(tasks: Sequence[str], num_tasks: int) -> None:
    """Checks `prompt_task_ids` for the tasks of a run and the `num_tasks` rows of its bank; raises
    ConfigError as `prompt_row`, or for a name that no task has.
    """
    for name in sorted(set(prompt_task_ids()) - {*tasks, *seqio.TaskRegistry.names()}):
        raise ConfigError(
            f"prompt_task_ids.ids names '{name}', but no seqio task is called so"
            f"{did_you_mean(name, tasks)}. Tasks of this run: {', '.join(tasks)}"
        )
    for task in tasks:
        prompt_row(task, num_tasks)
