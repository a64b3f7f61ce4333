"""Vectors for a vocabulary's pieces to start from, so that what is written alike starts alike.

In a vocabulary of phrases ", rated 3.65" and ", rated 3.70" are two pieces, and "Alien (1979)" and
"Aliens (1986)" two more. Random vectors make strangers of them: each of a hundred numbers has to be
learnt by itself. Here a piece starts as the sum of its parts:

  * its words, each a random vector that all pieces with the word share;
  * its numbers, each a point on a smooth random curve that all pieces share which differ in that
    number only, so that near numbers start near each other.

They are a start and nothing else: training moves every piece by itself from there.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

_PARTS = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*")
# The curve's typical wave length, in standard deviations of a clause's numbers: they tell a few
# regions apart without being strangers.
_LENGTH_SCALE = 0.5


def composed_vectors(pieces: Sequence[str], width: int, seed: int = 0) -> np.ndarray:
    """Vectors of pieces, each with a mean square of about one.

    Args:
      pieces: as the vocabulary writes them ("▁" for a space).
      width: of the vectors.
      seed: of all random vectors; the same words have the same vector in any vocabulary.

    Returns:
      float32 `[pieces, width]`.
    """
    texts = [piece.replace("▁", " ") for piece in pieces]
    clauses = [_NUMBER.sub("#", text) for text in texts]
    numbers = [[_value(n) for n in _NUMBER.findall(text)] for text in texts]
    # Numbers are compared within their clause and place alone: percent with percent.
    seen: dict[tuple[str, int], list[float]] = {}
    for clause, values in zip(clauses, numbers, strict=True):
        for place, value in enumerate(values):
            seen.setdefault((clause, place), []).append(value)
    scales = {key: (float(np.mean(values)), float(np.std(values))) for key, values in seen.items()}
    found = np.zeros((len(texts), width))
    for row, (text, clause, values) in enumerate(zip(texts, clauses, numbers, strict=True)):
        parts = [_random(word.lower(), width, seed) for word in _words(clause)]
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


def _words(clause: str) -> list[str]:
    return [part for part in _PARTS.findall(clause) if part != "#"]


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
