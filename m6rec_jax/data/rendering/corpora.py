"""Corpora: folders of texts, dialogues or reviews, and how each becomes views of a prepared split.

`texts`, `dialogues` and `reviews` each have a class that reads such a folder. What they share is
here: lines of files, records that are split by name, and rows that are written as views.
"""

from __future__ import annotations

import abc
import contextlib
import html
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import gin
import msgspec
import numpy as np

from m6rec_jax import __version__
from m6rec_jax.data.features import co_occurrence, ease
from m6rec_jax.data.splitting import splits
from m6rec_jax.data.splitting.splits import PARTS, TRAIN, VALIDATION, Split
from m6rec_jax.data.store import views
from m6rec_jax.data.store.manifest import (
    MANIFEST,
    Manifest,
    ViewEntry,
    earlier_manifest,
    fingerprint,
)
from m6rec_jax.data.store.prepared import Prepared, folder_of, local_data_dir
from m6rec_jax.data.store.tfrecords import spool_rows, write_spooled
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import scratch_folder
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.io.progress import progress_bar

# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 4
_C1 = re.compile("[\x80-\x9f]")

log = logging.getLogger(__name__)
_Line = TypeVar("_Line")


class Record(NamedTuple):
    """A text, dialogue or review, which goes to one split as a whole."""

    content: Any
    name: str  # by which the split is drawn
    split: str = ""  # that the files name, if any


class ViewRow(NamedTuple):
    """A row, and where it goes."""

    view: str
    split: str
    row: dict[str, Any]


class Corpus(abc.ABC):
    """An opened folder; raises DataError where a file is missing.

    Args:
      name: of the data set.
      files: that rows are made from, the description first.
      views: that are made.

    Attributes:
      kind: what the records are, in the plural.
      split_options: options of splits by name, as the description has them.
      settings: for JSON, on which rows depend, too.
      manifest: what the manifest says of it, too.
    """

    kind: ClassVar[str]
    split_options: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    manifest: Mapping[str, Any] = {}

    def __init__(self, name: str, files: Sequence[Path], views: Sequence[str]) -> None:
        self.name, self.files, self.views = name, files, views
        if missing := [path for path in files if not path.is_file()]:
            raise DataError(f"{missing[0]} does not exist, and {files[0]} names it")

    @property
    @abc.abstractmethod
    def records(self) -> Iterable[Record]:
        """All records in the order of the files; raises DataError at a broken one."""

    @abc.abstractmethod
    def rows(self, record_splits: Sequence[str]) -> Iterator[ViewRow]:
        """The rows of all records in any order, by the split of each record."""

    def write_items(self, record_splits: Sequence[str], folder: Path) -> dict[str, int]:
        """Writes what will lie beside the manifest, if anything; returns counts for it."""
        return {}

    def summary(self) -> str:
        """Reads all and says how much there is; raises DataError as `records`."""
        counts = Counter(record.split or "without a split" for record in self.records)
        named = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        return f"{self.name}: {counts.total():,} {self.kind} ({named})"


@gin.configurable
def prepare_corpus(
    corpus: Corpus, out: str | Path, split: str = "by_group", progress: bool = True
) -> Prepared:
    """Writes the views of a corpus into a TFDS data_dir, perhaps in a bucket, unless they are
    there, made from the same.

    `split` is 'by_group', with options where wanted (`by_group:seed=1`); it decides where files of
    the corpus do not. Raises DataError where something is wrong with the folder, a split is empty,
    or `out` holds a data set of another name.
    """
    by_group = Split.parse(split, corpus.split_options)
    if by_group.kind != "by_group":
        raise DataError(
            f"split {split!r} needs users and times; {corpus.files[0]} describes {corpus.kind}: "
            "use 'by_group'"
        )
    names = corpus.name, by_group.name
    with (
        local_data_dir(out, *names) as data_dir,
        locked_folder(folder := folder_of(data_dir, *names), f"preparing {corpus.name}"),
        contextlib.ExitStack() as stack,
    ):
        targets = {view: views.tfds_folder(data_dir, *names, view) for view in corpus.views}
        columns = {view: views.COLUMNS[view] for view in targets}
        described = by_group.name, "by_group", dict(by_group.options)
        formats = FORMAT, co_occurrence.FORMAT, ease.FORMAT
        made_with = (formats, __version__, described, dict(corpus.settings), columns)
        source = fingerprint(*made_with, files=corpus.files)
        old = earlier_manifest(folder, corpus.name)
        if all(
            old.view(view).fingerprint == source and (target / views.INFO).is_file()
            for view, target in targets.items()
        ):
            log.info("%s is prepared already", folder.name)
            return Prepared.open(out, *names)
        spool = stack.enter_context(scratch_folder(folder / "unfinished"))
        beside = stack.enter_context(scratch_folder(folder / "rendered"))
        record_splits = _record_splits(corpus, by_group)
        counts: dict[str, Any] = {corpus.kind: {part: record_splits.count(part) for part in PARTS}}
        counts |= corpus.write_items(record_splits, beside)
        rows = corpus.rows(record_splits)
        bar = progress_bar(rows, f"rendering {corpus.name}", unit=" rows", disable=not progress)
        spool_rows(bar, spool)
        # Everything was read, so what was prepared may go; half new, nothing says that it is there.
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in list(beside.iterdir()):
            path.replace(folder / path.name)
        Manifest(
            **corpus.manifest,
            version=__version__,
            dataset=corpus.name,
            split=by_group.name,
            options=dict(corpus.settings),
            views={
                view: ViewEntry(source, write_spooled(target, view, spool))
                for view, target in targets.items()
            },
            counts=counts,
        ).write(folder)
    return Prepared.open(out, *names)


def _record_splits(corpus: Corpus, by_group: Split) -> list[str]:
    """The split of each record: as the files say, or drawn by its name.

    Without records for validation they are drawn from those for training.
    """
    records = [(record.name, record.split) for record in corpus.records]
    codes = splits.by_name([name for name, _ in records], **by_group.arguments())
    stated = np.array([PARTS.index(split) if split else -1 for _, split in records], np.int8)
    is_drawn = stated < 0
    if VALIDATION not in stated:
        is_drawn |= (stated == TRAIN) & (codes == VALIDATION)
    codes = np.where(is_drawn, codes, stated)
    splits.check_parts(codes, by_group.name, corpus.kind)
    return [PARTS[code] for code in codes.tolist()]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1; raises DataError for a file that is no
    UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 ({error})") from error


def json_lines(path: Path, kind: type[_Line]) -> Iterator[_Line]:
    """The objects of a file of JSON lines; raises DataError as `numbered_lines`, or where a line is
    none of them.
    """
    decoder = msgspec.json.Decoder(kind)
    for number, line in numbered_lines(path):
        try:
            decoded = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        yield decoded


def repaired(text: str) -> str:
    """A text as it was meant: HTML entities resolved, encodings put right, single spaces.

    UTF-8 that was read as Latin-1 ("CafÃ©") is read again. Control characters that Windows-1252 has
    letters and quotation marks for become those. Text that is neither stays as it is.
    """
    try:
        # Latin-1 text with an accent is hardly ever valid UTF-8 by chance.
        text = text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        # Five codes of Windows-1252 mean nothing.
        text = _C1.sub(lambda m: m[0].encode("latin-1").decode("cp1252", errors="ignore"), text)
    return " ".join(html.unescape(text).split())
