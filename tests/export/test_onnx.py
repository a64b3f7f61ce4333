"""Programs for ONNX Runtime answer as the model does, by the client that phones have."""

from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.export import command
from m6rec_jax.export.device_client import EdgeModel
from m6rec_jax.export.held_out import Asked
from m6rec_jax.export.recording import Recorder
from tests.export import asked

METHODS = ("score ctr", "user next", "item next")


def test_programs_answer_as_the_model(model: Any, tmp_path: Path) -> None:
    answered = asked.ask(model, Recorder())
    folder = tmp_path / "onnx"
    # Which compares them in a process of its own, without jax.
    results = command.write_export(folder, "onnx", Asked(model, Recorder(), answered))
    assert set(results) == set(METHODS)
    assert max(own["largest_difference"] for own in results.values()) < 1e-5
    # Any number of candidates, whatever a program takes at once.
    opened = EdgeModel(folder)
    texts = [f"Film {number}" for number in range(70)]
    expected = model.scorer("ctr").score_requests([["user"]], [texts])[0]
    np.testing.assert_allclose(opened.score(["user"], texts), expected, rtol=1e-5)
    # Programs share their weights: the file is smaller than two copies of them.
    weights = sum(leaf.nbytes for leaf in flatten(dict(model.variables)).values())
    assert weights / 2 < (folder / "weights.bin").stat().st_size < 1.5 * weights
