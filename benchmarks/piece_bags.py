"""Bags of pieces of a scoring task's rows, for linear models on the features that ours read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from m6rec_jax.pipeline.batches import EvaluationBatches

_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class Bags:
    """Candidates of a part of a task.

    Attributes:
      pieces: 0 or 1 `[n, 2 * vocab_size]`: which pieces the profile and the history hold, then
        which ones the candidate does.
      classes: int64 `[n]`, as the task labels them.
      users: int64 `[n]`, places in their table.
    """

    pieces: sparse.csr_matrix
    classes: np.ndarray
    users: np.ndarray


def piece_bags(task: str, lengths: Mapping[str, int], part: str, vocab_size: int) -> Bags:
    """Reads a part of a scoring task, cut to the same lengths as the model reads it.

    Args:
      task: name of a registered scoring task.
      lengths: `{"inputs": S, "targets": T}`.
      part: 'train', 'validation' or 'test'.
      vocab_size: ids are below it.

    Raises:
      DataError: the part is empty or not prepared.
    """
    found: list[Bags] = []
    for batch in EvaluationBatches(task, lengths, _BATCH_SIZE, split=part):
        rows, places = np.nonzero(batch["decoder_labels"] >= 0)
        source = _presence(
            *_held(batch["encoder_input_tokens"]), len(batch["user_ids"]), vocab_size
        )
        blocks = batch["decoder_block_ids"]
        # Which candidate a block of a row is.
        candidate = np.full((len(blocks), blocks.max() + 1), -1)
        candidate[rows, blocks[rows, places]] = np.arange(len(rows))
        at_rows, at_places = np.nonzero(batch["decoder_input_tokens"])
        owner = candidate[at_rows, blocks[at_rows, at_places]]
        known = owner >= 0
        tokens = batch["decoder_input_tokens"][at_rows, at_places]
        target = _presence(owner[known], tokens[known], len(rows), vocab_size)
        found.append(
            Bags(
                sparse.hstack([source[rows], target], format="csr"),
                batch["decoder_labels"][rows, places].astype(np.int64),
                batch["user_ids"][rows, 0].astype(np.int64),
            )
        )
    return Bags(
        sparse.vstack([bags.pieces for bags in found], format="csr"),
        np.concatenate([bags.classes for bags in found]),
        np.concatenate([bags.users for bags in found]),
    )


def _held(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, token) of all that is no padding."""
    rows, places = np.nonzero(tokens)
    return rows, tokens[rows, places]


def _presence(rows: np.ndarray, tokens: np.ndarray, num_rows: int, size: int) -> sparse.csr_matrix:
    pairs = np.unique(np.stack([rows, tokens], 1), axis=0)
    ones = np.ones(len(pairs), np.float32)
    return sparse.csr_matrix((ones, (pairs[:, 0], pairs[:, 1])), (num_rows, size))
