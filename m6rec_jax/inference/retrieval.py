"""Finds the items of a catalogue that fit a user: two towers, exact search (paper section 2).

    retriever = Retriever(model, variables, vocabulary, source_length=256, target_length=64)
    index = retriever.index(catalogue_texts)                    # once
    found = index.top_k(retriever.embed_users(histories), 10, seen)   # ids *and* scores

The catalogue's embeddings lie on the devices, split over all of them when there is a mesh; seen
items are masked there too, so ranking everything for everybody is a few matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.inference.candidate_rows import pack_texts, text_ends
from m6rec_jax.inference.runtime import Runtime, in_buckets, length_buckets
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.sharding import MESH_AXES, LogicalRules
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
Variables = Mapping[str, Any]

NO_ITEM = -1


class TopK(NamedTuple):
    """The best items of each user.

    Attributes:
      ids: int32 `[users, k]`, places in the catalogue, best first; `NO_ITEM` where fewer than k
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
      users_per_step: users ranked at a time; bounds the `[users, items]` matrix of scores.

    Raises:
      DataError: there are no items.
    """

    def __init__(
        self, embeddings: np.ndarray, mesh: Mesh | None = None, users_per_step: int = 1024
    ) -> None:
        if embeddings.ndim != 2 or not len(embeddings):
            raise DataError(f"a catalogue needs [items, retrieval], got {embeddings.shape}")
        self.num_items = len(embeddings)
        self._users_per_step = users_per_step
        self._mesh = mesh
        self._parts = 1 if mesh is None else mesh.size
        padded = -(-self.num_items // self._parts) * self._parts
        filled = np.zeros((padded, embeddings.shape[1]), np.float32)
        filled[: self.num_items] = embeddings
        if mesh is None:
            self._items = jnp.asarray(filled)
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
          seen: per user, places in the catalogue that must not be recommended.

        Raises:
          ConfigError: k out of range. DataError: another number of users in `seen`, or a place
            outside the catalogue.
        """
        if not 1 <= k <= self.num_items:
            raise ConfigError(f"k = {k} must be between 1 and the {self.num_items} items")
        ids, scores = [], []
        for _, part, excluded in self._steps(users, seen):
            found = _top_k(
                part, self._items, excluded, k=k, num_items=self.num_items, mesh=self._mesh
            )
            ids.append(found[1])
            scores.append(found[0])
        number = len(users)
        return TopK(
            np.concatenate([np.asarray(i) for i in ids])[:number],
            np.concatenate([np.asarray(s) for s in scores])[:number],
        )

    def scores_of(self, user: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """A function from places to one user's similarities to them; user `[retrieval]`.

        Orders the items that share a generated title (`Generator.recommend`).
        """
        return lambda places: np.asarray(self._items[jnp.asarray(places)] @ user)

    def ranks(
        self, users: np.ndarray, targets: np.ndarray, seen: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """Rank of wanted items among the whole catalogue, from 1; ties go to the smaller place.

        Args:
          users: float32 `[users, retrieval]`.
          targets: int `[users, m]`, places in the catalogue; -1 is padding and gets rank 0. A
            target counts even when it is among `seen`, as a repeated purchase does.
          seen: as in `top_k`.

        Returns:
          int64 `[users, m]`, as `m6rec_jax.metrics.ranking` reads them.

        Raises:
          DataError: as in `top_k`, or a target outside the catalogue.
        """
        if targets.ndim != 2 or len(targets) != len(users):
            raise DataError(f"targets must be [{len(users)}, m], got {targets.shape}")
        if targets.size and int(targets.max()) >= self.num_items:
            raise DataError(
                f"target {int(targets.max())} is outside the catalogue of {self.num_items} items"
            )
        found = []
        for start, part, excluded in self._steps(users, seen):
            wanted = np.full((len(part), targets.shape[1]), -1, np.int32)
            here = targets[start : start + len(part)]
            wanted[: len(here)] = here
            found.append(
                _ranks(part, self._items, excluded, jnp.asarray(wanted), num_items=self.num_items)
            )
        ranks = np.concatenate([np.asarray(r) for r in found])[: len(users)].astype(np.int64)
        return np.where(targets >= 0, ranks, 0)

    def _steps(
        self, users: np.ndarray, seen: Sequence[np.ndarray] | None
    ) -> Iterator[tuple[int, Array, Array]]:
        """(first user, users, excluded places) in steps of one shape, padded."""
        number = len(users)
        if number == 0:
            raise DataError("there are no users to rank for")
        if seen is not None and len(seen) != number:
            raise DataError(f"{len(seen)} lists of seen items for {number} users")
        longest = max((len(items) for items in seen), default=0) if seen is not None else 0
        # Powers of two, so that few shapes are compiled.
        step = min(self._users_per_step, _power_of_two(number))
        width = _power_of_two(max(longest, 1))
        outside = self._items.shape[0]
        for start in range(0, number, step):
            part = np.zeros((step, users.shape[1]), np.float32)
            excluded = np.full((step, width), outside, np.int32)
            here = users[start : start + step]
            part[: len(here)] = here
            for i, items in enumerate(() if seen is None else seen[start : start + step]):
                if len(items) and not 0 <= min(items) <= max(items) < self.num_items:
                    raise DataError(
                        f"user {start + i} has seen an item outside the catalogue of "
                        f"{self.num_items} items: {min(items)} or {max(items)}"
                    )
                excluded[i, : len(items)] = items
            yield start, jnp.asarray(part), jnp.asarray(excluded)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _scores(users: Array, items: Array, excluded: Array, first: Array, num_items: int) -> Array:
    """Similarities `[users, items here]`; -inf for excluded places and for padding.

    `items` are places first .. first + len(items) of the catalogue.
    """
    # Exact: a TPU would otherwise multiply in bfloat16 and change the order of close items.
    scores = jnp.matmul(users, items.T, precision=jax.lax.Precision.HIGHEST)
    here = jnp.where(excluded >= first, excluded - first, items.shape[0])
    scores = scores.at[jnp.arange(len(users))[:, None], here].set(-jnp.inf, mode="drop")
    return jnp.where(first + jnp.arange(items.shape[0]) < num_items, scores, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("k", "num_items", "mesh"))
def _top_k(
    users: Array, items: Array, excluded: Array, *, k: int, num_items: int, mesh: Mesh | None
) -> tuple[Array, Array]:
    """(scores, ids) of the k best; each device ranks its own items, then the winners meet."""

    def local(users: Array, items: Array, excluded: Array, first: Array) -> tuple[Array, Array]:
        best, places = jax.lax.top_k(
            _scores(users, items, excluded, first, num_items), min(k, items.shape[0])
        )
        return best, places + first

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
        best, places = jax.lax.top_k(best, k)
        ids = jnp.take_along_axis(ids, places, axis=1)
    return best, jnp.where(jnp.isneginf(best), NO_ITEM, ids)


@functools.partial(jax.jit, static_argnames=("num_items",))
def _ranks(users: Array, items: Array, excluded: Array, targets: Array, *, num_items: int) -> Array:
    """1 + how many items stand before each target, `[users, m]`."""
    scores = _scores(users, items, excluded, jnp.int32(0), num_items)
    place = jnp.arange(items.shape[0])
    own = _scores(users, items, jnp.full_like(excluded, items.shape[0]), jnp.int32(0), num_items)

    def rank(target: Array) -> Array:
        score = jnp.take_along_axis(own, jnp.maximum(target, 0)[:, None], axis=1)
        before = (scores > score) | ((scores == score) & (place[None] < target[:, None]))
        return 1 + jnp.sum(before, axis=1)

    return jax.lax.map(rank, targets.T).T


@gin.configurable(denylist=["model", "variables", "vocabulary", "mesh"])
class Retriever:
    """The two towers: users and items to unit vectors.

    Args:
      model: with retrieval projections.
      variables: its parameters and prompts.
      vocabulary: the one it was trained with.
      source_length: most tokens of a history, S.
      target_length: most tokens of a decoder row, T; several items share one.
      task_id: row of the prompt bank.
      item_length: most tokens of an item's text; None: T.
      batch_sizes: numbers of rows to pad to, ascending.
      mesh: devices to spread rows over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      ConfigError: the model has no retrieval projections.
    """

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        *,
        source_length: int,
        target_length: int,
        task_id: int = 0,
        item_length: int | None = None,
        batch_sizes: Sequence[int] = (1, 8, 32),
        mesh: Mesh | None = None,
        rules: LogicalRules = (),
    ) -> None:
        if not model.config.prompts.retrieval_dim:
            raise ConfigError(
                "retrieval needs a model with PromptConfig.retrieval_dim > 0 (128 in the paper)"
            )
        self.model, self.variables, self.vocabulary = model, variables, vocabulary
        self.source_length, self.target_length = source_length, target_length
        self._item_length = min(item_length or target_length, target_length)
        self._task_id, self._mesh = task_id, mesh
        self._runtime = Runtime(mesh, rules)
        multiple = self._runtime.batch_multiple
        self._batch_sizes = sorted({-(-size // multiple) * multiple for size in batch_sizes})
        self._users = self._runtime.jit(functools.partial(user_embeddings, model))
        self._items = self._runtime.jit(functools.partial(item_embeddings, model))

    def embed_users(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
        """Histories as text segments to unit vectors, float32 `[users, retrieval]`."""
        return self.embed_user_rows(
            [
                rows.source_row(self.vocabulary, segments, self.source_length)
                for segments in histories
            ]
        )

    def embed_user_rows(self, user_rows: Sequence[Row]) -> np.ndarray:
        """Rows of `text.rows.source_row` to unit vectors, float32 `[users, retrieval]`."""
        result = np.zeros((len(user_rows), self.model.config.prompts.retrieval_dim), np.float32)
        lengths = [len(row["encoder_input_tokens"]) for row in user_rows]
        pending = []
        buckets = length_buckets(self.source_length)
        for length, size, members in in_buckets(lengths, buckets, self._batch_sizes):
            names = {"encoder_input_tokens": length, "encoder_block_ids": length}
            batch = rows.pad_batch([user_rows[i] for i in members], names, size)
            batch["task_ids"] = np.full((size, 1), self._task_id, np.int32)
            pending.append((members, self._users(self.variables, self._runtime.place(batch))))
        for members, vectors in pending:
            result[members] = np.asarray(vectors)[: len(members)]
        return result

    def embed_items(self, texts: Sequence[str]) -> np.ndarray:
        """Item texts (`DatasetTemplate.item`) to unit vectors, float32 `[items, retrieval]`.

        Raises:
          DataError: a text without words.
        """
        result = np.zeros((len(texts), self.model.config.prompts.retrieval_dim), np.float32)
        item_rows, places = pack_texts(
            self.vocabulary, texts, self.target_length, self._item_length
        )
        pending = []
        sizes = [len(row["decoder_input_tokens"]) for row in item_rows]
        buckets = length_buckets(self.target_length)
        for length, size, members in in_buckets(sizes, buckets, self._batch_sizes):
            names = {"decoder_input_tokens": length, "decoder_block_ids": length}
            batch = rows.pad_batch([item_rows[i] for i in members], names, size)
            batch["task_ids"] = np.full((size, 1), self._task_id, np.int32)
            pending.append((members, self._items(self.variables, self._runtime.place(batch))))
        for members, vectors in pending:
            values = np.asarray(vectors)
            for k, member in enumerate(members):
                ends = text_ends(item_rows[member]["decoder_block_ids"])
                result[places[member]] = values[k, ends]
        return result

    def index(self, texts: Sequence[str]) -> CatalogueIndex:
        """Embeds a catalogue and puts it on the devices."""
        return CatalogueIndex(self.embed_items(texts), self._mesh)


def user_embeddings(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Array:
    """The user tower over a batch, `[batch, retrieval]` of unit length. For use inside jit."""
    encoded = model.apply(
        variables,
        features["encoder_input_tokens"],
        features["encoder_block_ids"],
        features["task_ids"],
        method=model.encode,
    )
    vectors: Array = model.apply(
        variables, encoded, features["task_ids"], method=model.user_embedding
    )
    return vectors


def item_embeddings(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Array:
    """The item tower over packed rows, `[batch, target, retrieval]`; read it at each `[EOS]`.

    The tower sees no source, so an encoder output of one masked-out position stands in for it.
    """
    batch = features["decoder_input_tokens"].shape[0]
    nothing = Encoded(
        jnp.zeros((batch, 1, model.config.embed_dim), model.config.dtype),
        jnp.ones((batch, 1), bool),
    )
    hidden = model.apply(
        variables,
        nothing,
        features["decoder_input_tokens"],
        features["decoder_block_ids"],
        features["task_ids"],
        use_source=jnp.zeros(batch, bool),
        method=model.decode,
    )
    vectors: Array = model.apply(
        variables, hidden, features["task_ids"], method=model.item_embedding
    )
    return vectors
