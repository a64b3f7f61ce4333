"""Task data that do not fit the model are refused before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6rec_jax.errors import ConfigError
from tests.training import shop_run


def test_a_vocabulary_larger_than_the_embedding_names_both_and_the_fix(tmp_path: Path) -> None:
    shop_run.write_shop(tmp_path / "data")
    size = shop_run.register(tmp_path / "data").size
    with pytest.raises(ConfigError, match=rf"shop.model\) has {size} ids.*VOCAB_SIZE = {size}"):
        shop_run.shop_train(tmp_path / "data", tmp_path / "run", 1, spare_rows=-128)
