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
    has_name = bool(shared or output) if sources else not shared
    if bool(sources) == bool(dataset) or not has_name:
        raise ConfigError(
            "train_on_prepared needs either a dataset, or sources and train_on_prepared.shared, "
            f"not dataset={dataset!r}, sources={tuple(sources)!r} and shared={shared!r}"
        )
    sources = sources or [(str(dataset), split, views)]
    opened: dict[bool, list[tuple[Prepared, Sequence[str]]]] = {True: [], False: []}
    num_rows = 0
    words_of_labels: dict[str, None] = {}
    unwritten: list[tuple[tuple[str, ...], int]] = []
    for name, of_split, of_views in sources:
        prepared = Prepared.open(data_dir, name, of_split)
        there = {view: entry.rows for view, entry in prepared.manifest.views.items()}
        rows = {view: there.get(check_view(view), {}).get("train", 0) for view in of_views}
        if empty := [view for view in rows if not rows[view]]:
            raise DataError(
                f"{prepared.folder}: the view {empty[0]!r} is not prepared, or has no training "
                "rows; name those whose text is to be read in train_on_prepared.views or .sources "
                f"(prepared: {', '.join(there)})"
            )
        num_rows += sum(rows.values())
        opened[prepared.has_template].append((prepared, of_views))
        if prepared.has_template:
            words = prepared.outcome_words() or ()
            labels = [outcome.text for outcome in prepared.template().outcomes]
            words_of_labels |= dict.fromkeys([*labels, *words])
            if "groups" in rows and "label" not in prepared.dataset_spec:
                # What came of sampled negatives stands in no text.
                unwritten.append((words, rows["groups"]))
    # The data set's own tasks look beside its manifest.
    name = shared or folder_of(data_dir, *sources[0][:2]).name
    path = path_of(output or path_of(data_dir) / name / VOCABULARY)
    check_writable(path.parent)

    def texts(has_template: bool) -> Iterator[str]:
        for prepared, of_views in opened[has_template]:
            yield from training_texts(prepared, of_views, bar.update)
        for words, number in unwritten if has_template else ():
            yield from words * number

    bar = progress_bar(total=num_rows, desc="reading text", unit=" rows", disable=not progress)
    with bucket_copies() as copies, bar:
        copies.fetch(path)  # one that is there is not overwritten
        train_vocabulary(
            texts(has_template=True),
            copies.of(path),
            prose=texts(has_template=False),
            keep_apart=list(words_of_labels),
            progress=progress,
        )
        copies.store(path)
    return str(path)
