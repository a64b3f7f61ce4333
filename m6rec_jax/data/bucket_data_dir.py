"""Preparing into a bucket: views are written on a local disk, and copied when they are whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from m6rec_jax.data import views
from m6rec_jax.data.prepared import MANIFEST, folder_of
from m6rec_jax.io.buckets import bucket_copies, bucket_errors, check_writable, in_bucket


@contextlib.contextmanager
def local_data_dir(out: str | Path, dataset: str, split: str) -> Iterator[Path]:
    """Yields a TFDS data_dir on a local disk that stands for `out`, which may be in a bucket.

    It has what an earlier preparation of this split left in the bucket, but for the rows. Views
    that are made in the block are copied there when it ends without an error, the manifest last: a
    copy that was broken off counts as not prepared.

    Raises:
      DataError: the bucket cannot be read or written.
    """
    if not in_bucket(out):
        yield Path(out)
        return
    check_writable(out)
    with bucket_copies() as copies:
        folder = folder_of(out, dataset, split)
        before = _content(copies.fetch(folder) / MANIFEST)
        targets = [views.tfds_folder(out, dataset, split, view) for view in views.COLUMNS]
        for target in targets:
            copies.fetch(target / views.INFO)
        yield copies.of(out)
        # Of a view that was there already only the description was fetched.
        made = [t for t in targets if any(p.name != views.INFO for p in copies.of(t).glob("*"))]
        if not made and _content(copies.of(folder) / MANIFEST) == before:
            return
        with bucket_errors(folder, "written"):
            (folder / MANIFEST).unlink(missing_ok=True)
            for target in made:
                target.rmtree(missing_ok=True)  # type: ignore[attr-defined]
                copies.store(target, last=views.INFO)
                shutil.rmtree(copies.of(target))
        copies.store(folder, last=MANIFEST)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
