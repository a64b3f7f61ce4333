"""Pieces left out of a text at random, so that training relies on no single one of them.

Whoever reads an item's whole text every time learns the item by heart, by its title or by who made
it, and has nothing to say of one that was never trained on. With a part of the pieces gone, the
others must do: they are treated as DropoutNet (Volkovs et al., NeurIPS 2017) treats features.
Pieces, not words: where a clause of a template is one piece (", from France"), what is left of it
would be spelled in pieces that the whole text never has.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class PieceDropout:
    """Leaves pieces out, each time others.

    Attributes:
      share: probability that a piece is left out, from 0 up to below 1.
      rng: of the draws; one number a piece.
    """

    share: float
    rng: np.random.Generator

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """The ids `[n]` of a text without some of them; where none would be left, one of them."""
        if len(ids) == 0:
            return ids
        draws = self.rng.random(len(ids))
        kept = ids[draws >= self.share]
        return kept if len(kept) else ids[[int(draws.argmax())]]
