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

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.sharding import MESH_AXES

Array = jax.Array

NO_ITEM = -1

# Items that a device ranks at a time.
ITEMS_PER_STEP = 131_072
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


@gin.configurable(allowlist=["users_per_step", "items_per_step"])
class CatalogueIndex:
    """Embeddings of a catalogue on the devices, searched exactly.

    Args:
      embeddings: float32 `[items, retrieval]`.
      mesh: split the items over all its devices; None: the default device.
      users_per_step, items_per_step: ranked at a time, the items on each device; they bound the
        `[users, items]` matrix of scores of `top_k`.

    Attributes:
      num_items: of the catalogue.

    Raises:
      DataError: vectors that hold NaN or infinity.
      ConfigError: a step has no room.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        mesh: Mesh | None = None,
        users_per_step: int = 1024,
        items_per_step: int = ITEMS_PER_STEP,
    ) -> None:
        if min(users_per_step, items_per_step) < 1:
            raise ConfigError(
                f"CatalogueIndex.users_per_step = {users_per_step} and items_per_step = "
                f"{items_per_step} must be at least 1"
            )
        _check_finite("item", embeddings)
        self._embeddings = embeddings
        self.num_items = len(embeddings)
        self._users_per_step = users_per_step
        self._mesh = mesh
        parts = 1 if mesh is None else mesh.size
        share = -(-self.num_items // parts)
        self._block = min(share, items_per_step)
        padded = -(-share // self._block) * self._block * parts
        filled = np.asarray(embeddings, np.float32)
        if padded > self.num_items:
            filled = np.pad(filled, ((0, padded - self.num_items), (0, 0)))
        if mesh is None:
            self._items = jax.device_put(filled)
        else:
            sharding = NamedSharding(mesh, PartitionSpec(MESH_AXES))
            self._items = jax.make_array_from_callback(
                filled.shape, sharding, lambda index: filled[index]
            )

    def top_k(self, users: np.ndarray, k: int, seen: Sequence[np.ndarray] | None = None) -> TopK:
        """The k most similar items of each user, without those already seen.

        Args:
          users: float32 `[users, retrieval]`.
          k: how many; at most as many as there are items.
          seen: per user, indices into the catalogue that must not be recommended.

        Raises:
          DataError: another number of users in `seen`, or an item outside the catalogue.
        """
        ids, scores = [], []
        for _, part, excluded in self._steps(users, seen):
            best, own = _top_k(
                part,
                self._items,
                excluded,
                k=k,
                num_items=self.num_items,
                block=self._block,
                mesh=self._mesh,
            )
            ids.append(own)
            scores.append(best)
        return TopK(*(np.concatenate(parts)[: len(users)] for parts in (ids, scores)))

    def warm_up(self, num_users: int, k: int) -> None:
        """Compiles every program that `top_k` of so many users and items may run."""
        users = np.zeros((num_users, self._items.shape[1]), np.float32)
        for width in excluded_widths(self.num_items):
            excluded = np.arange(min(width, self.num_items))
            self.top_k(users, k, [excluded] * num_users)

    def similarities(self, users: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Of each user and the items named for it: float32 `[users, k]`, -inf at `NO_ITEM`.

        On the host: on devices each number of items would be a program of its own.

        Args:
          users: float32 `[users, retrieval]`.
          ids: int `[users, k]`, indices into the catalogue, or `NO_ITEM`.
        """
        found = np.full(ids.shape, -np.inf, np.float32)
        own = np.nonzero(ids != NO_ITEM)
        found[own] = np.einsum("nr,nr->n", self._embeddings[ids[own]], users[own[0]])
        return found

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
          DataError: as in `top_k`, or a target outside the catalogue.
        """
        if targets.size and int(targets.max()) >= self.num_items:
            raise DataError(
                f"target {int(targets.max())} is outside the catalogue of {self.num_items} items"
            )
        found = []
        # Scores of all items at once: of large catalogues, for fewer users.
        most = max(1, self._users_per_step * self._block // self._items.shape[0])
        for start, part, excluded in self._steps(users, seen, most):
            wanted = np.full((len(part), targets.shape[1]), -1, np.int32)
            here = targets[start : start + len(part)]
            wanted[: len(here)] = here
            found.append(
                _ranks(part, self._items, excluded, jnp.asarray(wanted), num_items=self.num_items)
            )
        ranks = np.concatenate(found)[: len(users)].astype(np.int64)
        return np.where(targets >= 0, ranks, 0)

    def _steps(
        self, users: np.ndarray, seen: Sequence[np.ndarray] | None, most: int | None = None
    ) -> Iterator[tuple[int, Array, Array]]:
        """(first user, users, excluded items) in steps of one shape, padded; of `most` users."""
        number = len(users)
        if not number:
            raise DataError("there are no users to rank for")
        _check_finite("user", users)
        _check_seen(seen, number, self.num_items)
        if seen is not None:  # with repeats a list may be longer than the catalogue
            seen = [np.unique(own) if len(own) > self.num_items else own for own in seen]
        longest = max((len(items) for items in seen), default=0) if seen is not None else 0
        # Powers of two, so that few shapes are compiled.
        step = min(most or self._users_per_step, 1 << (number - 1).bit_length())
        width = next(width for width in excluded_widths(self.num_items) if width >= longest)
        outside = self._items.shape[0]
        for start in range(0, number, step):
            part = np.zeros((step, users.shape[1]), np.float32)
            excluded = np.full((step, width), outside, np.int32)
            here = users[start : start + step]
            part[: len(here)] = here
            for i, items in enumerate(() if seen is None else seen[start : start + step]):
                excluded[i, : len(items)] = items
            yield start, jax.device_put(part), jax.device_put(excluded)


def _check_finite(what: str, vectors: np.ndarray) -> None:
    """Nothing stands before what is no number, which would make its rank the best one."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise DataError(
            f"{bad.size} of {len(vectors)} {what} vectors hold NaN or infinity, the first at index "
            f"{bad[0]}: has training diverged?"
        )


