"""Writes and builds the views of a data set of texts: what its readers' preparations share."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m6rec_jax import __version__
from m6rec_jax.data import views
from m6rec_jax.data.bucket_data_dir import local_data_dir
from m6rec_jax.data.prepared import (
    MANIFEST,
    Prepared,
    fingerprint,
    folder_of,
    old_manifest,
    write_manifest,
)
from m6rec_jax.data.splits import Split
from m6rec_jax.data.tfrecords import spool_rows, write_spooled
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import scratch_folder
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.io.progress import progress_bar

# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 4

log = logging.getLogger(__name__)


class ViewRow(NamedTuple):
    """A row, the view and the part that it belongs to."""

    view: str
    part: str
    row: dict[str, Any]


Render = Callable[[Path], tuple[Iterable[ViewRow], Mapping[str, Any]]]
"""Called with a folder inside that of the prepared split, to write to; gives rows and what the
manifest says of them.
"""


def prepare_texts(
    out: str | Path,
    dataset: str,
    split: Split,
    wanted: Sequence[str],
    files: Sequence[Path],
    settings: Mapping[str, Any],
    render: Render,
    progress: bool,
    made_with: Sequence[Any] = (),
) -> Prepared:
    """Writes the views of a split, unless they are on disk, made from the same.

    Args:
      out: the TFDS data_dir; may be in a bucket.
      dataset: its name.
      split: of the data set.
      wanted: the views that are made.
      files: that the rows are made from, first the one that names the others.
      settings: for JSON; rows depend on them, too.
      render: makes the rows, in any order; what it writes to the folder that it is given comes to
        lie beside the manifest when all rows were made.
      progress: whether to show bars.
      made_with: further settings that what `render` writes depends on.

    Raises:
      DataError: one of the files is missing, or the folder is of a data set of another name.
    """
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} does not exist, and {files[0]} names it")
    with (
        local_data_dir(out, dataset, split.name) as data_dir,
        locked_folder(folder_of(data_dir, dataset, split.name), f"preparing {dataset}"),
        contextlib.ExitStack() as stack,
    ):
        folder = folder_of(data_dir, dataset, split.name)
        targets = {view: views.tfds_folder(data_dir, dataset, split.name, view) for view in wanted}
        columns = {view: views.COLUMNS[view] for view in wanted}
        described = {"name": split.name, "kind": split.kind, "options": dict(split.options)}
        made = (FORMAT, __version__, described, dict(settings), columns, *made_with)
        source, old = fingerprint(*made, files=files), old_manifest(folder, dataset)
        built = all((target / views.INFO).is_file() for target in targets.values())
        if built and old.get("fingerprint") == source:
            log.info("%s is prepared already", folder.name)
            return Prepared.open(out, dataset, split.name)
        spool = stack.enter_context(scratch_folder(folder / "unfinished"))
        beside = stack.enter_context(scratch_folder(folder / "rendered"))
        rows, manifest = render(beside)
        bar = progress_bar(rows, f"rendering {dataset}", unit=" rows", disable=not progress)
        counts = spool_rows(bar, spool)
        # Everything was read, so what was prepared may go; half new, nothing says that it is there.
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in list(beside.iterdir()):
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            path.replace(folder / path.name)
        for view, target in targets.items():
            write_spooled(target, view, spool)
        described_run = {
            "format": FORMAT,
            "version": __version__,
            "dataset": dataset,
            "split": described,
            "options": dict(settings),
            "fingerprint": source,
            "views": {v: {"fingerprint": source, "rows": counts.get(v, {})} for v in wanted},
        }
        write_manifest(folder, {**manifest, **described_run})
    return Prepared.open(out, dataset, split.name)
