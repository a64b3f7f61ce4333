"""The store of segments: what was written is read, at any of its types, and nothing else is."""

import dataclasses
import json

import numpy as np
import pytest

from m6rec_jax.engine.segments.store import SegmentStore, write_segments
from m6rec_jax.errors import CheckpointError, DataError

RNG = np.random.default_rng(0)
TOKENS = [RNG.integers(0, 100, length).astype(np.int32) for length in (3, 9, 4, 30, 5)]
STATES = {tokens.tobytes(): RNG.normal(size=(len(tokens), 8)) for tokens in TOKENS}


def write(folder, dtype="float32", **changes):
    def compute(tokens):
        return [STATES[own.tobytes()] for own in tokens]

    given = {"model": "a" * 64, "task": "ctr", "width": 8, "progress": False}
    # One candidate is there twice, as items with the same text are.
    return write_segments(folder, [*TOKENS, TOKENS[0]], compute, dtype=dtype, **given | changes)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Numbers are below 4, and bfloat16 keeps 8 bits.
    [("float32", 1e-6), ("bfloat16", 4 * 2**-8)],
)
def test_states_are_those_written(tmp_path, dtype, tolerance):
    manifest = write(tmp_path / "store", dtype)
    assert (manifest.count, manifest.shape) == (5, [51, 8])
    store = SegmentStore(tmp_path / "store", "a" * 64)
    for tokens in TOKENS:
        found = store.get(tokens.tobytes())
        np.testing.assert_allclose(
            found.astype(np.float32), STATES[tokens.tobytes()], atol=tolerance
        )
    assert store.get(TOKENS[0][:2].tobytes()) is None


def test_clear_errors(tmp_path):
    folder = tmp_path / "store"
    with pytest.raises(CheckpointError, match="has no manifest"):
        SegmentStore(folder, "a")
    (tmp_path / "foreign" / "inside").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="foreign exists already"):
        write(tmp_path / "foreign")
    folder.mkdir()  # an empty one is as good as a new one
    manifest = write(folder)
    assert write(folder) == manifest
    with pytest.raises(DataError, match="by another model or of another"):
        write(folder, model="b")
    with pytest.raises(CheckpointError, match="computed by another model"):
        SegmentStore(folder, "b")
    data = (folder / "states.npy").read_bytes()
    (folder / "states.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"states\.npy is missing or damaged"):
        SegmentStore(folder, "a" * 64)
    (folder / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest))[:-9])
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        SegmentStore(folder, "a" * 64)
