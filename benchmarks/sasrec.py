"""SASRec (Kang and McAuley, 2018): a causal transformer over the items of a sequence.

Written here in Flax, for sets whose sequences come without times; on MovieLens stands RecBole's
(`benchmarks/baselines`). Two losses: cross entropy over all items, and softmax over the wanted item
and items drawn evenly for each step, which later work found to be the stronger one.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

LENGTH = 50
_SHORT = 16
_ROWS = 256
# Places whose next item is wanted are counted up to a multiple of this: few shapes are compiled.
_PLACES = 512
_RATE = 1e-3
# Epochs between two looks at the validation rows, and looks without a better figure before the end.
_PERIOD, _PATIENCE = 4, 4

Score = Callable[[Sequence[Sequence[int]]], np.ndarray]


class SASRec(nn.Module):
    """States of sequences, and the table of item vectors that they are multiplied with."""

    num_items: int
    width: int = 64
    depth: int = 2
    heads: int = 2
    dropout: float = 0.5

    def setup(self) -> None:
        self.items = nn.Embed(self.num_items + 1, self.width, embedding_init=_START)
        self.places = self.param("places", _START, (LENGTH, self.width))
        self.dropped = nn.Dropout(self.dropout)
        self.attentions = [
            nn.MultiHeadDotProductAttention(self.heads, dropout_rate=self.dropout)
            for _ in range(self.depth)
        ]
        self.inner = [nn.Dense(4 * self.width) for _ in range(self.depth)]
        self.outer = [nn.Dense(self.width) for _ in range(self.depth)]
        self.norms = [nn.LayerNorm() for _ in range(2 * self.depth + 1)]

    def __call__(self, items: jax.Array, training: bool) -> jax.Array:
        """The state after each place.

        Args:
          items: int32 `[rows, length]`, padded at the start with `num_items`.
          training: whether to drop.

        Returns:
          Float32 `[rows, length, width]`.
        """
        fixed = not training
        real = items < self.num_items
        seen = nn.combine_masks(nn.make_causal_mask(items), nn.make_attention_mask(real, real))
        states = self.items(items) + self.places[-items.shape[1] :]
        states = self.dropped(states, deterministic=fixed)
        for layer in range(self.depth):
            normed = self.norms[2 * layer](states)
            attended = self.attentions[layer](normed, mask=seen, deterministic=fixed)
            states += self.dropped(attended, deterministic=fixed)
            normed = self.norms[2 * layer + 1](states)
            fed = self.outer[layer](nn.gelu(self.inner[layer](normed)))
            states += self.dropped(fed, deterministic=fixed)
        return self.norms[-1](states)

    def table(self) -> jax.Array:
        """Vectors of the items, `[items, width]`."""
        return self.items.embedding[: self.num_items]


_START = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Learns from sequences until a figure on validation rows stops rising.

    Attributes:
      sequences: item indices, oldest first.
      num_items: how many there are.
      judge: the figure of a scorer.
      num_negatives: items drawn for each step; 0: cross entropy over all items.
      minutes: after which training ends in any case.
    """

    sequences: Sequence[Sequence[int]]
    num_items: int
    judge: Callable[[Score], float]
    num_negatives: int
    minutes: float

    def fit(self, seed: int) -> tuple[Score, str]:
        """The best scorer, and after which epoch it stood."""
        rng = np.random.default_rng(seed)
        model = SASRec(self.num_items)
        key = jax.random.key(seed, impl="unsafe_rbg")  # dropout by threefry costs more than matmuls
        first = jnp.zeros((1, LENGTH), jnp.int32)
        params = model.init({"params": key}, first, training=False)
        optimizer = optax.adam(_RATE)
        state: Any = (params, optimizer.init(params))
        step = functools.partial(_step, model, optimizer)
        best, found, best_epoch, epoch = -1.0, None, 0, 0
        start = time.monotonic()
        while True:
            epoch += 1
            losses = []
            for rows, places in self._batches(rng):
                drawn = rng.integers(self.num_items, size=self.num_negatives, dtype=np.int32)
                key, own = jax.random.split(key)
                *state, loss = step(*state, rows, places, drawn, own)
                losses.append(loss)
            if epoch % _PERIOD:
                continue
            figure = self.judge(_scorer(model, state[0]))
            minutes = (time.monotonic() - start) / 60
            loss = float(np.mean(jax.device_get(losses)))
            print(f"  epoch {epoch}: {loss:.4f}, {figure:.4f}, {minutes:.1f} min", flush=True)
            if figure > best:
                # A copy: the next step gives these arrays away.
                best, found, best_epoch = figure, jax.device_get(state[0]), epoch
            if epoch - best_epoch >= _PERIOD * _PATIENCE:
                return _scorer(model, found), f"epoch {best_epoch} of {epoch}"
            if minutes >= self.minutes:
                return _scorer(model, found), f"epoch {best_epoch} of {epoch}, cut off"

    def _batches(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows `[_ROWS, length + 1]` of like lengths, and their places with a next item, padded."""
        sequences = [own for own in self.sequences if len(own) > 1]
        batches: list[list[Sequence[int]]] = []
        for long in (False, True):
            members = [own for own in sequences if (len(own) > _SHORT + 1) == long]
            order = rng.permutation(len(members))
            batches += [
                [members[row] for row in order[start : start + _ROWS]]
                for start in range(0, len(order), _ROWS)
            ]
        for batch in (batches[place] for place in rng.permutation(len(batches))):
            length = LENGTH if max(map(len, batch)) > _SHORT + 1 else _SHORT
            rows = np.full((_ROWS, length + 1), self.num_items, np.int32)
            for row, own in enumerate(batch):
                end = len(own) - rng.integers(max(len(own) - length, 1))
                part = own[max(end - length - 1, 0) : end]
                rows[row, len(rows[row]) - len(part) :] = part
            places = np.flatnonzero(rows[:, :-1] < self.num_items).astype(np.int32)
            yield rows, np.pad(places, (0, -len(places) % _PLACES), constant_values=-1)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    model: SASRec,
    optimizer: optax.GradientTransformation,
    params: Any,
    moments: Any,
    rows: jax.Array,
    places: jax.Array,
    drawn: jax.Array,
    key: jax.Array,
) -> tuple[Any, Any, jax.Array]:
    """One step; without items drawn, over all of them."""
    real = places >= 0
    wanted = rows[:, 1:].reshape(-1)[places]

    def loss_of(params: Any) -> jax.Array:
        states = model.apply(params, rows[:, :-1], training=True, rngs={"dropout": key})
        states = states.reshape(-1, states.shape[-1])[places]
        table = model.apply(params, method="table")
        own = jnp.sum(states * table[wanted], axis=-1)
        if len(drawn):
            logits = states @ table[drawn].T
            logits = jnp.where(drawn == wanted[:, None], -jnp.inf, logits)
            total = jnp.logaddexp(own, jax.nn.logsumexp(logits, axis=-1))
        else:
            total = jax.nn.logsumexp(states @ table.T, axis=-1)
        return jnp.sum((total - own) * real) / jnp.sum(real)

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, moments = optimizer.update(gradients, moments)
    return optax.apply_updates(params, updates), moments, loss


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: SASRec, params: Any, items: jax.Array) -> jax.Array:
    states = model.apply(params, items, training=False)[:, -1]
    return states @ model.apply(params, method="table").T


def _scorer(model: SASRec, params: Any) -> Score:
    def score(past: Sequence[Sequence[int]]) -> np.ndarray:
        found = []
        for start in range(0, len(past), _ROWS):
            items = np.full((_ROWS, LENGTH), model.num_items, np.int32)
            block = past[start : start + _ROWS]
            for row, own in enumerate(block):
                part = own[-LENGTH:]
                items[row, LENGTH - len(part) :] = part
            found.append(np.asarray(_scores(model, params, items))[: len(block)])
        return np.concatenate(found)

    return score
