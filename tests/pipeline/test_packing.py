"""Packing keeps every token of every document, and never mixes what must stay apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError
from m6rec_jax.pipeline.feature_converter import first_fit, pack_rows
from m6rec_jax.pipeline.features import MODEL_FEATURES, TASK_FEATURES, feature_lengths

LENGTHS = feature_lengths({"inputs": 12, "targets": 8})


def window_of(documents):
    """documents: (source length, target length, task id, retrieval) -> padded window."""
    window = {
        name: np.full((len(documents), LENGTHS[name]), feature.padding, feature.dtype)
        for name, feature in TASK_FEATURES.items()
    }
    for i, (source, target, task, retrieval) in enumerate(documents):
        for name, feature in MODEL_FEATURES.items():
            size = {"inputs": source, "targets": target, "row": 1}[feature.axis]
            window[name][i, :size] = 100 * i + np.arange(1, size + 1)
        window["encoder_block_ids"][i, :source] = 1 + np.arange(source) // 3
        window["decoder_block_ids"][i, :target] = 1
        window["task_ids"][i], window["retrieval"][i], window["num_dropped"][i] = task, retrieval, i
    return window


DOCUMENTS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(0, 1), st.integers(0, 1)),
    min_size=1,
    max_size=12,
)


@given(DOCUMENTS)
@settings(max_examples=80)
def test_every_document_survives_whole_and_in_bounds(documents):
    window = window_of(documents)
    packed = pack_rows(window, LENGTHS)
    assert set(packed) == {*TASK_FEATURES, "encoder_segment_ids", "decoder_segment_ids"}
    found = []
    for r in range(len(packed["task_ids"])):
        segments = packed["encoder_segment_ids"][r]
        members = []
        for k in range(1, segments.max() + 1):
            source = np.flatnonzero(segments == k)
            target = np.flatnonzero(packed["decoder_segment_ids"][r] == k)
            i = int(packed["encoder_input_tokens"][r, source[0]]) // 100
            members.append(i)
            for name, feature in MODEL_FEATURES.items():
                if feature.axis == "row":
                    continue
                at = source if feature.axis == "inputs" else target
                assert (np.diff(at) == 1).all()
                np.testing.assert_array_equal(packed[name][r, at], window[name][i, : len(at)])
            assert packed["task_ids"][r, 0] == documents[i][2]
            assert packed["retrieval"][r, 0] == documents[i][3]
        if len(members) > 1:
            assert documents[members[0]][3] == 0
            assert packed["user_ids"][r, 0] == -1
        assert packed["num_dropped"][r, 0] == sum(members)
        for name, feature in MODEL_FEATURES.items():
            segment_ids = {"inputs": segments, "targets": packed["decoder_segment_ids"][r]}
            if feature.axis != "row":
                padding = packed[name][r, segment_ids[feature.axis] == 0]
                assert (padding == feature.padding).all()
        found += members
    assert sorted(found) == list(range(len(documents)))


def test_first_fit_uses_both_dimensions():
    assert first_fit([(5, 1), (5, 8), (2, 1)], (12, 8)) == [[1], [0, 2]]


def test_lengths_are_checked():
    assert feature_lengths({"inputs": 5, "targets": 3})["decoder_labels"] == 3
    with pytest.raises(ConfigError):
        feature_lengths({"inputs": 5})
    with pytest.raises(ConfigError):
        feature_lengths({"inputs": 0, "targets": 3})
