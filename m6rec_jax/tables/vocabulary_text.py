"""The training text of a prepared data set, to train a vocabulary on (`m6rec vocab train`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import gin

from m6rec_jax.tables.prepared import Prepared
from m6rec_jax.tables.views import COLUMNS, check_view
from m6rec_jax.text.vocabulary_training import TrainedVocabulary, train_vocabulary

DEFAULT_VIEWS = ("groups", "documents")


def training_texts(prepared: Prepared, views: Sequence[str] = DEFAULT_VIEWS) -> Iterator[str]:
    """Every segment of text of the views' training parts, as often as a model reads it.

    Items held out of training occur in none of them.

    Raises:
      DataError: a view is unknown or not prepared.
    """
    import tensorflow_datasets as tfds

    for view in views:
        texts = [c for c, (kind, _) in COLUMNS[check_view(view)].items() if kind == "str"]
        texts = [c for c in texts if c not in ("user_id", "item_id", "kind")]
        prepared.num_rows(view)
        rows = tfds.builder_from_directory(str(prepared.tfds_folder(view))).as_dataset(
            split="train",
            read_config=tfds.ReadConfig(add_tfds_id=False),
            decoders=tfds.decode.PartialDecoding(texts),
        )
        for row in tfds.as_numpy(rows):
            for column in texts:
                values = row[column]
                for value in [values] if isinstance(values, bytes) else values:
                    yield value.decode("utf-8")


@gin.configurable
def train_on_prepared(
    data_dir: str | os.PathLike[str] = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    split: str = "per_user_temporal",
    output: str | os.PathLike[str] | None = None,
    views: Sequence[str] = DEFAULT_VIEWS,
) -> TrainedVocabulary:
    """Trains a vocabulary on the training part of a prepared split; see `train_vocabulary`.

    The words for outcomes are kept apart from the titles beside them.

    Args:
      data_dir: the TFDS data_dir that `m6rec data prepare` wrote to.
      dataset: name of the data set.
      split: name of the split.
      output: where the model file goes; None: where the data set's tasks look for it.
      views: whose text is read, each with its own frequencies.
    """
    prepared = Prepared.open(data_dir, dataset, split)
    outcomes = [outcome.text for outcome in prepared.template().outcomes]
    path = prepared.vocabulary_file if output is None else output
    return train_vocabulary(training_texts(prepared, views), path, keep_apart=outcomes)
