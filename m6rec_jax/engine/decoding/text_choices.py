"""Texts that are put together from given parts: generation that says only what holds.

`TextChoices` says what may stand in each part of one text ("By A, like B." or "By A, like C." or
nothing, then ...). Its graph allows the tokens of these texts and no others; which of them come is
the model's choice. Unlike the titles of a catalogue, which all sources share, every source has
choices of its own, so that graphs are rows of a batch with a shape that is always the same:

    edges of node n     numbers first_edge[n] … first_edge[n + 1] - 1
    token[e], target[e] the token on edge e, and the node that it leads to
    rest[n]             how many tokens it takes at least from node n to the end of a text
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.constraints import AllowedTokens
from m6rec_jax.engine.decoding.token_trie import NO_ENTRY
from m6rec_jax.text.vocabulary import EOS_ID

Array = jax.Array

# Of one source; parts with more choices lose their last ones, but not the one to say nothing.
_NODES, _EDGES = 4_096, 8_192
# Tokens that may come after one: not more than so many.
_WIDTH = 256
_NOWHERE = np.iinfo(np.int32).max // 2

# A place in a text: a part, one of its choices, and how many of its tokens have come.
_Place = tuple[int, int, int]


class TextChoices:
    """What a text may say. A text that says nothing at all is allowed only if nothing else is.

    Args:
      parts: for each part, token sequences that may stand there, at least one, the most likely to
        be wanted first; an empty one where it may be left out.
    """

    def __init__(self, parts: Sequence[Sequence[Sequence[int]]]) -> None:
        kept = [list(dict.fromkeys(map(tuple, choices))) for choices in parts]
        while sum(map(_num_tokens, kept)) > _NODES // 2:
            _shorten(max(kept, key=_num_tokens))
        self._parts = kept
        self._edges = self._graph()
        while not _fits(self._edges):
            _shorten(max(kept, key=len))
            self._edges = self._graph()
        self.arrays = _arrays(self._edges)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to say."""
        return not any(any(choices) for choices in self._parts)

    def walk(self, node: int, tokens: Iterable[int]) -> int:
        """The node after some tokens; a token that may not come leads nowhere."""
        for token in tokens:
            node = self._edges[node].get(token, node)
        return node

    def _graph(self) -> list[dict[int, int]]:
        """Of each node, where each token leads; node 0 begins, the last one is the end."""
        begin = self._begin(0)
        known = {begin: 0}
        found: list[dict[int, int]] = []
        end = -1
        for places in (order := [begin]):
            following: dict[int, set[_Place]] = {}
            ends = False
            for part, choice, done in places:
                if part == len(self._parts):
                    ends = True
                    continue
                tokens = self._parts[part][choice]
                moved = (part, choice, done + 1)
                after = self._begin(part + 1) if done + 1 == len(tokens) else (moved,)
                following.setdefault(tokens[done], set()).update(after)
            node: dict[int, int] = {}
            for token, targets in sorted(following.items()):
                state = tuple(sorted(targets))
                if state not in known:
                    known[state] = len(order)
                    order.append(state)
                node[token] = known[state]
            if ends and (places != begin or self.is_empty):
                node[EOS_ID] = end
            found.append(node)
        # The end is a node of its own, without edges.
        number = len(found)
        return [*({t: number if n == end else n for t, n in own.items()} for own in found), {}]

    def _begin(self, part: int) -> tuple[_Place, ...]:
        """All places at which a text may be before a part."""
        places: list[_Place] = []
        for number in range(part, len(self._parts)):
            choices = self._parts[number]
            places += [(number, index, 0) for index, tokens in enumerate(choices) if tokens]
            if () not in choices:
                return tuple(places)
        return (*places, (len(self._parts), 0, 0))


