"""Texts that are put together from given parts: generation that says only what holds.

`TextChoices` says what may stand in each part of one text ("By A, like B." or "By A, like C." or
nothing, then ...). Its graph (`automaton`) allows the tokens of these texts and no others; which of
them come is the model's choice. Unlike the titles of a catalogue, which all sources share, every
source has choices of its own, so the graphs of a batch have a shape that is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m6rec_jax.engine.decoding.automaton import Graphs
from m6rec_jax.text.vocabulary import EOS_ID

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

    Attributes:
      edges: of each node, where each token leads; node 0 begins, the last one is the end.
      rest: of each node, how many tokens it takes at least to the end, int32 `[nodes]`.
    """

    def __init__(self, parts: Sequence[Sequence[Sequence[int]]]) -> None:
        self._parts = [list(dict.fromkeys(map(tuple, choices))) for choices in parts]
        while sum(map(_num_tokens, self._parts)) > _NODES // 2:
            _shorten(max(self._parts, key=_num_tokens))
        self.edges = self._graph()
        while not _fits(self.edges):
            _shorten(max(self._parts, key=len))
            self.edges = self._graph()
        self.rest = _rest(self.edges)

    def _graph(self) -> list[dict[int, int]]:
        says_nothing = not any(any(choices) for choices in self._parts)
        begin = self._begin(0)
        numbers = {begin: 0}
        edges: list[dict[int, int]] = []
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
            edges.append(node)
        # The end is a node of its own, without edges.
        number = len(edges)
        return [*({t: number if n == end else n for t, n in node.items()} for node in edges), {}]

    def _begin(self, part: int) -> tuple[_Place, ...]:
        """All places at which a text may be before a part."""
        places: list[_Place] = []
        for number in range(part, len(self._parts)):
            choices = self._parts[number]
            places += [(number, index, 0) for index, tokens in enumerate(choices) if tokens]
            if () not in choices:
                return tuple(places)
        return (*places, (len(self._parts), 0, 0))


def stacked_graphs(choices: Sequence[TextChoices | None], size: int) -> Graphs:
    """The graphs of several sources, on the host; empty ones up to `size`, and where there is none.

    Sources are to write freely where there is none, see `automaton.Place`.
    """
    first_edge = np.zeros((size, _NODES + 1), np.int32)
    token, target = np.zeros((2, size, _EDGES), np.int32)
    rest = np.full((size, _NODES), _NOWHERE, np.int32)
    for row, one in enumerate(choices):
        if one is None:
            continue
        ends = np.cumsum([0, *map(len, one.edges)])
        first_edge[row] = ends[-1]
        first_edge[row, : len(ends)] = ends
        if pairs := [pair for node in one.edges for pair in node.items()]:
            token[row, : len(pairs)], target[row, : len(pairs)] = np.array(pairs, np.int32).T
        rest[row, : len(one.rest)] = one.rest
    return Graphs(first_edge, token, target, np.arange(_WIDTH, dtype=np.int32), rest)


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


def _rest(edges: Sequence[dict[int, int]]) -> np.ndarray:
    rest = np.full(len(edges), _NOWHERE, np.int32)
    rest[-1] = 0
    # Nodes are numbered as they are reached: most of what follows has a higher number.
    changed = True
    while changed:
        changed = False
        for node in range(len(edges) - 2, -1, -1):
            shortest = 1 + min((int(rest[n]) for n in edges[node].values()), default=_NOWHERE)
            if shortest < rest[node]:
                rest[node], changed = shortest, True
    return rest
