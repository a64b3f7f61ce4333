"""t5x checkpoints in both layouts, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import serialization

from m6rec_jax.checkpoints.t5x import read_t5x, write_t5x
from m6rec_jax.checkpoints.t5x_files import checkpoint_folder
from m6rec_jax.checkpoints.trees import nested
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model import ModelConfig
from tests.checkpoints.t5_weights import (
    CONFIGS,
    T5_1_1,
    UMT5,
    assert_same_leaves,
    random_weights,
)

KERNEL = "target.encoder.layers_1.attention.query.kernel"


def read_array(folder: Path, name: str) -> np.ndarray:
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / name)}}
    return tensorstore.open(spec).result().read().result()


def edit_index(folder: Path, change: Any) -> None:
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    change(index)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_t5x(random_weights(T5_1_1), tmp_path, step=1000)


@pytest.mark.parametrize(
    ("config", "scanned"),
    [*((config, False) for config in CONFIGS.values()), (UMT5, True)],
    ids=[*CONFIGS, "umt5_scanned"],
)
def test_round_trip(config: ModelConfig, scanned: bool, tmp_path: Path) -> None:
    weights = random_weights(config)
    write_t5x(weights, tmp_path, step=3, scanned=scanned)
    again = read_t5x(tmp_path)
    assert again.config == config
    assert_same_leaves(again, weights)


def test_names_and_layouts(folder: Path) -> None:
    """Spelled out by hand, once, from t5x/examples/t5."""
    leaves = random_weights(T5_1_1).leaves
    query = leaves["encoder/layers/self_attention/query/kernel"][1]
    np.testing.assert_array_equal(read_array(folder, KERNEL), query.reshape(8, 12))
    np.testing.assert_array_equal(
        read_array(folder, "target.decoder.relpos_bias.rel_embedding"),
        leaves["decoder/relative_bias/embedding"].T,
    )
    np.testing.assert_array_equal(
        read_array(folder, "target.decoder.layers_1.encoder_decoder_attention.out.kernel"),
        leaves["decoder/layers/cross_attention/out/kernel"][1].reshape(12, 8),
    )
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "checkpoint",
        "target.token_embedder.embedding",
        "target.encoder.encoder_norm.scale",
        "target.encoder.layers_0.pre_attention_layer_norm.scale",
        "target.encoder.layers_2.mlp.wi_1.kernel",
        "target.decoder.layers_0.pre_self_attention_layer_norm.scale",
        "target.decoder.layers_0.pre_cross_attention_layer_norm.scale",
        "target.decoder.layers_0.pre_mlp_layer_norm.scale",
        "target.decoder.logits_dense.kernel",
    }
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    assert index["version"] == 3
    assert index["optimizer"]["state"]["step"] == 1000


def test_scanned_layout(tmp_path: Path) -> None:
    """Layers are axis 1, vectors included; heads are apart."""
    folder = write_t5x(random_weights(UMT5), tmp_path, scanned=True)
    leaves = random_weights(UMT5).leaves
    wo = leaves["decoder/layers/mlp/wo/kernel"]
    np.testing.assert_array_equal(
        read_array(folder, "target.decoder.decoder.mlp.wo.kernel"), wo.transpose(1, 0, 2)
    )
    out = leaves["encoder/layers/self_attention/out/kernel"]
    np.testing.assert_array_equal(
        read_array(folder, "target.encoder.encoder.attention.out.kernel"), out.transpose(1, 0, 2, 3)
    )
    np.testing.assert_array_equal(
        read_array(folder, "target.encoder.encoder.pre_mlp_layer_norm.scale"),
        leaves["encoder/layers/mlp_norm/scale"].T,
    )
    np.testing.assert_array_equal(
        read_array(folder, "target.encoder.encoder.relpos_bias.rel_embedding"),
        leaves["encoder/layers/relative_bias/embedding"].transpose(2, 0, 1),
    )


def test_arrays_in_the_index_and_bfloat16(folder: Path) -> None:
    """Small arrays lie in the index itself; old checkpoints keep bfloat16 as its bits."""
    leaves = random_weights(T5_1_1).leaves
    scale = leaves["encoder/final_norm/scale"].astype(jnp.bfloat16)

    def put(index: dict[str, Any]) -> None:
        index["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"] = scale.view(np.uint16)

    edit_index(folder, put)
    np.testing.assert_array_equal(
        read_t5x(folder).leaves["encoder/final_norm/scale"], scale.astype(np.float32)
    )


def test_written_to_a_bucket_and_copied_here(folder: Path) -> None:
    def move(index: dict[str, Any]) -> None:
        spec = index["optimizer"]["target"]["token_embedder"]["embedding"]
        spec["path"] = spec["kvstore"].pop("path")
        spec["kvstore"] |= {"driver": "gcs", "bucket": "t5x-dummy-bucket"}

    edit_index(folder, move)
    assert_same_leaves(read_t5x(folder), random_weights(T5_1_1))


def test_the_newest_of_several(tmp_path: Path) -> None:
    for step in (900, 1000, 20):
        write_t5x(random_weights(T5_1_1, seed=step), tmp_path, step=step)
    assert checkpoint_folder(tmp_path).name == "checkpoint_1000"
    assert_same_leaves(read_t5x(tmp_path), random_weights(T5_1_1, seed=1000))
    with pytest.raises(CheckpointError, match="exists already"):
        write_t5x(random_weights(T5_1_1), tmp_path, step=20)


def test_what_t5x_writes_through_orbax(folder: Path, tmp_path: Path) -> None:
    """As today's t5x does: one item, with the optimizer's state beside the parameters."""
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    tree = nested({name.replace(".", "/"): read_array(folder, name) for name in names})
    state = {**tree, "state": {"step": np.int32(5), "param_states": {"v": np.ones(3)}}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        path = tmp_path.absolute() / "runs" / "checkpoint_5" / "state"
        checkpointer.save(path, args=ocp.args.PyTreeSave(state))
    again = read_t5x(tmp_path / "runs")
    assert again.config == T5_1_1
    assert_same_leaves(again, random_weights(T5_1_1))


def test_every_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    def spoil(index: dict[str, Any]) -> None:
        target = index["optimizer"]["target"]
        del target["decoder"]["layers_1"]["mlp"]["wo"]
        target["encoder"]["extra"] = np.ones(3, np.float32)
        target["encoder"]["layers_1"]["attention"]["query"]["kernel"] = np.ones((8, 13), "f4")

    edit_index(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        read_t5x(folder)
    for part in (
        "no tensor 'target.decoder.layers_1.mlp.wo.kernel', wanted [10, 8]",
        "tensor 'target.encoder.extra' [3] has no place",
        f"tensor '{KERNEL}' is [8, 13], wanted [8, 12]",
    ):
        assert part in str(caught.value)


def test_missing_and_damaged_files(folder: Path, tmp_path: Path) -> None:
    chunk = folder / KERNEL / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=KERNEL):
        read_t5x(folder)
    chunk.unlink()
    with pytest.raises(CheckpointError, match=r"damaged: .*0\.0"):
        read_t5x(folder)
    (folder / "checkpoint").write_bytes(b"\x93")
    with pytest.raises(CheckpointError, match="is no checkpoint of t5x, or damaged"):
        read_t5x(folder)
    (tmp_path / "orbax" / "state").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="is no checkpoint of t5x, or damaged"):
        read_t5x(tmp_path / "orbax")
    with pytest.raises(CheckpointError, match="no t5x checkpoint at"):
        read_t5x(tmp_path / "nowhere")


def test_large_arrays_are_cut_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m6rec_jax.checkpoints.t5x_files._CHUNK_BYTES", 1000)
    folder = write_t5x(random_weights(T5_1_1), tmp_path)
    assert (folder / "target.token_embedder.embedding" / "4.0").exists()
    assert_same_leaves(read_t5x(folder), random_weights(T5_1_1))


def test_zeros_are_written_out(tmp_path: Path) -> None:
    weights = random_weights(T5_1_1)
    weights.leaves["encoder/final_norm/scale"].fill(0.0)
    folder = write_t5x(weights, tmp_path)
    assert (folder / "target.encoder.encoder_norm.scale" / "0").exists()
    assert_same_leaves(read_t5x(folder), weights)
