"""Vectors of pieces from what stands near what: which behaviours follow each other.

Two titles are alike for a recommender when people come to them one after the other. How often they
do is counted before training, and the counts are put into few dimensions (positive pointwise mutual
information and a truncated SVD: Levy and Goldberg, 2014, "Neural Word Embedding as Implicit Matrix
Factorization"; the smoothing by Levy, Goldberg and Dagan, 2015). A gradient has to find the same
from pairs that it sees one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import sparse

# Context frequencies are flattened to this power, or rare pieces would all be near each other.
_SMOOTHING = 0.75
# What is counted this often is half believed.
_HALF_BELIEVED = 5.0

Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def count_neighbours(
    batches: Iterable[Rows], num_pieces: int, max_distance: int = 6
) -> sparse.csr_matrix:
    """How often pieces stand in blocks near each other.

    Args:
      batches: token ids int32 `[rows, length]`, their block ids int32 of that shape (0: padding;
        ascending within a document), and where several documents are packed into a row their
        segment ids of that shape, else None.
      num_pieces: ids from here on, and id 0, are control tokens and do not count.
      max_distance: blocks. A pair at distance d counts 1/d; pieces of one block are no pair.

    Returns:
      Symmetric float64 `[num_pieces, num_pieces]`.
    """
    counts = sparse.csr_matrix((num_pieces, num_pieces))
    for tokens, blocks, segments in batches:
        counted = (tokens > 0) & (tokens < num_pieces) & (blocks > 0)
        first, second, weights = [], [], []
        for offset in range(1, tokens.shape[1]):
            distance = blocks[:, offset:] - blocks[:, :-offset]
            near = (blocks[:, offset:] > 0) & (blocks[:, :-offset] > 0) & (distance <= max_distance)
            if segments is not None:
                near &= segments[:, offset:] == segments[:, :-offset]
            # Control tokens are near, too: behind them there may be pieces.
            if not near.any():
                break  # farther on, blocks are farther apart
            pair = near & counted[:, offset:] & counted[:, :-offset] & (distance > 0)
            first.append(tokens[:, :-offset][pair])
            second.append(tokens[:, offset:][pair])
            weights.append(1.0 / distance[pair])
        if first:
            places = (np.concatenate(first), np.concatenate(second))
            counts += sparse.coo_matrix(
                (np.concatenate(weights), places), shape=counts.shape
            ).tocsr()
    return (counts + counts.T).tocsr()


def neighbour_vectors(counts: sparse.csr_matrix, width: int, seed: int = 0) -> np.ndarray:
    """Vectors whose dot products tell how much more often than by chance pieces are neighbours.

    Args:
      counts: of `count_neighbours`.
      width: of the vectors.
      seed: of the SVD's start and of the turn that spreads what is found over all dimensions.

    Returns:
      float32 `[pieces, width]`; the mean square is one over the pieces that have neighbours, and
      larger for pieces that tell more. Zero for pieces without neighbours.
    """
    from sklearn.utils.extmath import randomized_svd

    num_pieces = counts.shape[0]
    if counts.nnz == 0:
        return np.zeros((num_pieces, width), np.float32)
    pairs = counts.tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    context = totals**_SMOOTHING
    context /= context.sum()
    information = np.log(pairs.data / (totals[pairs.row] * context[pairs.col]))
    belief = np.sqrt(pairs.data / (pairs.data + _HALF_BELIEVED))
    told = sparse.csr_matrix(
        (np.maximum(information, 0.0) * belief, (pairs.row, pairs.col)), shape=counts.shape
    )
    rank = min(width, num_pieces - 1)
    left, values, _ = randomized_svd(told, rank, n_iter=5, random_state=seed)
    turn, _ = np.linalg.qr(np.random.default_rng([seed, 0xC0]).normal(size=(width, width)))
    vectors = (left * np.sqrt(values)) @ turn[:rank]
    scale = np.sqrt(np.mean(np.square(vectors[totals > 0])))
    return (vectors / max(scale, 1e-12)).astype(np.float32)
