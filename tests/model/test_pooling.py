"""Mean pooling: means by a loop, at [EOS] alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.text.vocabulary import EOS_ID
from tests.model.conftest import tuned

Make = Callable[..., dict[str, Any]]
# Two rows of two documents: candidates of 4, 2 and 3 tokens, then one; documents share block ids.
BLOCKS = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1, 2, 2, 2]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]], np.int32)
TOKENS = np.array([[0, 5, 7, 1, 0, 1, 0, 9, 9, 0], [0, 8, 1, 0, 5, 1, 6, 0, 31, 1]], np.int32)
TASKS = np.array([1, 0], np.int32)


def test_the_mean_of_a_candidate_is_added_to_its_end(
    config: ModelConfig, make_variables: Make
) -> None:
    # Without late interaction the decoder's early part is the embeddings alone.
    pooled = tuned(config, num_tasks=2, pooling_rank=3).replace(late_layers_start=0)
    variables = make_variables(pooled)
    bank = {name: leaf.astype(np.float64) for name, leaf in variables["prompts"]["bank"].items()}
    model = M6Rec(pooled)
    plain = np.asarray(model.apply(variables, TOKENS, TASKS, method="embed"), np.float64)
    expected = plain.copy()
    for row, task in enumerate(TASKS):
        for place in np.flatnonzero(TOKENS[row] == EOS_ID):
            own = (BLOCKS[row] == BLOCKS[row, place]) & (SEGMENTS[row] == SEGMENTS[row, place])
            own[place + 1 :] = False
            mean = np.mean([plain[row, other] for other in np.flatnonzero(own)], axis=0)
            expected[row, place] += mean @ bank["pooling_a"][task] @ bank["pooling_b"][task]
    found = model.apply(
        variables, TOKENS, BLOCKS, TASKS, segment_ids=SEGMENTS, method="decode_early"
    )
    # Sums of ten float32 numbers.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - plain).max() > 0.1


def test_not_with_early_layers_that_all_tasks_share() -> None:
    with pytest.raises(ConfigError, match=r"pooling_rank = 1 .* adapters_late_only"):
        PromptConfig(pooling_rank=1, adapters_late_only=True)
