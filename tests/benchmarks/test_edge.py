"""The table of phone models: what its runs train, and that they find the runs they learn from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import edge
from benchmarks.results_file import read_results
from benchmarks.runs import Recipe
from m6rec_jax import configuration
from m6rec_jax.errors import DataError

pytestmark = pytest.mark.usefixtures("no_gin")

COLUMNS = (
    *("parameters", "parameters_share", "nonzero_parameters", "bytes"),
    *("auc", "auc_share", "hit_rate@10", "ms_per_candidate"),
)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[str]]:
    """Folders of training runs and their arguments. Half of the pruned weights are zero."""
    runs: dict[Path, list[str]] = {}

    def train(recipe: Recipe, folder: Path, bindings: list[str]) -> float:
        folder.mkdir(parents=True)
        files = (f"--gin_file={file}" for file in recipe.gin_files())
        runs[folder] = [*files, *(f"--gin.{one}" for one in recipe.bindings), *bindings]
        return 1.0

    def restored_params(run: Path) -> dict[str, Any]:
        return {"kernel": np.array([1.0, 0.0 if "pruned" in run.parent.name else 2.0])}

    def packed_of(run: Path) -> SimpleNamespace:
        return SimpleNamespace(variables={"params": restored_params(run)})

    monkeypatch.setattr(edge, "train", train)
    monkeypatch.setattr(edge, "restored_params", restored_params)
    monkeypatch.setattr(edge, "packed_of", packed_of)
    monkeypatch.setattr(edge, "write_packed", lambda file, packed: file.write_text("bytes"))
    monkeypatch.setattr(edge, "_tested", lambda *_, rounds: 0.7 - 0.1 * rounds)
    figures = {"candidate_milliseconds": 0.5}
    monkeypatch.setattr(edge.device_speed, "measured", lambda path: figures)
    monkeypatch.setattr(edge, "m6rec", lambda *_: None)
    monkeypatch.setattr(edge, "results_path", lambda name: tmp_path / f"{name}.json")
    return runs


def test_backbones_train_whole_and_jobs_their_prompts(made, tmp_path: Path) -> None:
    demo = tmp_path / "demos" / "3"
    demo.mkdir(parents=True)
    asked = ["--seeds", "3", "--demos", str(demo.parent), "--output", str(tmp_path / "runs")]
    assert edge.main(asked) == 2  # it has not finished
    (demo / "metrics.json").touch()
    assert edge.main(asked) == 0
    assert len(made) == 3 * (len(edge.MODELS) - 1)
    for number, (folder, arguments) in enumerate(made.items()):
        files = [one.split("=", 1)[1] for one in arguments if one.startswith("--gin_file=")]
        bindings = [one for one in arguments if one.startswith("--gin.")]
        configuration.parse_config(files, [*bindings, f"MODEL_DIR='{folder}'"])
        is_job = folder.name != "pretraining"
        assert configuration.macro("TRAINABLE") == ("prompts" if is_job else "all"), folder
        if not is_job:
            pruned = "pruned" in folder.parent.name
            assert configuration.macro("TRAIN_STEPS") == (1000 if pruned else 1500)
            assert not pruned or configuration.macro("PRUNING_END") < 1000
        config = configuration.macro("MODEL").config
        assert config.share_layers == folder.parent.name.startswith("shared")
        # Runs that it starts or learns from were made before.
        names = ("INITIAL_CHECKPOINT_PATH", "TEACHER")
        others = filter(None, (configuration.macro(name, None) for name in names))
        others = [path for path in map(Path, others) if demo not in path.parents]
        assert set(others) <= set(list(made)[:number])
    results = read_results(tmp_path / "edge.json")
    found = {
        model: {row["metric"]: row["value"] for row in results if row["model"] == model}
        for model in (*edge.MODELS, *(f"{name}, int8" for name in edge.ROUNDED))
    }
    assert all(set(figures) == set(COLUMNS) for figures in found.values())
    assert found["shared, pruned 80%"]["nonzero_parameters"] == 1
    assert found["shared, pruned 80%, int8"]["bytes"] == len("bytes")
    assert found["shared, pruned 80%, int8"]["auc"] == pytest.approx(0.6)


def test_zeros_that_tuning_takes_away_are_told(made, tmp_path: Path, monkeypatch: Any) -> None:
    def restored_params(run: Path) -> dict[str, Any]:
        return {"kernel": np.array([1.0, 0.0 if run.name == "pretraining" else 1e-9])}

    monkeypatch.setattr(edge, "restored_params", restored_params)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "metrics.json").touch()
    with pytest.raises(DataError, match=r"scoring has 0\.0% zeros, and .*, 50\.0%: its backbone"):
        edge.run_model("shared, pruned 80%", 0, edge.Folders(tmp_path, tmp_path))
