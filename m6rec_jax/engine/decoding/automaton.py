"""Which tokens may come next: any text, the titles of a catalogue, or texts that are put together.

An automaton lies on the device as compressed sparse rows, an argument of the compiled program:

    edges of node n     numbers first_edge[n] … first_edge[n + 1] - 1
    token[e], target[e] the token on edge e, and the node that it leads to

Where a text stands is one number, its node; -1 where it is written freely. A mask is made from the
edges of the current node alone: gathered into as many slots as the widest node has, then scattered
into the vocabulary. For R rows that takes R x width memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

Array = jax.Array
Leaf = Any  # of numpy until a batch is sent

NO_ENTRY = -1
FREELY = -1  # the node of texts that follow no graph


class Automaton(NamedTuple):
    """What the sources of a batch may write.

    Attributes:
      free: bool `[vocab]`, the tokens of texts without a graph; None: all follow one.
      first_edge: int32 `[nodes + 1]`; None: no text follows a graph.
      token, target: int32 `[edges]`.
      slots: int32 `[width]`, 0, 1, 2, …; its length carries the number of edges of the widest node
        into compiled code.
      rest: int32 `[nodes]`, how many tokens it takes at least to the end of a text; None where
        every text has room.
      first_entry, end_entry: int32 `[nodes]`: below a node are the titles first_entry …
        end_entry - 1, sorted by their tokens; None: no titles.
      start: int32 `[sources]`, the node where texts begin, or `FREELY`; None: all at node 0, or
        freely where there is no graph.
      num_excluded: int32 `[sources, titles + 1]`, of the titles before each one, how many must not
        come; None: all may.
    """

    free: Leaf = None
    first_edge: Leaf = None
    token: Leaf = None
    target: Leaf = None
    slots: Leaf = None
    rest: Leaf = None
    first_entry: Leaf = None
    end_entry: Leaf = None
    start: Leaf = None
    num_excluded: Leaf = None

    def without(self, excluded: Array) -> Automaton:
        """The same, but for titles that must not come, bool `[sources, titles]`."""
        counts = jnp.cumsum(excluded, axis=1, dtype=jnp.int32)
        return self._replace(num_excluded=jnp.pad(counts, ((0, 0), (1, 0))))

    def start_nodes(self, num_sources: int, rows_per_source: int = 1) -> Array:
        """Nodes `[rows]` before the first token; rows of one source lie next to one another."""
        if self.start is not None:
            return jnp.repeat(self.start, rows_per_source)
        node = FREELY if self.first_edge is None else 0
        return jnp.full(num_sources * rows_per_source, node, jnp.int32)

    def mask(self, node: Array, log_probs: Array, room: ArrayLike) -> Array:
        """log_probs `[rows, vocab]`, -inf at every token that must not come next.

        Means nothing within a prefix, whose tokens are given. No text begins that would not end in
        its room (tokens, `[EOS]` included; a scalar or `[rows]`), unless none would.
        """
        if self.first_edge is None:
            return jnp.where(self.free, log_probs, -jnp.inf)
        edges, present = self._edges(node)
        rows = jnp.arange(node.shape[0])[:, None]
        target = self.target[edges]
        if self.num_excluded is not None:
            # A branch is dead when all titles below it are excluded.
            first, end = self.first_entry[target], self.end_entry[target]
            source = rows * self.num_excluded.shape[0] // node.shape[0]
            dead = self.num_excluded[source, end] - self.num_excluded[source, first]
            present &= dead != end - first
        if self.rest is not None:
            fits = present & (self.rest[target] < jnp.asarray(room)[..., None])
            present = jnp.where(fits.any(axis=1, keepdims=True), fits, present)
        # Out of range, so that the scatter below drops it.
        tokens = jnp.where(present, self.token[edges], log_probs.shape[-1])
        values = jnp.take_along_axis(log_probs, tokens, axis=-1, mode="clip")
        masked = jnp.full_like(log_probs, -jnp.inf).at[rows, tokens].set(values, mode="drop")
        if self.free is None:
            return masked
        freely = jnp.where(self.free, log_probs, -jnp.inf)
        return jnp.where((node < 0)[:, None], freely, masked)

    def advance(self, node: Array, tokens: Array, given: Array) -> Array:
        """Nodes after tokens `[rows]`; those `given` by a prefix, bool `[rows]`, lead nowhere."""
        if self.first_edge is None:
            return node
        edges, present = self._edges(node)
        taken = present & (self.token[edges] == tokens[:, None])
        target = jnp.max(jnp.where(taken, self.target[edges], -1), axis=-1)
        return jnp.where(given | (node < 0) | (target < 0), node, target)

    def entries(self, node: Array) -> Array:
        """Which title each text is, `NO_ENTRY` where none is complete."""
        if self.first_entry is None:
            return jnp.full_like(node, NO_ENTRY)
        is_leaf = self.first_edge[node] == self.first_edge[node + 1]
        return jnp.where(is_leaf, self.first_entry[node], NO_ENTRY)

    def _edges(self, node: Array) -> tuple[Array, Array]:
        """Edges in the slots of each row, and which are real, both `[rows, width]`."""
        node = jnp.maximum(node, 0)
        edges = self.first_edge[node][:, None] + self.slots
        present = edges < self.first_edge[node + 1][:, None]
        return jnp.where(present, edges, 0), present


def any_text(vocabulary: Vocabulary, vocab_size: int) -> Automaton:
    """Text and `[EOS]`, no control ids, sentinels or spare rows of the embedding `[vocab_size]`."""
    allowed = np.zeros(vocab_size, bool)
    allowed[[*vocabulary.text_ids, EOS_ID]] = True
    return Automaton(jax.device_put(allowed))