class RowChoices(NamedTuple):
    """The graphs of several sources, a `constraints.Constraint`; some sources may write freely.

    The state is the node of each row, its source, and how many tokens there is room for, int32
    `[rows]` each; rows of one source lie next to one another. No text begins that would not end in
    its room, unless none would.

    Attributes:
      free: of the sources that write freely.
      is_free: bool `[sources]`.
      node: int32 `[sources]`, where each stands.
      first_edge: int32 `[sources, nodes + 1]`.
      token, target: int32 `[sources, edges]`.
      rest: int32 `[sources, nodes]`.
      room: int32 `[sources]`, tokens after the prefix, `[EOS]` included.
      slots: int32 `[width]`, 0, 1, 2, …
    """

    free: AllowedTokens
    is_free: Array
    node: Array
    first_edge: Array
    token: Array
    target: Array
    rest: Array
    room: Array
    slots: Array

    @classmethod
    def of(
        cls,
        choices: Mapping[int, TextChoices | None],
        room: Mapping[int, int],
        size: int,
        free: AllowedTokens,
        node: Mapping[int, int] | None = None,
    ) -> Self:
        """A batch of `size` sources.

        Args:
          choices, room, node: by the number of the source; those without choices write freely.
          size: how many there are.
          free: what they may write.
        """
        is_free, places, rooms = np.ones(size, bool), *np.zeros((2, size), np.int32)
        graphs = [np.repeat(array[None], size, axis=0) for array in TextChoices(()).arrays]
        for source, own in choices.items():
            if own is None:
                continue
            is_free[source] = False
            rooms[source], places[source] = room[source], (node or {}).get(source, 0)
            for every, array in zip(graphs, own.arrays, strict=True):
                every[source] = array
        arrays: Any = (is_free, places, *graphs, rooms, np.arange(_WIDTH, dtype=np.int32))
        return cls(free, *arrays)

    def start(self, num_rows: int) -> tuple[Array, Array, Array]:
        """Before the first token."""
        rows_per_source = num_rows // self.room.shape[0]
        source = jnp.arange(num_rows, dtype=jnp.int32) // rows_per_source
        return self.node[source], source, self.room[source]

    def mask(self, state: tuple[Array, Array, Array], log_probs: Array) -> Array:
        edges, present = self._edges(state)
        _, source, room = state
        rest = self.rest[source[:, None], self.target[source[:, None], edges]]
        fits = present & (rest < room[:, None])
        present = jnp.where(fits.any(axis=1, keepdims=True), fits, present)
        tokens = jnp.where(present, self.token[source[:, None], edges], log_probs.shape[-1])
        own = jnp.take_along_axis(log_probs, tokens, axis=-1, mode="clip")
        rows = jnp.arange(edges.shape[0])[:, None]
        chosen = jnp.full_like(log_probs, -jnp.inf).at[rows, tokens].set(own, mode="drop")
        freely = self.free.mask(room, log_probs)
        return jnp.where(self.is_free[source][:, None], freely, chosen)

    def advance(
        self, state: tuple[Array, Array, Array], tokens: Array
    ) -> tuple[Array, Array, Array]:
        edges, present = self._edges(state)
        node, source, room = state
        taken = present & (self.token[source[:, None], edges] == tokens[:, None])
        targets = jnp.where(taken, self.target[source[:, None], edges], -1)
        found = jnp.max(targets, axis=-1)
        return jnp.where(found < 0, node, found), source, room - 1

    def entries(self, state: tuple[Array, Array, Array]) -> Array:
        """No text is an entry of anything."""
        return jnp.full_like(state[0], NO_ENTRY)

    def _edges(self, state: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        """Edges in the slots of each row `[rows, width]`, and whether they are the node's."""
        node, source, _ = state
        first, end = self.first_edge[source, node], self.first_edge[source, node + 1]
        edges = first[:, None] + self.slots
        present = edges < end[:, None]
        return jnp.where(present, edges, 0), present


def _num_tokens(choices: Sequence[Sequence[int]]) -> int:
    return sum(map(len, choices))


def _shorten(choices: list[tuple[int, ...]]) -> None:
    """Takes the last eighth of what a part may say; halves the one thing that it must say."""
    said = [tokens for tokens in choices if tokens]
    if len(said) == 1 and () not in choices:
        choices[:] = [said[0][: len(said[0]) // 2]]
        return
    for tokens in said[-max(1, len(said) // 8) :]:
        choices.remove(tokens)


def _fits(edges: Sequence[dict[int, int]]) -> bool:
    widths = list(map(len, edges))
    return len(edges) <= _NODES and max(widths) <= _WIDTH and sum(widths) <= _EDGES


def _arrays(edges: Sequence[dict[int, int]]) -> tuple[np.ndarray, ...]:
    """`first_edge`, `token`, `target`, `rest` of one source, of the shape that all have."""
    first = np.full(_NODES + 1, sum(map(len, edges)), np.int32)
    first[: len(edges) + 1] = np.cumsum([0, *map(len, edges)])
    token, target = np.zeros((2, _EDGES), np.int32)
    pairs = [pair for node in edges for pair in node.items()]
    if pairs:
        token[: len(pairs)], target[: len(pairs)] = np.array(pairs, np.int32).T
    rest = np.full(_NODES, _NOWHERE, np.int32)
    rest[len(edges) - 1] = 0
    # Nodes are numbered as they are reached: most of what follows has a higher number.
    changed = True
    while changed:
        changed = False
        for node in range(len(edges) - 2, -1, -1):
            own = 1 + min((int(rest[other]) for other in edges[node].values()), default=_NOWHERE)
            if own < rest[node]:
                rest[node], changed = own, True
    return first, token, target, rest
