"""Fingerprints and checksums depend on names and values only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from m6rec_jax.checkpoints.fingerprint import checksums, fingerprint
from m6rec_jax.checkpoints.trees import flatten, nested, unflatten

TREE = {
    "encoder": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)},
    "scale": np.ones(4, np.float32),
}


def test_order_and_device_do_not_matter() -> None:
    turned = dict(reversed(list(TREE.items())))
    assert fingerprint(turned) == fingerprint(TREE) == fingerprint(jax.device_put(TREE))
    strided = {**TREE, "encoder": {"kernel": np.asfortranarray(TREE["encoder"]["kernel"])}}
    assert fingerprint(strided) == fingerprint(TREE)


@pytest.mark.parametrize(
    "other",
    [
        {**TREE, "scale": np.ones(4, np.float16)},
        {**TREE, "scale": np.ones((2, 2), np.float32)},
        {**TREE, "scale": np.array([1, 1, 1, np.nextafter(1, 2, dtype=np.float32)], np.float32)},
        {"encoder": TREE["encoder"], "scales": TREE["scale"]},
        {"encoder": TREE["encoder"]},
    ],
    ids=["type", "shape", "value", "name", "missing"],
)
def test_everything_else_matters(other: dict) -> None:
    assert fingerprint(other) != fingerprint(TREE)


@settings(max_examples=40)
@given(
    npst.arrays(np.uint32, (3, 4)).map(lambda x: x.view(np.float32)),
    st.integers(0, 11),
    st.integers(0, 31),
)
def test_every_flipped_bit_changes_the_checksum(array: np.ndarray, index: int, bit: int) -> None:
    flipped = array.copy()
    flipped.reshape(-1).view(np.uint32)[index] ^= np.uint32(1) << np.uint32(bit)
    assert checksums({"x": array}) != checksums({"x": flipped})


def test_checksum_by_hand() -> None:
    bits = np.array([[3, 5], [7, 2**32 - 1]], np.uint64)
    expected = int(sum(b * (2 * i + 1) for i, b in enumerate(bits.reshape(-1).tolist())) % 2**32)
    assert checksums({"x": bits.astype(np.uint32).view(np.int32)}) == {"x": expected}
    assert checksums({"x": jnp.asarray([1.0], jnp.bfloat16)}) == {"x": 0x3F80}


def test_trees_by_name_and_back() -> None:
    tree = {"a": [jnp.zeros(1), (jnp.ones(2),)], "b": {}, "c": None}
    flat = flatten(tree)
    assert list(flat) == ["a/0", "a/1/0"]
    assert nested(flat) == {"a": {"0": flat["a/0"], "1": {"0": flat["a/1/0"]}}}
    assert unflatten(flat, tree) == tree
