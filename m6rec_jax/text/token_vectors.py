"""Vectors for a vocabulary's tokens to start from, so that what is alike starts alike.

`composed_vectors`: tokens that are written alike. In a vocabulary of phrases ", rated 3.65" and
", rated 3.70" are two tokens, "Alien (1979)" and "Aliens (1986)" two more. A token starts as the
sum of its words, each a random vector that all tokens with the word share, and of its numbers, each
a point on a smooth random curve that all tokens share which differ in that number only.

`neighbour_vectors`: tokens whose behaviours follow each other. How often they do is counted before
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
# Context frequencies are flattened to this power, or rare tokens would all be near each other.
_SMOOTHING = 0.75
# What is counted this often is half believed.
_HALF_BELIEVED = 5.0

Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def composed_vectors(tokens: Sequence[str], width: int, seed: int = 0) -> np.ndarray:
    """Vectors of tokens ("▁" for a space), each with a mean square of about one: float32
    `[tokens, width]`. With one seed the same words have the same vector in any vocabulary.
    """
    texts = [token.replace("▁", " ") for token in tokens]
    clauses = [_NUMBER.sub("#", text) for text in texts]
    numbers = [[_value(n) for n in _NUMBER.findall(text)] for text in texts]
    # Numbers are compared within their clause and place alone: percent with percent.
    values_at: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for clause, values in zip(clauses, numbers, strict=True):
        for place, value in enumerate(values):
            values_at[clause, place].append(value)
    scales = {key: (float(np.mean(v)), float(np.std(v))) for key, v in values_at.items()}
    vectors = np.zeros((len(texts), width))
    for row, (text, clause, values) in enumerate(zip(texts, clauses, numbers, strict=True)):
        words = [word.lower() for word in _PARTS.findall(clause) if word != "#"]
        parts = [_random(word, seed).normal(size=width) for word in words]
        for place, value in enumerate(values):
            mean, deviation = scales[clause, place]
            if deviation:
                # A point on a smooth random curve: random Fourier features (Rahimi and Recht).
                curve = _random(f"{clause}{place}", seed)
                frequency = curve.normal(0.0, 1.0 / _LENGTH_SCALE, width)
                phase = curve.uniform(0.0, 2.0 * np.pi, width)
                angle = frequency * ((value - mean) / deviation) + phase
                parts.append(np.sqrt(2.0) * np.cos(angle))
            else:
                # Nothing to compare it with: then it is a word, such as the "7" of a title.
                parts.append(_random(repr(value), seed).normal(size=width))
        if not parts:
            parts = [_random(text, seed).normal(size=width)]
        vectors[row] = np.sum(parts, axis=0) / np.sqrt(len(parts))
    return vectors.astype(np.float32)


def _value(number: str) -> float:
    """1,000.5 and 3.85 alike; more than one point is no number but a version, read as digits."""
    plain = number.replace(",", "")
    return float(plain if plain.count(".") < 2 else re.sub(r"\D", "", plain))


def _random(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode("utf-8", "surrogatepass")), seed])


def count_neighbours(
    batches: Iterable[Rows], num_tokens: int, max_distance: int = 6
) -> sparse.csr_matrix:
    """How often tokens stand in blocks near each other.

    Args:
      batches: token ids int32 `[rows, length]`, their block ids int32 of that shape (0: padding;
        ascending within a document), and where several documents are packed into a row their
        segment ids of that shape, else None.
      num_tokens: ids from here on, and id 0, are control tokens and do not count.
      max_distance: blocks. A pair at distance d counts 1/d; tokens of one block are no pair.

    Returns:
      Symmetric float64 `[num_tokens, num_tokens]`.
    """
    counts = sparse.csr_matrix((num_tokens, num_tokens))
    for tokens, blocks, segments in batches:
        counted = (tokens > 0) & (tokens < num_tokens) & (blocks > 0)
        pairs: list[tuple[np.ndarray, ...]] = []
        for offset in range(1, tokens.shape[1]):
            distance = blocks[:, offset:] - blocks[:, :-offset]
            near = (blocks[:, offset:] > 0) & (blocks[:, :-offset] > 0) & (distance <= max_distance)
            if segments is not None:
                near &= segments[:, offset:] == segments[:, :-offset]
            # Control tokens are near, too: behind them there may be text.
            if not near.any():
                break  # farther on, blocks are farther apart
            pair = near & counted[:, offset:] & counted[:, :-offset] & (distance > 0)
            first, second = tokens[:, :-offset], tokens[:, offset:]
            pairs.append((first[pair], second[pair], 1.0 / distance[pair]))
        if pairs:
            *places, weights = map(np.concatenate, zip(*pairs, strict=True))
            counts += sparse.csr_matrix((weights, places), shape=counts.shape)
    return (counts + counts.T).tocsr()


def neighbour_vectors(counts: sparse.csr_matrix, width: int, seed: int = 0) -> np.ndarray:
    """Vectors whose dot products say how much more often than by chance tokens are neighbours.

    `seed` is of the SVD's start and of the rotation that spreads the vectors over all dimensions.

    Returns:
      float32 `[tokens, width]`; the mean square is one over the tokens that have neighbours. Zero
        for tokens without neighbours.
    """
    from sklearn.utils.extmath import randomized_svd

    num_tokens = counts.shape[0]
    if counts.nnz == 0:
        return np.zeros((num_tokens, width), np.float32)
    pairs = counts.tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    context = totals**_SMOOTHING
    context /= context.sum()
    information = np.log(pairs.data / (totals[pairs.row] * context[pairs.col]))
    belief = np.sqrt(pairs.data / (pairs.data + _HALF_BELIEVED))
    kept = sparse.csr_matrix(
        (np.maximum(information, 0.0) * belief, (pairs.row, pairs.col)), shape=counts.shape
    )
    rank = min(width, num_tokens - 1)
    left, values, _ = randomized_svd(kept, rank, n_iter=5, random_state=seed)
    turn, _ = np.linalg.qr(np.random.default_rng([seed, 0xC0]).normal(size=(width, width)))
    vectors = (left * np.sqrt(values)) @ turn[:rank]
    scale = np.sqrt(np.mean(np.square(vectors[totals > 0])))
    return (vectors / max(scale, 1e-12)).astype(np.float32)
