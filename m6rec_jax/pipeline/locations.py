"""Where prepared data and vocabularies lie; asked only when a task is used, never when registered.

In gin:

    data_dir.path = "/data/m6rec"
    vocabulary_file.path = "/data/t5/spiece.model"
    vocabulary_file.shared = "foundation"
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import gin

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE, default_cache_dir, default_data_dir
from m6rec_jax.data.splitting.splits import KINDS
from m6rec_jax.data.store.prepared import VOCABULARY, Prepared, folder_of
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import in_bucket, kept_copy, path_of
from m6rec_jax.text.vocabulary import Vocabulary

VOCABULARY_VARIABLE = "M6REC_VOCABULARY"
# What `m6rec data prepare` makes where no other is asked for.
DEFAULT_SPLIT = "per_user_temporal"
# Of a run that is read or resumed, see `run_vocabulary`; input processes inherit it.
OWN_VOCABULARY_VARIABLE = "M6REC_OWN_VOCABULARY"


@gin.configurable
def data_dir(path: str | None = None) -> Path:
    """The folder `m6rec data prepare` wrote to, perhaps in a bucket: gin, `$M6REC_DATA_DIR`, the
    cache.
    """
    return path_of(path).expanduser() if path else default_data_dir()


def tables_dir() -> Path:
    """Where data sets lie that are known by name: `data_dir`, or the cache where it is a bucket."""
    folder = data_dir()
    return default_cache_dir() if in_bucket(folder) else folder


def dataset_folder(name_or_folder: str) -> Path:
    """A folder or address as it is, or the data set of that name below `tables_dir`."""
    named = path_of(name_or_folder)
    return named if in_bucket(named) or named.is_dir() else tables_dir() / named


@gin.configurable
def vocabulary_file(
    dataset: str, split: str, path: str | None = None, shared: str | None = None
) -> Path:
    """The SentencePiece file of a task, with the prepared split of a data set.

    Gin's `path`, or `vocabulary.model` in the folder `shared` of the data directory, which tasks of
    several data sets share; then `$M6REC_VOCABULARY`, then the file beside the prepared split.
    Raises ConfigError for both.
    """
    if path and shared:
        raise ConfigError(
            f"vocabulary_file.path = {path!r} and vocabulary_file.shared = {shared!r}: set one"
        )
    if shared:
        return data_dir() / shared / VOCABULARY
    if named := path or os.environ.get(VOCABULARY_VARIABLE):
        return path_of(named).expanduser()
    return folder_of(data_dir(), dataset, split) / VOCABULARY


def prepared(dataset: str, split: str) -> Prepared:
    """The prepared split of a data set; raises DataError, which says how to prepare it."""
    try:
        return Prepared.open(data_dir(), dataset, split)
    except DataError as error:
        # Texts have one split, the default. Names of splits with settings are no bindings.
        binding = f" --gin.prepare.split={split if split in KINDS else '...'}"
        raise DataError(
            f"{error}. `m6rec data prepare {dataset}{'' if split == 'by_group' else binding}` does "
            f"(its folder in place of its name, or after `m6rec data fetch {dataset}`). Data "
            f"elsewhere? Set {DATA_DIR_VARIABLE} or gin's data_dir.path"
        ) from error


def load_vocabulary(dataset: str, split: str) -> Vocabulary:
    """The vocabulary of a task, or of the run that reads it; raises ConfigError without a file."""
    path = path_of(os.environ.get(OWN_VOCABULARY_VARIABLE) or vocabulary_file(dataset, split))
    if not path.is_file():
        raise ConfigError(
            f"no vocabulary at {path}: train one with `m6rec vocab train`, or name a SentencePiece "
            f"file with gin's vocabulary_file.path or {VOCABULARY_VARIABLE}"
        )
    return read_vocabulary(path)


def read_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary of a SentencePiece file, perhaps in a bucket, loaded once; or ConfigError."""
    copy = kept_copy(path_of(path))
    return _vocabulary(str(copy.resolve()), copy.stat().st_mtime_ns if copy.is_file() else 0)


@functools.lru_cache(maxsize=8)
def _vocabulary(path: str, changed: int) -> Vocabulary:
    del changed  # part of the key: a file trained anew is loaded anew
    return Vocabulary(path)
