"""Texts that are put together from parts, as automata that are made on the host.

`TextChoices` says what may stand in each part of one text ("By A, like B." or "By A, like C." or
nothing, then ...), so every source has a graph of its own, and those of a batch have a shape that
is always the same. Which of the texts comes is the model's choice.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from m6rec_jax.engine.decoding.automaton import FREELY, Automaton
from m6rec_jax.text.vocabulary import EOS_ID

# Of one source; parts with more choices lose their last ones, but not the one to say nothing.
# The last node is never used: every node has a next one, which says where its edges end.
NODES, EDGES = 4_096, 8_192
# Tokens that may come after one: not more than so many.
_WIDTH = 256

_Tokens = tuple[int, ...]


class TextChoices:
    """What a text may say. A text that says nothing at all is allowed only if nothing else is.

    Args:
      parts: for each part, token sequences that may stand there, at least one, the most likely to
        be wanted first; an empty one where it may be left out.

    Attributes:
      first_edge, token, target, rest: as of `Automaton`, on the host; node 0 begins.
    """

    def __init__(self, parts: Sequence[Sequence[Sequence[int]]]) -> None:
        shorter = [list(dict.fromkeys(map(tuple, choices))) for choices in parts]
        while sum(map(_num_tokens, shorter)) > NODES // 2:
            _shorten(max(shorter, key=_num_tokens))
        while not _fits(nodes := _nodes(shorter)):
            _shorten(max(shorter, key=len))
        self.first_edge = np.cumsum([0, *map(len, nodes)], dtype=np.int32)
        edges = [edge for node in nodes for edge in node.items()]
        self.token, self.target = np.array(edges, np.int32).reshape(-1, 2).T
        ones = np.ones(len(edges), np.int32)
        graph = sparse.csr_array((ones, self.target, self.first_edge), shape=(len(nodes),) * 2)
        end = nodes.index({})
        distances = sparse.csgraph.dijkstra(graph.T, unweighted=True, indices=end)
        self.rest = distances.astype(np.int32)


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


def _nodes(parts: Sequence[Sequence[_Tokens]]) -> list[dict[int, int]]:
    """Of each node, where each token leads; node 0 begins, and the end leads nowhere."""
    parts = [*parts, [(EOS_ID,)]]

    def begin(part: int) -> list[tuple[int, _Tokens]]:
        """All places at which a text may be before a part: a part, and what of it has to come."""
        places: list[tuple[int, _Tokens]] = []
        for number in range(part, len(parts)):
            places += [(number, tokens) for tokens in parts[number] if tokens]
            if () not in parts[number]:
                break
        return places

    start = begin(0)
    start = [place for place in start if place[0] < len(parts) - 1] or start
    order, nodes = [tuple(start)], list[dict[int, int]]()
    numbers = {order[0]: 0}
    for places in order:  # which grows
        following = collections.defaultdict[int, set[tuple[int, _Tokens]]](set)
        for part, (token, *rest) in places:
            following[token].update([(part, tuple(rest))] if rest else begin(part + 1))
        nodes.append({})
        for token, after in sorted(following.items()):
            state = tuple(sorted(after))
            if state not in numbers:
                numbers[state] = len(order)
                order.append(state)
            nodes[-1][token] = numbers[state]
    return nodes


def _num_tokens(choices: Sequence[_Tokens]) -> int:
    return sum(map(len, choices))


def _shorten(choices: list[_Tokens]) -> None:
    """Takes the last eighth of what a part may say; halves the one thing that it must say."""
    texts = [tokens for tokens in choices if tokens]
    if len(texts) == 1 and () not in choices:
        choices[:] = [texts[0][: len(texts[0]) // 2]]
        return
    for tokens in texts[-max(1, len(texts) // 8) :]:
        choices.remove(tokens)


def _fits(nodes: Sequence[dict[int, int]]) -> bool:
    widths = list(map(len, nodes))
    return len(nodes) < NODES and max(widths) <= _WIDTH and sum(widths) <= EDGES
