"""Writes and builds the views of a data set of texts: what its readers' preparations share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m6rec_jax import __version__
from m6rec_jax.data import views
from m6rec_jax.data.prepared import MANIFEST, Prepared, folder_of, write_manifest
from m6rec_jax.data.render import RowWriter
from m6rec_jax.data.views import build_view
from m6rec_jax.progress import progress_bar

# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 1


class ViewRow(NamedTuple):
    """A row, the view and the part that it belongs to."""

    view: str
    part: str
    row: dict[str, Any]


class TextViews:
    """One prepared split of a data set of texts.

    Args:
      out: the TFDS data_dir.
      dataset, split: names.
      wanted: the views that are made.
      fingerprint: of everything that the rows depend on.
    """

    def __init__(
        self, out: Path, dataset: str, split: str, wanted: Sequence[str], fingerprint: str
    ) -> None:
        self._out, self._dataset, self._split = out, dataset, split
        self._fingerprint = fingerprint
        self.folder = folder_of(out, dataset, split)
        self._targets = {view: views.tfds_folder(out, dataset, split, view) for view in wanted}

    def is_done(self) -> bool:
        """Whether all of it is on disk, made from the same."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        built = [(target / "dataset_info.json").is_file() for target in self._targets.values()]
        return all(built) and manifest.get("fingerprint") == self._fingerprint

    def open(self) -> Prepared:
        """What is on disk."""
        return Prepared.open(self._out, self._dataset, self._split)

    def write(
        self,
        rows: Iterable[ViewRow],
        manifest: Mapping[str, Any],
        rows_per_file: int = 100_000,
        progress: bool = True,
    ) -> Prepared:
        """Writes rows and builds their views; what was there is replaced.

        Args:
          rows: in any order.
          manifest: what the manifest says beside names, fingerprint and numbers of rows.
          rows_per_file: of a rendered file.
          progress: whether to show bars.
        """
        rendered = self.folder / "rendered"
        shutil.rmtree(rendered, ignore_errors=True)
        writers = {}
        for view in self._targets:
            (rendered / view).mkdir(parents=True)
            writers[view] = RowWriter(rendered / view, view, rows_per_file)
        with progress_bar(
            desc=f"rendering {self._dataset}", unit=" rows", disable=not progress
        ) as bar:
            for view, part, row in rows:
                writers[view].write(part, row)
                bar.update()
        for view, target in self._targets.items():
            writers[view].close()
            build_view(self._out, rendered / view, target, progress)
        counts = {view: {"rows": writer.num_rows} for view, writer in writers.items()}
        names = {"format": FORMAT, "version": __version__, "dataset": self._dataset}
        own = {"fingerprint": self._fingerprint, "views": counts}
        write_manifest(self.folder, {**names, **manifest, **own})
        shutil.rmtree(rendered)
        return self.open()


def files_fingerprint(paths: Iterable[Path], settings: Any) -> str:
    """SHA-256 over the content of files, and settings that JSON can hold."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    digest.update(json.dumps([FORMAT, __version__, settings], sort_keys=True).encode())
    return digest.hexdigest()