def _check_seen(seen: Sequence[np.ndarray] | None, num_users: int, num_items: int) -> None:
    """Raises DataError where seen items are not of these users, or not of the catalogue."""
    if seen is None:
        return
    if len(seen) != num_users:
        raise DataError(f"{len(seen)} lists of seen items for {num_users} users")
    for user, items in enumerate(seen):
        if len(items) and not 0 <= np.min(items) <= np.max(items) < num_items:
            raise DataError(
                f"user {user} has seen an item outside the catalogue of {num_items} items: "
                f"{np.min(items)} or {np.max(items)}"
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


@functools.partial(jax.jit, static_argnames=("k", "num_items", "block", "mesh"))
def _top_k(
    users: Array,
    items: Array,
    excluded: Array,
    *,
    k: int,
    num_items: int,
    block: int,
    mesh: Mesh | None,
) -> tuple[Array, Array]:
    """(scores, ids) of the k best; each device ranks its own items, then the winners meet."""

    def of_block(users: Array, items: Array, excluded: Array, first: Array) -> tuple[Array, Array]:
        scores = _scores(users, items, excluded, first, num_items)
        best, indices = jax.lax.top_k(scores, min(k, block))
        return best, indices + first

    def local(users: Array, items: Array, excluded: Array, first: Array) -> tuple[Array, Array]:
        if items.shape[0] == block:
            return of_block(users, items, excluded, first)

        def step(
            best: tuple[Array, Array], here: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            found = of_block(users, here[0], excluded, here[1])
            # Earlier ones first: ties stay in the catalogue's order.
            scores, ids = (jnp.concatenate(both, 1) for both in zip(best, found, strict=True))
            scores, indices = jax.lax.top_k(scores, best[0].shape[1])
            return (scores, jnp.take_along_axis(ids, indices, axis=1)), None

        blocks = items.reshape(-1, block, items.shape[1])
        firsts = first + block * jnp.arange(len(blocks))
        width = min(k, items.shape[0])
        # Zero, but another value on each device of a mesh, as what is found.
        zero = 0 * firsts[0]
        shape = (len(users), width)
        start = jnp.full(shape, -jnp.inf) + zero, jnp.full(shape, NO_ITEM) + zero
        return jax.lax.scan(step, start, (blocks, firsts))[0]

    if mesh is None:
        best, ids = local(users, items, excluded, jnp.int32(0))
    else:
        per_device = items.shape[0] // mesh.size

        def part(users: Array, items: Array, excluded: Array) -> tuple[Array, Array]:
            first = jax.lax.axis_index(MESH_AXES) * per_device
            best, ids = local(users, items, excluded, first)
            return best[None], ids[None]

        whole = PartitionSpec()
        best, ids = jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(whole, PartitionSpec(MESH_AXES), whole),
            out_specs=(PartitionSpec(MESH_AXES), PartitionSpec(MESH_AXES)),
        )(users, items, excluded)
        # [devices, users, k] to [users, devices * k]; devices in order keep ties in order.
        best = jnp.moveaxis(best, 0, 1).reshape(users.shape[0], -1)
        ids = jnp.moveaxis(ids, 0, 1).reshape(users.shape[0], -1)
        best, indices = jax.lax.top_k(best, k)
        ids = jnp.take_along_axis(ids, indices, axis=1)
    return best, jnp.where(jnp.isneginf(best), NO_ITEM, ids)


@functools.partial(jax.jit, static_argnames=("num_items",))
def _ranks(users: Array, items: Array, excluded: Array, targets: Array, *, num_items: int) -> Array:
    """1 + how many items stand before each target, `[users, m]`."""
    scores = _scores(users, items, excluded, jnp.int32(0), num_items)
    index = jnp.arange(items.shape[0])
    own = _scores(users, items, jnp.full_like(excluded, items.shape[0]), jnp.int32(0), num_items)

    def rank(target: Array) -> Array:
        score = jnp.take_along_axis(own, jnp.maximum(target, 0)[:, None], axis=1)
        before = (scores > score) | ((scores == score) & (index[None] < target[:, None]))
        return 1 + jnp.sum(before, axis=1)

    return jax.lax.map(rank, targets.T).T
