"""TFDS builder of `recommender_text`: rendered Parquet files become TFRecord shards.

`m6rec data prepare` runs it; it also runs by itself, on a folder that `prepare(keep_rendered=True)`
left (the `tfds` command of 4.9.10 does not start without apache-beam, which nothing else needs):

    tfds build m6rec_jax/data/recommender_text --data_dir DATA_DIR \\
        --config '{"name": "corner-shop.per_user_temporal.groups", "rendered": "FOLDER"}'

Config names are `<dataset>.<split>.<view>`; the views are described in `data.views`. Once built,
a view needs no code to be read: `seqio.TfdsDataSource` and `tfds.load` find it by its name and
data_dir.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from m6rec_jax.data import views
from m6rec_jax.errors import DataError


@dataclasses.dataclass(eq=False)
class RecommenderTextConfig(tfds.core.BuilderConfig):
    """One view of one split of one data set.

    Attributes:
      name: `<dataset>.<split>.<view>`.
      rendered: folder of `<part>.parquet` files with the columns of the view.
    """

    rendered: str = ""

    @property
    def view(self) -> str:
        """The last part of the name. Raises DataError where there is no such view."""
        return views.check_view(self.name.rpartition(".")[2])


class Builder(tfds.core.GeneratorBasedBuilder):
    """DatasetBuilder of rendered recommender text."""

    VERSION = tfds.core.Version(views.VERSION)
    RELEASE_NOTES: dict[str, str] = {views.VERSION: "First version."}  # noqa: RUF012
    # Configs are named by the data at hand, so none stands here; this lets `tfds build` make one
    # from JSON.
    builder_config_cls = RecommenderTextConfig

    def _info(self) -> tfds.core.DatasetInfo:
        view = self.builder_config.view
        features = {
            column: _feature(kind, is_list)
            for column, (kind, is_list) in views.COLUMNS[view].items()
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description=views.DESCRIPTIONS[view],
            # The catalogue is read in the order of the items table; all else is shuffled by key.
            disable_shuffling=view == "catalogue",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        folder = Path(self.builder_config.rendered)
        paths = {part: folder / f"{part}.parquet" for part in views.PARTS}
        found = {part: path for part, path in paths.items() if path.is_file()}
        if not self.builder_config.rendered or not found:
            raise DataError(
                f"{self.builder_config.name}: no rendered Parquet files in "
                f"{self.builder_config.rendered or '(no folder given)'}; run `m6rec data prepare`"
            )
        return {part: self._generate_examples(path) for part, path in found.items()}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        batches = pq.ParquetFile(path).iter_batches(batch_size=1024)
        yield from enumerate(row for batch in batches for row in batch.to_pylist())


def _feature(kind: str, is_list: bool) -> Any:
    if kind == "time":
        # As a number it would be stored in 32 bits: a minute is then the finest step.
        return tfds.features.Tensor(
            shape=(), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
        )
    if kind == "str":
        text = tfds.features.Text()
        return tfds.features.Sequence(text) if is_list else text
    dtype = {"int": np.int64, "value": np.float32}[kind]
    return tfds.features.Sequence(dtype) if is_list else tfds.features.Scalar(dtype=dtype)
