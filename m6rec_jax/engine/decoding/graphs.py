"""Graphs of `automaton`, made on the host: titles, and texts that are put together from parts.

Titles are one graph that all sources share. `TextChoices` says what may stand in each part of one
text ("By A, like B." or "By A, like C." or nothing, then ...), so every source has a graph of its
own, and those of a batch have a shape that is always the same. Which of the texts comes is the
model's choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from scipy import sparse

from m6rec_jax.engine.decoding.automaton import FREELY, NO_ENTRY, Automaton
from m6rec_jax.text.vocabulary import EOS_ID

# Of one source; parts with more choices lose their last ones, but not the one to say nothing.
# The last node is never used: every node has a next one, which says where its edges end.
NODES, EDGES = 4_096, 8_192
# Tokens that may come after one: not more than so many.
_WIDTH = 256

# A place in a text: a part, one of its choices, and how many of its tokens have come.
_Place = tuple[int, int, int]


def build_trie(sequences: Sequence[Sequence[int] | np.ndarray]) -> Automaton:
    """The graph of distinct sequences of tokens, at least one; entry i is sequence i.

    Nodes are numbered level by level, the children of a node by ascending token. A node's children
    are then consecutive, and the edge that leads to node n is number n. Every sequence ends with
    `[EOS]`, so only leaves have an entry. Sizes are rounded up to powers of two, so that a
    catalogue which grows a little compiles nothing anew.
    """
    depth, number = max(map(len, sequences)) + 1, len(sequences)
    matrix = np.full((number, depth), -1, np.int32)
    for i, sequence in enumerate(sequences):
        matrix[i, : len(sequence)], matrix[i, len(sequence)] = sequence, EOS_ID
    order = np.lexsort(matrix.T[::-1])
    ordered = matrix[order].T  # `[depth, sequences]`

    # A sequence differs from the one before in its first d + 1 tokens: there a node of depth d
    # begins, unless it has ended.
    differs = np.ones(ordered.shape, bool)
    differs[:, 1:] = np.logical_or.accumulate(ordered[:, 1:] != ordered[:, :-1], axis=0)
    begins = differs & (ordered >= 0)
    level, first = np.nonzero(begins)  # of each node but node 0
    node = np.cumsum(begins, dtype=np.int32).reshape(begins.shape)
    parent = np.where(level > 0, node[level - 1, first], 0)
    # A node's sequences go until the next one that differs, whether or not a node begins there.
    next_ = np.full(differs.shape, number, np.int32)
    next_[:, :-1][differs[:, 1:]] = np.nonzero(differs[:, 1:])[1] + 1
    next_ = np.minimum.accumulate(next_[:, ::-1], axis=1)[:, ::-1]
    num_nodes, token = 1 + len(level), ordered[level, first]
    number_of_children = np.bincount(parent, minlength=num_nodes)
    size = _power_of_two(num_nodes + 1)
    first_edge = np.full(size + 1, num_nodes, np.int32)
    first_edge[: num_nodes + 1] = 1 + np.concatenate([[0], np.cumsum(number_of_children)])

    def padded(root: int, others: np.ndarray, padding: int) -> np.ndarray:
        rest = np.full(size - num_nodes, padding)
        return np.concatenate([[root], others, rest]).astype(np.int32)

    automaton = Automaton(
        first_edge=first_edge,
        token=padded(-1, token, -1),
        target=np.arange(size, dtype=np.int32),
        slots=np.arange(_power_of_two(int(number_of_children.max())), dtype=np.int32),
        entry=padded(NO_ENTRY, np.where(token == EOS_ID, order[first], NO_ENTRY), NO_ENTRY),
        first_rank=padded(0, first, 0),
        end_rank=padded(number, next_[level, first], 0),
    )
    # Not `jnp.asarray`, which compiles a program for each shape.
    return jax.device_put(automaton)


class TextChoices:
    """What a text may say. A text that says nothing at all is allowed only if nothing else is.

    Args:
      parts: for each part, token sequences that may stand there, at least one, the most likely to
        be wanted first; an empty one where it may be left out.

    Attributes:
      first_edge, token, target, rest: as of `Automaton`, on the host; node 0 begins.
    """

    def __init__(self, parts: Sequence[Sequence[Sequence[int]]]) -> None:
        self._parts = [list(dict.fromkeys(map(tuple, choices))) for choices in parts]
        while sum(map(_num_tokens, self._parts)) > NODES // 2:
            _shorten(max(self._parts, key=_num_tokens))
        while not _fits(nodes := self._nodes()):
            _shorten(max(self._parts, key=len))
        self.first_edge = np.cumsum([0, *map(len, nodes)], dtype=np.int32)
        edges = [edge for node in nodes for edge in node.items()]
        self.token, self.target = np.array(edges, np.int32).reshape(-1, 2).T
        ones = np.ones(len(edges), np.int32)
        graph = sparse.csr_array((ones, self.target, self.first_edge), shape=(len(nodes),) * 2)
        distances = sparse.csgraph.dijkstra(graph.T, unweighted=True, indices=len(nodes) - 1)
        self.rest = distances.astype(np.int32)

    def _nodes(self) -> list[dict[int, int]]:
        """Of each node, where each token leads; the last one is the end."""
        says_nothing = not any(any(choices) for choices in self._parts)
        begin = self._begin(0)
        numbers = {begin: 0}
        nodes: list[dict[int, int]] = []
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
                if state not in numbers:
                    numbers[state] = len(order)
                    order.append(state)
                node[token] = numbers[state]
            if ends and (places != begin or says_nothing):
                node[EOS_ID] = end
            nodes.append(node)
        number = len(nodes)
        return [*({t: number if n == end else n for t, n in node.items()} for node in nodes), {}]

    def _begin(self, part: int) -> tuple[_Place, ...]:
        """All places at which a text may be before a part."""
        places: list[_Place] = []
        for number in range(part, len(self._parts)):
            choices = self._parts[number]
            places += [(number, index, 0) for index, tokens in enumerate(choices) if tokens]
            if () not in choices:
                return tuple(places)
        return (*places, (len(self._parts), 0, 0))


def graphs_of_choices(choices: Sequence[TextChoices | None], places: Sequence[int]) -> Automaton:
    """The graphs of several sources, on the host; they are to write freely where there is none.

    Args:
      choices: of the sources, at most as many as places.
      places: where each graph goes among those that share arrays on the device.
    """
    first_edge, rest = np.zeros((2, len(places), NODES), np.int32)
    token, target = np.zeros((2, len(places), EDGES), np.int32)
    start = np.full(len(places), FREELY, np.int32)
    for row, (one, place) in enumerate(zip(choices, places, strict=False)):
        if one is None:
            continue
        nodes, edges = len(one.rest), len(one.token)
        start[row] = place * NODES
        first_edge[row, : nodes + 1] = one.first_edge + place * EDGES
        token[row, :edges], target[row, :edges] = one.token, one.target + start[row]
        rest[row, :nodes] = one.rest
    return Automaton(
        first_edge=first_edge.ravel(),
        token=token.ravel(),
        target=target.ravel(),
        slots=np.arange(_WIDTH, dtype=np.int32),
        rest=rest.ravel(),
        start=start,
    )


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


def _fits(nodes: Sequence[dict[int, int]]) -> bool:
    widths = list(map(len, nodes))
    return len(nodes) < NODES and max(widths) <= _WIDTH and sum(widths) <= EDGES


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
