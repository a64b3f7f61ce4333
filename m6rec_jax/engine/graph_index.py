"""Approximate search on the host, in a graph of neighbours (HNSW, Malkov and Yashunin, 2016).

For catalogues of many millions of items, of which exact search would rank all for every request.
It needs the library usearch: `pip install 'm6rec_jax[usearch]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np

from m6rec_jax.engine.catalogue_index import NO_ITEM, TopK, check_seen
from m6rec_jax.errors import CheckpointError, ConfigError


@gin.configurable(allowlist=["connectivity", "expansion_add", "expansion_search"])
class GraphIndex:
    """Embeddings of a catalogue in a graph, searched approximately; see `ItemSearch`.

    Scores are exact: they are computed anew for the items found. Items that must not be recommended
    are left out of what was found, so as many more are asked for.

    Args:
      embeddings: float32 `[items, retrieval]`; may be a memory map.
      graph_file: of `save`; None: the graph is built, which takes a while.
      connectivity: neighbours of an item in the graph.
      expansion_add, expansion_search: candidates kept while the graph is built or searched; more
        find more of the best items, and take longer.

    Raises:
      ConfigError: usearch is not installed.
      CheckpointError: the graph is damaged, or of other embeddings.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        graph_file: str | Path | None = None,
        connectivity: int = 16,
        expansion_add: int = 128,
        expansion_search: int = 128,
    ) -> None:
        library = _usearch()
        self._embeddings = embeddings
        self.num_items, dim = embeddings.shape
        self._graph = library.Index(
            ndim=dim,
            metric="ip",
            dtype="f32",
            connectivity=connectivity,
            expansion_add=expansion_add,
            expansion_search=expansion_search,
        )
        if graph_file is None:
            self._graph.add(np.arange(self.num_items), np.asarray(embeddings))
            return
        try:
            self._graph.view(str(graph_file))
        except Exception as error:  # pybind raises types of its own
            raise CheckpointError(
                f"{graph_file} is damaged ({error}); build the index anew"
            ) from error
        if len(self._graph) != self.num_items or self._graph.ndim != dim:
            raise CheckpointError(
                f"{graph_file} holds {len(self._graph)} vectors of {self._graph.ndim}, and the "
                f"index {self.num_items} of {dim}; build the index anew"
            )

    def save(self, path: str | Path) -> None:
        """Writes the graph to a file."""
        self._graph.save(str(path))

    def top_k(self, users: np.ndarray, k: int, seen: Sequence[np.ndarray] | None = None) -> TopK:
        """See `ItemSearch`; of equals the smaller index goes first, among those found."""
        check_seen(seen, len(users), self.num_items)
        ids = np.full((len(users), k), NO_ITEM, np.int32)
        scores = np.full((len(users), k), -np.inf, np.float32)
        for user, items in enumerate(self._found(users, k, seen)):
            own = self._embeddings[items] @ users[user]
            order = np.lexsort((items, -own))[:k]
            ids[user, : len(order)], scores[user, : len(order)] = items[order], own[order]
        return TopK(ids, scores)

    def warm_up(self, num_users: int, k: int) -> None:
        """See `ItemSearch`: nothing is compiled."""

    def _found(
        self, users: np.ndarray, k: int, seen: Sequence[np.ndarray] | None
    ) -> list[np.ndarray]:
        """Per user, the items found without the seen ones."""
        users = np.ascontiguousarray(users, np.float32)
        longest = max((len(set(map(int, items))) for items in seen or ()), default=0)
        matches = self._graph.search(users, min(k + longest, self.num_items))
        # One user comes without the first axis.
        keys = np.atleast_2d(matches.keys)
        counts = np.atleast_1d(getattr(matches, "counts", [len(matches)]))
        found = []
        for user, (row, count) in enumerate(zip(keys, counts, strict=True)):
            excluded = np.unique(seen[user]) if seen is not None else np.zeros(0, np.int64)
            items = np.setdiff1d(row[:count].astype(np.int64), excluded)
            if len(items) < min(k, self.num_items - len(excluded)):
                # The graph gave fewer than there are: the rest is ranked in full.
                items = np.setdiff1d(np.arange(self.num_items), excluded)
            found.append(items)
        return found


def _usearch() -> Any:
    try:
        from usearch import index
    except ImportError as error:
        raise ConfigError(
            "approximate search needs usearch: pip install 'm6rec_jax[usearch]'"
        ) from error
    return index
