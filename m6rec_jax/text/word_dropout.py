"""Words left out of a text at random, so that training relies on no single one of them.

Whoever reads an item's whole text every time learns the item by heart, by its title or by who made
it, and has nothing to say of one that was never trained on. With a part of the words gone, the
others must do: words are treated as DropoutNet (Volkovs et al., NeurIPS 2017) treats features.
"""

from __future__ import annotations

import numpy as np


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """A text without some of its words.

    Args:
      text: words, apart by white space.
      share: probability that a word is left out.
      rng: of the draw; one number a word.

    Returns:
      The words that are left, a space between them; where none would be, one of the words.
    """
    words = text.split()
    if not words:
        return text
    draws = rng.random(len(words))
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= share]
    return " ".join(kept) if kept else words[int(np.argmax(draws))]
