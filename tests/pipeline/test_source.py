"""Where prepared data are read: data that change under a source in use."""

import shutil
from pathlib import Path

from m6rec_jax.pipeline.source import PreparedSource


def test_data_prepared_anew_are_read_anew(number_data: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    source = PreparedSource(lambda: folder)
    for data, first in zip(number_data, (0, 1000), strict=True):
        shutil.copytree(data, folder)
        found = [int(row["number"]) for row in source.get_dataset("test", shuffle=False)]
        assert sorted(found) == [first, first + 1, first + 2]
        shutil.rmtree(folder)
