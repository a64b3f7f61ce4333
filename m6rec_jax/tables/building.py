"""Runs the TFDS builder over rendered files: the last step of preparing a view."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m6rec_jax.io.progress import progress_bar


def build_view(out: Path, rendered: Path, target: Path, progress: bool) -> None:
    """Turns the rendered Parquet files of a view into TFRecord shards.

    Args:
      out: the TFDS data_dir.
      rendered: folder of `<part>-<number>.parquet` files.
      target: the view's folder, of `views.tfds_folder`; what is there is replaced.
      progress: whether to show a bar.
    """
    # Imported here: tensorflow_datasets takes seconds to import.
    import tensorflow_datasets as tfds

    from m6rec_jax.tables.recommender_text import recommender_text_dataset_builder as module

    shutil.rmtree(target, ignore_errors=True)
    for left_over in target.parent.glob(f"{target.name}.incomplete*"):
        shutil.rmtree(left_over, ignore_errors=True)
    config = module.RecommenderTextConfig(name=target.parent.name, rendered=str(rendered))
    view = config.view
    with progress_bar(desc=f"writing {view}", total=1, disable=not progress) as bar:
        with _quiet(tfds):
            builder = module.Builder(config=config, data_dir=str(out))
            builder.download_and_prepare(
                download_dir=str(rendered / "downloads"),  # stays empty
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        bar.update()


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keeps TFDS from printing: it announces downloads that do not happen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)
