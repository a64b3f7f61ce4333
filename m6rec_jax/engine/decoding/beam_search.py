"""Beam search: the best whole texts, not the best next tokens. For use inside jit.

At each step every living beam may end with `[EOS]` (and joins the finished texts if it is among the
best) and the best continuations live on, as many as there are beams. Ending never costs a living
beam its place.

Finished texts are ranked by their length-normalised score (GNMT's penalty, as in T5X):

    score = log probability / ((5 + length) / 6) ^ length_penalty

where length counts the generated tokens, `[EOS]` included and those of the prefix not. 0 ranks by
probability; larger values favour longer texts. The search ends when no living beam of any row can
still beat the worst finished text, which changes no result: log probabilities only fall, so the
best a beam can hope for is to keep what it has up to the full length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.engine.decoding.slots import FREE, GeneratedBatch, Step
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID

Array = jax.Array

# Up to here repeated argmax is about as fast as a sort, and one program then serves all ends.
_FEW = 8


class _Texts(NamedTuple):
    """`[sources, beams, ...]` each."""

    tokens: Array
    scores: Array
    log_probability: Array
    node: Array

    def best(self, k: int) -> _Texts:
        _, indices = top_k(self.scores, k)
        return _take_beams(self, indices)


class _Progress(NamedTuple):
    position: Array
    living: _Texts
    finished: _Texts
    cache: Any


def beam_search(
    step: Step,
    cache: Any,
    prefix_ids: Array,
    automaton: Automaton,
    *,
    num_beams: int,
    length_penalty: ArrayLike = 0.0,
) -> tuple[GeneratedBatch, Array]:
    """The best texts of every source, finished ones first, and how many steps it took.

    Args:
      step: gives logits for `[sources * beams]` rows, those of a source next to one another.
      cache: of no position yet, of as many rows, with room for the length of `prefix_ids`; has
        `take_rows`, as `model.decoder_cache.DecoderCache`.
      prefix_ids: int32 `[sources, length]`, see `slots.Slots.of`.
      automaton: which tokens may come.
      num_beams: how many texts live at a time, and how many are returned.
      length_penalty: at least 0.
    """
    num_sources, length = prefix_ids.shape
    prefix_length = jnp.sum(prefix_ids != FREE, axis=1)[:, None]
    shape = (num_sources, num_beams)
    source = jnp.arange(num_sources)[:, None]

    def normalised(log_probability: Array, position: Array | int) -> Array:
        """Scores of texts whose last token stands at `position`."""
        generated = jnp.maximum(position + 1 - prefix_length, 0)
        return log_probability / ((5.0 + generated) / 6.0) ** length_penalty

    def unfinished(now: _Progress) -> Array:
        hoped_for = normalised(now.living.log_probability[:, :1], length - 1)
        worst = jnp.min(now.finished.scores, axis=1, keepdims=True)
        return (now.position < length) & jnp.any(hoped_for > worst)

    def advance(now: _Progress) -> _Progress:
        position, living = now.position, now.living
        last = living.tokens[:, :, jnp.maximum(position - 1, 0)].reshape(-1)
        logits, cache = step(now.cache, last, position, position)
        node, given = living.node.reshape(-1), jnp.repeat(prefix_ids[:, position], num_beams)
        log_probs = automaton.mask(node, jax.nn.log_softmax(logits, axis=-1), length - position)
        log_probs = _with_prefix(log_probs, given)
        total = living.log_probability[..., None] + log_probs.reshape(*shape, -1)

        ending = total[..., EOS_ID]
        ended_node = automaton.advance(node, jnp.full_like(node, EOS_ID), given != FREE)
        ended = _Texts(
            living.tokens.at[:, :, position].set(EOS_ID),
            normalised(ending, position),
            ending,
            ended_node.reshape(shape),
        )
        finished = _joined(now.finished, ended).best(num_beams)

        vocab = total.shape[-1]
        total = total.at[..., EOS_ID].set(-jnp.inf).reshape(num_sources, -1)
        log_probability, indices = top_k(total, num_beams)
        parents, tokens = indices // vocab, (indices % vocab).astype(jnp.int32)
        rows = (source * num_beams + parents).reshape(-1)
        node = automaton.advance(node[rows], tokens.reshape(-1), given != FREE)
        living = _Texts(
            _take_beams(living.tokens, parents).at[:, :, position].set(tokens),
            normalised(log_probability, position),
            log_probability,
            node.reshape(shape),
        )
        return _Progress(position + 1, living, finished, cache.take_rows(rows))

    # One beam begins; the others would only repeat it.
    alone = jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf)
    none = jnp.full(shape, -jnp.inf, jnp.float32)
    start = automaton.start_nodes(num_sources, num_beams).reshape(shape)
    empty = jnp.full((*shape, length), PAD_ID, jnp.int32)
    living = _Texts(empty, none, jnp.broadcast_to(alone, shape).astype(jnp.float32), start)
    begin = _Progress(jnp.int32(0), living, _Texts(empty, none, none, start), cache)
    end = jax.lax.while_loop(unfinished, advance, begin)

    # Finished texts stand first already, and the living ones follow them.
    number = jnp.sum(end.finished.scores > -jnp.inf, axis=1, keepdims=True)
    beam = jnp.arange(num_beams)
    chosen = jnp.where(beam < number, beam, num_beams + beam - number)
    texts = _take_beams(_joined(end.finished, end.living), chosen)
    ended = jnp.broadcast_to(beam < number, shape)
    entries = automaton.entries(texts.node)
    batch = GeneratedBatch(texts.tokens, texts.scores, texts.log_probability, ended, entries)
    return batch, end.position


def _with_prefix(log_probs: Array, tokens: Array) -> Array:
    """log_probs `[rows, vocab]`, certain of the prefixes' tokens `[rows]` (those not `FREE`).

    They come whatever the automaton says of them, and add nothing to a score.
    """
    one_hot = jnp.arange(log_probs.shape[-1]) == tokens[:, None]
    return jnp.where((tokens == FREE)[:, None], log_probs, jnp.where(one_hot, 0.0, -jnp.inf))


def _joined(first: Any, second: Any) -> Any:
    """Two trees of arrays `[sources, beams, ...]`, the beams of both next to one another."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)


