"""The training text of a prepared data set, to train a vocabulary on (`m6rec vocab train`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import gin

from m6rec_jax.data.store.prepared import VOCABULARY, Prepared, folder_of
from m6rec_jax.data.store.tfrecords import read_shards
from m6rec_jax.data.store.views import check_view, text_columns
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import bucket_copies, check_writable, path_of
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.text.vocabulary_training import train_vocabulary

DEFAULT_VIEWS = ("groups", "documents")


def training_texts(
    prepared: Prepared,
    views: Sequence[str] = DEFAULT_VIEWS,
    row_read: Callable[[], object] = lambda: None,
) -> Iterator[str]:
    """Every segment of text of the views' training rows, as often as a model reads it.

    Items held out of training occur in none of them. `row_read` is called after every row.
    """
    for view in views:
        for row in read_shards(prepared.tfds_folder(view), view, "train"):
            for column in text_columns(view):
                value = row[column]
                yield from [value] if isinstance(value, str) else value
            row_read()


@gin.configurable
def train_on_prepared(
    data_dir: str | os.PathLike[str] = gin.REQUIRED,
    dataset: str | None = None,
    split: str = "per_user_temporal",
    output: str | os.PathLike[str] | None = None,
    views: Sequence[str] = DEFAULT_VIEWS,
    sources: Sequence[tuple[str, str, Sequence[str]]] = (),
    shared: str | None = None,
    progress: bool = True,
) -> str:
    """Trains a vocabulary on the training rows of prepared data; see `train_vocabulary`.

    The words for labels are kept apart from the titles beside them. Phrases are learnt of what
    templates write; of corpora, words.

        train_on_prepared.dataset = 'movielens-100k'

    or, for tasks of several data sets, which then find it by `vocabulary_file.shared`:

        train_on_prepared.sources = (('movielens-100k', 'per_user_temporal', ('groups',)),
                                     ('film-plots', 'by_group', ('documents',)))
        train_on_prepared.shared = 'foundation'

    Args:
      data_dir: the TFDS data_dir that `m6rec data prepare` wrote to, also in a bucket.
      dataset, split, views: whose text is read, each with its own frequencies.
      output: the model file, which is returned; None: where the data set's tasks look for it.
      sources: (data set, split, views) of each of several data sets, in place of one.
      shared: name of the vocabulary that is trained, a folder in `data_dir`; with `sources`.

    Raises:
      ConfigError: neither a data set nor sources are named, or both, or sources without a name.
      DataError: something is not prepared, or there is no such view, or one without training rows.
    """
    if bool(sources) == bool(dataset) or (not (shared or output) if sources else shared):
        raise ConfigError(
            "train_on_prepared needs either a dataset, or sources and train_on_prepared.shared, "
            f"not dataset={dataset!r}, sources={tuple(sources)!r} and shared={shared!r}"
        )
    sources = sources or [(str(dataset), split, views)]
    opened = [(Prepared.open(data_dir, *names), of_views) for *names, of_views in sources]
    num_rows = sum(_train_rows(*one) for one in opened)
    # The data set's own tasks look beside its manifest.
    name = shared or folder_of(data_dir, *sources[0][:2]).name
    path = path_of(output or path_of(data_dir) / name / VOCABULARY)
    check_writable(path.parent)

    def texts(has_template: bool) -> Iterator[str]:
        for prepared, of_views in opened:
            if prepared.has_template == has_template:
                yield from training_texts(prepared, of_views, bar.update)

    def rendered() -> Iterator[str]:
        yield from texts(has_template=True)
        for prepared, of_views in of_tables:
            # What came of sampled negatives stands in no text.
            if "groups" in of_views and "label" not in prepared.dataset_spec:
                yield from (prepared.outcome_words() or ()) * _train_rows(prepared, ["groups"])

    of_tables = [one for one in opened if one[0].has_template]
    words_of_labels: dict[str, None] = {}
    for prepared, _ in of_tables:
        labels = [outcome.text for outcome in prepared.template().outcomes]
        words_of_labels |= dict.fromkeys([*labels, *(prepared.outcome_words() or ())])
    bar = progress_bar(total=num_rows, desc="reading text", unit=" rows", disable=not progress)
    with bucket_copies() as copies, bar:
        copies.fetch(path)  # one that is there is not overwritten
        train_vocabulary(
            rendered(),
            copies.of(path),
            prose=texts(has_template=False),
            keep_apart=list(words_of_labels),
        )
        copies.store(path)
    return str(path)


def _train_rows(prepared: Prepared, views: Sequence[str]) -> int:
    """Number of the views' training rows; raises DataError where one has none."""
    rows = {view: prepared.manifest.view(check_view(view)).rows.get("train", 0) for view in views}
    if empty := [view for view in rows if not rows[view]]:
        raise DataError(
            f"{prepared.folder}: the view {empty[0]!r} is not prepared, or has no training rows; "
            "name those whose text is to be read in train_on_prepared.views or .sources (prepared: "
            f"{', '.join(prepared.manifest.views)})"
        )
    return sum(rows.values())
