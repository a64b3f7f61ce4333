"""Vectors for a vocabulary's pieces to start from, so that what is alike starts alike.

`composed_vectors`: pieces that are written alike. In a vocabulary of phrases ", rated 3.65" and
", rated 3.70" are two pieces, "Alien (1979)" and "Aliens (1986)" two more. A piece starts as the
sum of its words, each a random vector that all pieces with the word share, and of its numbers, each
a point on a smooth random curve that all pieces share which differ in that number only.

`neighbour_vectors`: pieces whose behaviours follow each other. How often they do is counted before
training, and the counts are put into few dimensions (positive pointwise mutual information and a
truncated SVD: Levy and Goldberg, 2014, "Neural Word Embedding as Implicit Matrix Factorization";
the smoothing by Levy, Goldberg and Dagan, 2015).
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse

_PARTS = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*")
# The curve's typical wave length, in standard deviations of a clause's numbers: they tell a few
# regions apart without being strangers.
_LENGTH_SCALE = 0.5
# Context frequencies are flattened to this power, or rare pieces would all be near each other.
_SMOOTHING = 0.75
# What is counted this often is half believed.
_HALF_BELIEVED = 5.0

Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def composed_vectors(pieces: Sequence[str], width: int, seed: int = 0) -> np.ndarray:
    """Vectors of pieces ("▁" for a space), each with a mean square of about one: float32
    `[pieces, width]`. With one seed the same words have the same vector in any vocabulary.
    """
    texts = [piece.replace("▁", " ") for piece in pieces]
    clauses = [_NUMBER.sub("#", text) for text in texts]
    numbers = [[_value(n) for n in _NUMBER.findall(text)] for text in texts]
    # Numbers are compared within their clause and place alone: percent with percent.
    seen: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for clause, values in zip(clauses, numbers, strict=True):
        for place, value in enumerate(values):
            seen[clause, place].append(value)
    scales = {key: (float(np.mean(values)), float(np.std(values))) for key, values in seen.items()}
    found = np.zeros((len(texts), width))
    for row, (text, clause, values) in enumerate(zip(texts, clauses, numbers, strict=True)):
        words = [word.lower() for word in _PARTS.findall(clause) if word != "#"]
        parts = [_random(word, width, seed) for word in words]
        for place, value in enumerate(values):
            mean, deviation = scales[clause, place]
            if deviation:
                parts.append(_curve(f"{clause}{place}", (value - mean) / deviation, width, seed))
            else:
                # Nothing to compare it with: then it is a word, such as the "7" of a title.
                parts.append(_random(repr(value), width, seed))
        if not parts:
            parts = [_random(text, width, seed)]
        found[row] = np.sum(parts, axis=0) / np.sqrt(len(parts))
    return found.astype(np.float32)


def _value(number: str) -> float:
    """1,000.5 and 3.85 alike; more than one point is no number but a version, read as digits."""
    plain = number.replace(",", "")
    try:
        return float(plain)
    except ValueError:
        return float(re.sub(r"\D", "", plain))


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode("utf-8", "surrogatepass")), seed])


def _random(name: str, width: int, seed: int) -> np.ndarray:
    return _generator(name, seed).normal(size=width)


def _curve(name: str, place: float, width: int, seed: int) -> np.ndarray:
    """A point `place` along a smooth random curve: random Fourier features (Rahimi and Recht)."""
    rng = _generator(name, seed)
    frequency = rng.normal(0.0, 1.0 / _LENGTH_SCALE, width)
    phase = rng.uniform(0.0, 2.0 * np.pi, width)
    return np.sqrt(2.0) * np.cos(frequency * place + phase)


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
    """Vectors whose dot products say how much more often than by chance pieces are neighbours.

    `seed` is of the SVD's start and of the rotation that spreads the vectors over all dimensions.

    Returns:
      float32 `[pieces, width]`; the mean square is one over the pieces that have neighbours. Zero
        for pieces without neighbours.
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
    kept = sparse.csr_matrix(
        (np.maximum(information, 0.0) * belief, (pairs.row, pairs.col)), shape=counts.shape
    )
    rank = min(width, num_pieces - 1)
    left, values, _ = randomized_svd(kept, rank, n_iter=5, random_state=seed)
    turn, _ = np.linalg.qr(np.random.default_rng([seed, 0xC0]).normal(size=(width, width)))
    vectors = (left * np.sqrt(values)) @ turn[:rank]
    scale = np.sqrt(np.mean(np.square(vectors[totals > 0])))
    return (vectors / max(scale, 1e-12)).astype(np.float32)
