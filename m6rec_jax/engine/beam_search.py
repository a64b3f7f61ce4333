"""Beam search: the best whole texts, not the best next tokens. For use inside jit.

At each step every living beam may end with `[EOS]` (and joins the finished texts if it is among the
best) and the best continuations live on, as many as there are beams. Ending never costs a living
beam its place.

Finished texts are ranked by their length-normalised score (GNMT's penalty, as in T5X):

    score = log probability / ((5 + length) / 6) ^ length_penalty

where length counts the tokens written, `[EOS]` included and forced ones not. 0 ranks by
probability; larger values favour longer texts. The search ends when no living beam of any row can
still beat the worst finished text, which changes no result: log probabilities only fall, so the
best a beam can hope for is to keep what it has up to the full length.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from m6rec_jax.engine.constraints import Constraint
from m6rec_jax.engine.decoding import FREE, Step
from m6rec_jax.engine.top_k import top_k
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID

Array = jax.Array


class ReorderedCache(Protocol):
    """A cache whose rows can be chosen anew, such as `model.decoder_cache.DecoderCache`."""

    def take_rows(self, rows: Array) -> Any:
        """The cache with `rows` `[rows]` in place of its own."""


class Beams(NamedTuple):
    """The best texts of each source, best first: finished ones, then those cut off at the length.

    Attributes:
      tokens: int32 `[sources, beams, length]`, `[EOS]` included, then padding.
      scores: float32 `[sources, beams]`, length-normalised; -inf where there is no text.
      log_probability: float32 `[sources, beams]`, of the tokens that were not forced.
      ended: bool `[sources, beams]`; False: cut off.
      state: the constraint's after the last token, leaves `[sources, beams, ...]`.
      num_steps: int32 scalar, steps that the loop took.
    """

    tokens: Array
    scores: Array
    log_probability: Array
    ended: Array
    state: Any
    num_steps: Array


class _Texts(NamedTuple):
    """`[sources, beams, ...]` each."""

    tokens: Array
    scores: Array
    log_probability: Array
    state: Any

    def best(self, k: int, by_argmax: bool | None) -> _Texts:
        _, places = top_k(self.scores, k, by_argmax=by_argmax)
        return _take_beams(self, places)


class _Progress(NamedTuple):
    position: Array
    living: _Texts
    finished: _Texts
    cache: Any


def beam_search(
    step: Step,
    cache: ReorderedCache,
    forced: Array,
    constraint: Constraint,
    *,
    num_beams: int,
    length_penalty: ArrayLike = 0.0,
    by_argmax: bool | None = None,
) -> Beams:
    """Searches for the best texts of every source.

    Args:
      step: gives logits for `[sources * beams]` rows, those of a source next to one another.
      cache: of no position yet, of as many rows, with room for the length of `forced`.
      forced: int32 `[sources, length]`, see `decoding.decode`.
      constraint: what may be written.
      num_beams: how many texts live at a time, and how many are returned.
      length_penalty: at least 0.
      by_argmax: see `top_k`.
    """
    num_sources, length = forced.shape
    num_forced = jnp.sum(forced != FREE, axis=1)[:, None]
    shape = (num_sources, num_beams)
    source = jnp.arange(num_sources)[:, None]

    def normalised(log_probability: Array, position: Array | int) -> Array:
        """Scores of texts whose last token stands at `position`."""
        written = jnp.maximum(position + 1 - num_forced, 0)
        return log_probability / ((5.0 + written) / 6.0) ** length_penalty

    def unfinished(now: _Progress) -> Array:
        hoped_for = normalised(now.living.log_probability[:, :1], length - 1)
        worst = jnp.min(now.finished.scores, axis=1, keepdims=True)
        return (now.position < length) & jnp.any(hoped_for > worst)

    def write(now: _Progress) -> _Progress:
        position, living = now.position, now.living
        last = living.tokens[:, :, jnp.maximum(position - 1, 0)].reshape(-1)
        logits, cache = step(now.cache, last, position)
        state = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), living.state)
        log_probs = constraint.mask(state, jax.nn.log_softmax(logits, axis=-1))
        log_probs = _with_forced(log_probs, jnp.repeat(forced[:, position], num_beams))
        total = living.log_probability[..., None] + log_probs.reshape(*shape, -1)

        ending = total[..., EOS_ID]
        ended_state = constraint.advance(state, jnp.full(shape, EOS_ID, jnp.int32).reshape(-1))
        ended = _Texts(
            living.tokens.at[:, :, position].set(EOS_ID),
            normalised(ending, position),
            ending,
            _grouped(ended_state, shape),
        )
        finished = _joined(now.finished, ended).best(num_beams, by_argmax)

        vocab = total.shape[-1]
        total = total.at[..., EOS_ID].set(-jnp.inf).reshape(num_sources, -1)
        log_probability, places = top_k(total, num_beams, by_argmax=by_argmax)
        parents, tokens = places // vocab, (places % vocab).astype(jnp.int32)
        rows = (source * num_beams + parents).reshape(-1)
        state = jax.tree.map(lambda leaf: leaf[rows], state)
        state = constraint.advance(state, tokens.reshape(-1))
        living = _Texts(
            _take_beams(living.tokens, parents).at[:, :, position].set(tokens),
            normalised(log_probability, position),
            log_probability,
            _grouped(state, shape),
        )
        return _Progress(position + 1, living, finished, cache.take_rows(rows))

    # One beam begins; the others would only repeat it.
    alone = jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf)
    none = jnp.full(shape, -jnp.inf, jnp.float32)
    start = _grouped(constraint.start(num_sources * num_beams), shape)
    empty = jnp.full((*shape, length), PAD_ID, jnp.int32)
    living = _Texts(empty, none, jnp.broadcast_to(alone, shape).astype(jnp.float32), start)
    begin = _Progress(jnp.int32(0), living, _Texts(empty, none, none, start), cache)
    end = jax.lax.while_loop(unfinished, write, begin)

    # Finished texts stand first already, so the living ones fill the places after them.
    number = jnp.sum(end.finished.scores > -jnp.inf, axis=1, keepdims=True)
    place = jnp.arange(num_beams)
    chosen = jnp.where(place < number, place, num_beams + place - number)
    texts = _take_beams(_joined(end.finished, end.living), chosen)
    return Beams(
        texts.tokens,
        texts.scores,
        texts.log_probability,
        jnp.broadcast_to(place < number, shape),
        texts.state,
        end.position,
    )


def _with_forced(log_probs: Array, forced: Array) -> Array:
    """log_probs `[rows, vocab]`, certain of the tokens `[rows]` that are forced (not `FREE`).

    A forced token thus comes whatever the constraint says of it, and adds nothing to a score.
    """
    one_hot = jnp.arange(log_probs.shape[-1]) == forced[:, None]
    return jnp.where((forced == FREE)[:, None], log_probs, jnp.where(one_hot, 0.0, -jnp.inf))


def _joined(first: Any, second: Any) -> Any:
    """Two trees of arrays `[sources, beams, ...]`, the beams of both next to one another."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)


def _take_beams(tree: Any, places: Array) -> Any:
    """Beams `places` `[sources, k]` of a tree of arrays `[sources, beams, ...]`."""
    source = jnp.arange(places.shape[0])[:, None]
    return jax.tree.map(lambda leaf: leaf[source, places], tree)


def _grouped(tree: Any, shape: tuple[int, int]) -> Any:
    """`[sources * beams, ...]` to `[sources, beams, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), tree)
