"""A model of what every format exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6rec_jax.engine.model_folder import LoadedModel, load_model
from tests.export import asked
from tests.serving import served_films


@pytest.fixture(scope="session")
def model(served: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("run") / "run"
    return load_model(served_films.copy_run(served / "run", folder, [*asked.TASKS]))
