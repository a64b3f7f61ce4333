"""The tiny shop of `shop_rows` as TFDS data sets."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from tests.pipeline.shop_rows import rows_of

FEATURES = {
    "groups": {
        "group_id": np.int64,
        "user_id": tfds.features.Text(),
        "user_index": np.int64,
        "time": np.float64,
        "history": tfds.features.Sequence(tfds.features.Text()),
        "candidates": tfds.features.Sequence(tfds.features.Text()),
        "item_indices": tfds.features.Sequence(np.int64),
        "labels": tfds.features.Sequence(np.int64),
        "ratings": tfds.features.Sequence(np.float32),
    },
    "next_items": {
        "user_id": tfds.features.Text(),
        "user_index": np.int64,
        "time": np.float64,
        "history": tfds.features.Sequence(tfds.features.Text()),
        "items": tfds.features.Sequence(tfds.features.Text()),
        "item_indices": tfds.features.Sequence(np.int64),
    },
    "documents": {
        "kind": tfds.features.Text(),
        "source": tfds.features.Sequence(tfds.features.Text()),
        "target": tfds.features.Text(),
    },
}


class Shop(tfds.core.GeneratorBasedBuilder):
    """The shop's views as TFDS configs."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=view) for view in FEATURES]  # noqa: RUF012
    pkg_dir_path = Path(__file__).parent

    def _info(self):
        features = tfds.features.FeaturesDict(FEATURES[self.builder_config.name])
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

    def _generate_examples(self, split):
        yield from enumerate(rows_of(split)[self.builder_config.name])


def write_views(folder: Path) -> dict[str, Path]:
    """Writes every view; returns its folder."""
    folders = {}
    for view in FEATURES:
        builder = Shop(data_dir=folder, config=view)
        builder.download_and_prepare()
        folders[view] = Path(builder.data_path)
    return folders
