"""Scoring that leaves the decoder early: when a candidate's score stands (paper section 5).

For use inside jit. Thresholds are arguments, so that calibrating compiles nothing.

A candidate leaves when one more layer hardly changes its score, not when the score is far from a
half: whether somebody clicks is open in itself, and a sure model says 0.5 of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from m6rec_jax.model import Encoded, M6Rec, masks

Array = jax.Array
Variables = Mapping[str, Any]


class Exited(NamedTuple):
    """Scores, and where they were read.

    Attributes:
      values: float32 `[rows, target]`; those at the ends of candidates mean something.
      num_exits: int32 scalar, exits that were run, for the slowest candidate.
    """

    values: Array
    num_exits: Array


def exiting_scores(
    model: M6Rec,
    variables: Variables,
    encoded: Encoded,
    early: Array,
    features: Mapping[str, Array],
    read: Callable[[Array], Array],
) -> Exited:
    """Decodes until every candidate has left.

    A candidate that leaves keeps its score while the layers go on for others, so that it does not
    depend on what shares its batch.

    Args:
      model, variables: the model.
      encoded: one document per row, `[sources, ...]`; the rows of a source stand together.
      early: of `M6Rec.decode_early`, `[rows, target, embed]`.
      features: `decoder_block_ids` `[rows, target]`, `task_ids` `[rows, 1]`, and `exit_threshold`
        (float32) and `exit_depth` (int32) `[rows, 1]`, see `ExitSettings`.
      read: a score in [0, 1] of every position, `[rows, target, embed]` to `[rows, target]`.
    """
    blocks = features["decoder_block_ids"]
    is_end = masks.block_ends(blocks)
    threshold, depth = features["exit_threshold"], features["exit_depth"]

    def look(hidden: Array, exit_index: Array, now: tuple[Exited, Array]) -> tuple[Exited, Array]:
        before, left = now
        values = read(hidden)
        unchanged = 1.0 - jnp.abs(values - before.values)
        settled = (exit_index > 0) & (unchanged >= threshold)
        exited = Exited(jnp.where(left, before.values, values), exit_index + 1)
        return exited, left | settled | (exit_index + 1 >= depth)

    nothing = Exited(jnp.zeros(blocks.shape, jnp.float32), jnp.int32(0))
    exited, _ = model.apply(
        variables,
        encoded,
        early,
        blocks,
        features["task_ids"],
        look,
        (nothing, ~is_end),
        lambda now: ~jnp.all(now[1]),
        method=model.decode_while,
    )
    return exited