def _take_beams(tree: Any, beams: Array) -> Any:
    """Beams `[sources, k]` of a tree of arrays `[sources, beams, ...]`."""
    source = jnp.arange(beams.shape[0])[:, None]
    return jax.tree.map(lambda leaf: leaf[source, beams], tree)


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest of the last axis, largest first; of equals the one with the smaller index.

    Args:
      x: float `[..., n]`, n at least k.
      k: how many. Where they are few, one maximum is taken after the other, without a sort:
        `lax.top_k` and sorts have no counterpart in exported programs.

    Returns:
      Values and indices, both `[..., k]`; no index comes twice.
    """
    if k > _FEW:
        values, indices = jax.lax.top_k(x, k)
        return values, indices

    def take(taken: Array, _: Any) -> tuple[Array, tuple[Array, Array]]:
        rest = jnp.where(taken, -jnp.inf, x)
        value = jnp.max(rest, axis=-1)
        # When only -inf is left, what was taken looks no worse than what was not.
        left = jnp.where(jnp.isneginf(value)[..., None], ~taken, rest == value[..., None])
        index = jnp.argmax(left, axis=-1)
        taken |= jnp.arange(x.shape[-1]) == index[..., None]
        return taken, (value, index.astype(jnp.int32))

    _, (values, indices) = jax.lax.scan(take, jnp.zeros(x.shape, bool), length=k)
    return jnp.moveaxis(values, 0, -1), jnp.moveaxis(indices, 0, -1)
