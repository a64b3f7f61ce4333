"""Exact search in a catalogue's embeddings, which lie on the devices.

    index = CatalogueIndex(embeddings, mesh)
    found = index.top_k(users, 10, seen)        # indices into the catalogue *and* scores

With a mesh the items are split over its devices: each ranks its own, then the winners meet. Seen
items are masked there too, so ranking everything for everybody is a few matrix products, of blocks
of one shape: an item's score does not depend on how many others there are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m6rec_jax.engine.programs.runtime import smallest_that_fits
from m6rec_jax.errors import DataError
from m6rec_jax.sharding import MESH_AXES, make_mesh

Array = jax.Array

NO_ITEM = -1

# Scores of users and items that a device holds at a time: a large catalogue is ranked for fewer
# users together.
MOST_SCORES = 1024 * 131_072
# Numbers of users that are padded to where a caller has none of its own.
BATCH_SIZES = tuple(2**power for power in range(11))
# Most items per user that may be excluded in the smallest program, and how much larger the next one
# is: few shapes are compiled, and `warm_up` can compile all of them.
_LEAST_EXCLUDED, _EXCLUDED_GROWTH = 2048, 64


class TopK(NamedTuple):
    """The best items of each user.

    Attributes:
      ids: int32 `[users, k]`, indices into the catalogue, best first; `NO_ITEM` where fewer than k
        items are left.
      scores: float32 `[users, k]`, cosine similarities; -inf at `NO_ITEM`.
    """

    ids: np.ndarray
    scores: np.ndarray


class CatalogueIndex:
    """Embeddings of a catalogue on the devices, searched exactly.

    Args:
      embeddings: float32 `[items, retrieval]`.
      mesh: split the items over all its devices; None: the default device.

    Attributes:
      embeddings, num_items: of the catalogue.

    Raises:
      DataError: vectors that hold NaN or infinity.
    """

    def __init__(self, embeddings: np.ndarray, mesh: Mesh | None = None) -> None:
        _check_finite("item", embeddings)
        self.embeddings, self.num_items = embeddings, len(embeddings)
        self._mesh = mesh or make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
        missing = -self.num_items % self._mesh.size
        filled = np.pad(np.asarray(embeddings, np.float32), ((0, missing), (0, 0)))
        split = NamedSharding(self._mesh, PartitionSpec(MESH_AXES))
        self._items = jax.make_array_from_callback(filled.shape, split, filled.__getitem__)

    def top_k(
        self,
        users: np.ndarray,
        k: int,
        seen: Sequence[np.ndarray] | None = None,
        batch_sizes: Sequence[int] = BATCH_SIZES,
    ) -> TopK:
        """The k most similar items of each user, without those already seen.

        Args:
          users: float32 `[users, retrieval]`.
          k: how many; fewer where the catalogue has fewer.
          seen: per user, indices into the catalogue that must not be recommended.
          batch_sizes: numbers of users to pad to, ascending, so that few programs are compiled.

        Raises:
          DataError: users that hold NaN or infinity.
        """
        k = min(k, self.num_items)
        ids, scores = np.zeros((len(users), k), np.int32), np.zeros((len(users), k), np.float32)
        for rows, part, excluded in self._batches(users, seen, batch_sizes):
            best = _top_k(part, self._items, excluded, k, self.num_items, self._mesh)
            scores[rows], ids[rows] = (np.asarray(own)[: rows.stop - rows.start] for own in best)
        return TopK(ids, scores)

    def warm_up(self, k: int, batch_sizes: Sequence[int]) -> None:
        """Compiles every program that `top_k` of so many items may run."""
        for size in batch_sizes:
            users = np.zeros((size, self._items.shape[1]), np.float32)
            for width in excluded_widths(self.num_items):
                excluded = np.arange(min(width, self.num_items))
                self.top_k(users, k, [excluded] * size, batch_sizes)

    def similarities(self, users: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Of each user and the items named for it: float32 `[users, k]`, -inf at `NO_ITEM`.

        On the host: on devices each number of items would be a program of its own.

        Args:
          users: float32 `[users, retrieval]`.
          ids: int `[users, k]`, indices into the catalogue, or `NO_ITEM`.
        """
        result = np.full(ids.shape, -np.inf, np.float32)
        there = np.nonzero(ids != NO_ITEM)
        vectors = self.embeddings[ids[there]]
        result[there] = np.einsum("nr,nr->n", vectors, users[there[0]])
        return result

    def ranks(
        self, users: np.ndarray, targets: np.ndarray, seen: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """Rank of wanted items among the whole catalogue, from 1; ties go to the smaller index.

        Args:
          users: float32 `[users, retrieval]`.
          targets: int `[users, m]`, indices into the catalogue; -1 is padding and gets rank 0. A
            target counts even when it is among `seen`, as a repeated purchase does.
          seen: as in `top_k`.

        Returns:
          int64 `[users, m]`, as `m6rec_jax.metrics.ranking` reads them.

        Raises:
          DataError: as in `top_k`.
        """
        ranks = np.zeros(targets.shape, np.int64)
        for rows, part, excluded in self._batches(users, seen, BATCH_SIZES):
            wanted = np.full((len(part), targets.shape[1]), -1, np.int32)
            wanted[: rows.stop - rows.start] = targets[rows]
            of_batch = _ranks(part, self._items, excluded, wanted, self.num_items)
            ranks[rows] = np.asarray(of_batch)[: rows.stop - rows.start]
        return np.where(targets >= 0, ranks, 0)

    def _batches(
        self, users: np.ndarray, seen: Sequence[np.ndarray] | None, batch_sizes: Sequence[int]
    ) -> Iterator[tuple[slice, Array, Array]]:
        """Which users, their vectors and excluded items, padded to one of the sizes."""
        _check_finite("user", users)
        # With repeats a list may be longer than the catalogue.
        seen = [np.unique(items) for items in ([()] * len(users) if seen is None else seen)]
        longest = max(map(len, seen), default=0)
        width = smallest_that_fits(longest, excluded_widths(self.num_items))
        outside = self._items.shape[0]
        most = max(1, MOST_SCORES * self._mesh.size // outside)
        sizes = [size for size in batch_sizes if size <= most] or [most]
        for start in range(0, len(users), sizes[-1]):
            rows = slice(start, min(start + sizes[-1], len(users)))
            size = smallest_that_fits(rows.stop - start, sizes)
            part = np.zeros((size, users.shape[1]), np.float32)
            part[: rows.stop - start] = users[rows]
            excluded = np.full((size, width), outside, np.int32)
            for user, items in enumerate(seen[rows]):
                excluded[user, : len(items)] = items
            yield rows, jax.device_put(part), jax.device_put(excluded)


def _check_finite(what: str, vectors: np.ndarray) -> None:
    """Nothing stands before what is no number, which would make its rank the best one."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise DataError(
            f"{bad.size} of {len(vectors)} {what} vectors hold NaN or infinity, the first at index "
            f"{bad[0]}: has training diverged?"
        )


def excluded_widths(num_items: int) -> list[int]:
    """Numbers of excluded items that programs are compiled for, ascending; the last fits all."""
    widths = [_LEAST_EXCLUDED]
    while widths[-1] < num_items:
        widths.append(widths[-1] * _EXCLUDED_GROWTH)
    return widths


def _scores(users: Array, items: Array, excluded: Array, first: Array, num_items: int) -> Array:
    """Similarities `[users, items here]`; -inf for excluded items and for padding.

    `items` are first .. first + len(items) of the catalogue.
    """
    # Exact: a TPU would otherwise multiply in bfloat16 and change the order of close items.
    scores = jnp.matmul(users, items.T, precision=jax.lax.Precision.HIGHEST)
    here = jnp.where(excluded >= first, excluded - first, items.shape[0])
    scores = scores.at[jnp.arange(len(users))[:, None], here].set(-jnp.inf, mode="drop")
    return jnp.where(first + jnp.arange(items.shape[0]) < num_items, scores, -jnp.inf)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _top_k(
    users: Array, items: Array, excluded: Array, k: int, num_items: int, mesh: Mesh
) -> tuple[Array, Array]:
    """(scores, ids) of the k best; each device ranks its own items, then the winners meet."""
    share = items.shape[0] // mesh.size

    def of_device(users: Array, items: Array, excluded: Array) -> tuple[Array, Array]:
        first = jax.lax.axis_index(MESH_AXES) * share
        scores = _scores(users, items, excluded, first, num_items)
        best, ids = jax.lax.top_k(scores, min(k, share))
        return best, ids + first

    whole, split = PartitionSpec(), PartitionSpec(None, MESH_AXES)
    best, ids = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(whole, PartitionSpec(MESH_AXES), whole),
        out_specs=(split, split),
    )(users, items, excluded)
    if mesh.size > 1:  # in the order of the devices, so ties stay in that of the catalogue
        best, places = jax.lax.top_k(best, k)
        ids = jnp.take_along_axis(ids, places, axis=1)
    return best, jnp.where(jnp.isneginf(best), NO_ITEM, ids)


@functools.partial(jax.jit, static_argnums=4)
def _ranks(users: Array, items: Array, excluded: Array, targets: Array, num_items: int) -> Array:
    """1 + how many items stand before each target, `[users, m]`."""
    nothing = jnp.full_like(excluded, items.shape[0])
    scores, unmasked = (
        _scores(users, items, hidden, jnp.int32(0), num_items) for hidden in (excluded, nothing)
    )
    index = jnp.arange(items.shape[0])

    def rank(target: Array) -> Array:
        score = jnp.take_along_axis(unmasked, jnp.maximum(target, 0)[:, None], axis=1)
        before = (scores > score) | ((scores == score) & (index[None] < target[:, None]))
        return 1 + jnp.sum(before, axis=1)

    return jax.lax.map(rank, targets.T).T
