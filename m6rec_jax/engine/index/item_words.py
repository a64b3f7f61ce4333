"""How alike the texts of items are, by their words: TF-IDF.

It needs no training and no one who acted on an item, and it knows names that two towers blur. Only
items that share a word with a user's last ones are looked at (postings), so a request costs as much
as its words are frequent.

    words = ItemWords(catalogue.texts)
    near = words.near([[3, 17], [5]])       # sparse [users, items], by the last items
    alike = words.alike([[3, 17], [5]])     # likewise, by many
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

# Letters with their marks, and digits.
_NO_WORD = r"[^\p{L}\p{M}\p{N}]+"
# With weights 1/k, items further back hardly matter.
_RECENT = 5
# Where all weigh the same: what a user likes whenever.
_MANY = 50


class ItemWords:
    """Vectors of a catalogue's texts: a word weighs (1 + log times) * log(texts / texts with it).

    Args:
      texts: of the items, in the order of their indices.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        lower = pc.utf8_lower(pa.array(texts, pa.large_string()))
        cut = pc.split_pattern_regex(lower, _NO_WORD)
        items, words = pc.list_parent_indices(cut), pc.list_flatten(cut)
        there = pc.greater(pc.binary_length(words), 0)
        known = words.filter(there).dictionary_encode()
        places = (items.filter(there).to_numpy(), known.indices.to_numpy())
        shape = (len(texts), len(known.dictionary))
        # Repeated places are summed.
        times = sparse.csr_matrix((np.ones(len(places[0]), np.float32), places), shape)
        frequency = np.bincount(times.indices, minlength=shape[1])
        times.data = (1.0 + np.log(times.data)) * np.log(len(texts) / frequency)[times.indices]
        lengths = np.sqrt(times.multiply(times).sum(axis=1).A1)
        scale = sparse.diags(1.0 / np.where(lengths > 0, lengths, 1.0))
        self._vectors = (scale @ times).astype(np.float32).tocsr()
        self._vectors.eliminate_zeros()  # words of every text
        self._postings = self._vectors.T.tocsr()

    def near(self, past: Sequence[Sequence[int] | np.ndarray]) -> sparse.csr_matrix:
        """Mean cosine of each item and a user's last five, the k-th last weighted 1/k.

        Of items per user, oldest first, which are themselves among those found: float32
        `[users, items]`, from 0 to 1; only items that share a word have an entry.
        """
        return self._cosines(past, 1.0 / np.arange(1, _RECENT + 1))

    def alike(self, past: Sequence[Sequence[int] | np.ndarray]) -> sparse.csr_matrix:
        """As `near`, with the last fifty, weighted alike."""
        return self._cosines(past, np.ones(_MANY))

    def _cosines(
        self, past: Sequence[Sequence[int] | np.ndarray], weights: np.ndarray
    ) -> sparse.csr_matrix:
        """Means of the cosines with as many last items as there are weights, the last one first."""
        last = [items[::-1][: len(weights)] for items in past]
        shares = [weights[: len(items)] / weights[: len(items)].sum() for items in last]
        offsets = np.cumsum([0, *map(len, last)])
        read = sparse.csr_matrix(
            (
                np.concatenate([np.zeros(0, np.float32), *shares]).astype(np.float32),
                np.concatenate([np.zeros(0, np.int64), *last]).astype(np.int64),
                offsets,
            ),
            (len(last), self._vectors.shape[0]),
        )
        return sparse.csr_matrix(read @ self._vectors @ self._postings)
