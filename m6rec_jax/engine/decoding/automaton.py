"""Which tokens may come next: any text, the titles of a catalogue, or texts that are put together.

An automaton lies on the device as compressed sparse rows, an argument of the compiled program:

    edges of node n     numbers first_edge[n] … first_edge[n + 1] - 1
    token[e], target[e] the token on edge e, and the node that it leads to

A mask is made from the edges of the current node alone: gathered into as many slots as the widest
node has, then scattered into the vocabulary. For R rows that takes R x width memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

Array = jax.Array
Leaf = Any  # of numpy until a batch is sent

NO_ENTRY = -1
# Above all ranks: fills up sources that exclude less than others.
NO_RANK = np.iinfo(np.int32).max


class Graphs(NamedTuple):
    """Graphs of one shape. A text begins at node 0.

    Attributes:
      first_edge: int32 `[graphs, nodes + 1]`.
      token, target: int32 `[graphs, edges]`.
      slots: int32 `[width]`, 0, 1, 2, …; its length carries the number of edges of the widest node
        into compiled code.
      rest: int32 `[graphs, nodes]`, how many tokens it takes at least to the end of a text; None
        where every text has room.
      entry: int32 `[graphs, nodes]`, which title ends at a node, or `NO_ENTRY`; None: no titles.
      first_rank, end_rank: int32 `[graphs, nodes]`: below a node are the titles of ranks first_rank
        … end_rank - 1, sorted by their tokens.
    """

    first_edge: Leaf
    token: Leaf
    target: Leaf
    slots: Leaf
    rest: Leaf = None
    entry: Leaf = None
    first_rank: Leaf = None
    end_rank: Leaf = None


class Place(NamedTuple):
    """Where each row stands, int32 `[rows]` each; beam search reorders them.

    Attributes:
      source: of the row.
      graph: -1 where it writes freely.
      node: of the graph.
      before: tokens of a prefix that are still to come; they are free of the graph.
      room: tokens that there is room for after the prefix, `[EOS]` included.
    """

    source: Array
    graph: Array
    node: Array
    before: Array
    room: Array


class Automaton(NamedTuple):
    """What the sources of a batch may write.

    Attributes:
      free: bool `[vocab]`, the tokens of sources that write freely; None: all follow a graph.
      graphs: None: all write freely.
      graph: int32 `[sources]`, see `Place`; None: all follow the first one.
      before, room: int32 `[sources]`, see `Place`; None: 0.
      excluded: int32 `[sources, width]`, ascending ranks of titles that must not come, filled up
        with `NO_RANK`.
    """

    free: Leaf
    graphs: Graphs | None = None
    graph: Leaf = None
    before: Leaf = None
    room: Leaf = None
    excluded: Leaf = None

    def start(self, num_sources: int, rows_per_source: int = 1) -> Place:
        """Before the first token; rows of one source lie next to one another."""
        nothing = jnp.zeros(num_sources, jnp.int32)
        first = nothing if self.graphs is not None else nothing - 1
        of_sources = Place(
            jnp.arange(num_sources, dtype=jnp.int32),
            first if self.graph is None else self.graph,
            nothing,
            nothing if self.before is None else self.before,
            nothing if self.room is None else self.room,
        )
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, rows_per_source), of_sources)

    def mask(self, place: Place, log_probs: Array) -> Array:
        """log_probs `[rows, vocab]`, -inf at every token that must not come next.

        Means nothing within a prefix, whose tokens are given. No text begins that would not end in
        its room, unless none would.
        """
        graphs, free = self.graphs, self.free
        if graphs is None:
            return jnp.where(free, log_probs, -jnp.inf)
        graph, edges, present = self._edges(place)
        target = graphs.target[graph, edges]
        if self.excluded is not None and graphs.first_rank is not None:
            # A branch is dead when all titles below it are excluded.
            first, end = graphs.first_rank[graph, target], graphs.end_rank[graph, target]
            search, excluded = jax.vmap(jnp.searchsorted), self.excluded[place.source]
            present &= search(excluded, end) - search(excluded, first) != end - first
        if graphs.rest is not None:
            fits = present & (graphs.rest[graph, target] < place.room[:, None])
            present = jnp.where(fits.any(axis=1, keepdims=True), fits, present)
        # Out of range, so that the scatter below drops it.
        tokens = jnp.where(present, graphs.token[graph, edges], log_probs.shape[-1])
        values = jnp.take_along_axis(log_probs, tokens, axis=-1, mode="clip")
        rows = jnp.arange(edges.shape[0])[:, None]
        masked = jnp.full_like(log_probs, -jnp.inf).at[rows, tokens].set(values, mode="drop")
        if free is None:
            return masked
        freely = jnp.where(free, log_probs, -jnp.inf)
        return jnp.where((place.graph < 0)[:, None], freely, masked)

    def advance(self, place: Place, tokens: Array) -> Place:
        """After tokens `[rows]`; one that may not come leads nowhere."""
        if self.graphs is None:
            return place
        graph, edges, present = self._edges(place)
        taken = present & (self.graphs.token[graph, edges] == tokens[:, None])
        target = jnp.max(jnp.where(taken, self.graphs.target[graph, edges], -1), axis=-1)
        inside = place.before > 0
        return place._replace(
            node=jnp.where(inside | (target < 0), place.node, target),
            before=jnp.maximum(place.before - 1, 0),
            room=jnp.where(inside, place.room, place.room - 1),
        )

    def entries(self, place: Place) -> Array:
        """Which title each row has written, `NO_ENTRY` where none is complete."""
        if self.graphs is None or self.graphs.entry is None:
            return jnp.full_like(place.node, NO_ENTRY)
        return self.graphs.entry[jnp.maximum(place.graph, 0), place.node]

    def _edges(self, place: Place) -> tuple[Array, Array, Array]:
        """The graph of each row `[rows, 1]`, edges in its slots `[rows, width]`, which are real."""
        assert self.graphs is not None
        graph = jnp.maximum(place.graph, 0)
        first = self.graphs.first_edge[graph, place.node][:, None]
        end = self.graphs.first_edge[graph, place.node + 1][:, None]
        edges = first + self.graphs.slots
        present = edges < end
        return graph[:, None], jnp.where(present, edges, 0), present


def any_text(vocabulary: Vocabulary, vocab_size: int) -> Automaton:
    """Text and `[EOS]`, no control ids, sentinels or spare rows of the embedding `[vocab_size]`."""
    allowed = np.zeros(vocab_size, bool)
    allowed[[*vocabulary.text_ids, EOS_ID]] = True
    return Automaton(jax.device_put(allowed))
