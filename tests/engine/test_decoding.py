"""The loop against decoding without a cache, in plain Python; early ends; rows on their own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.engine.decoding.automaton import Automaton, any_text
from m6rec_jax.engine.decoding.beam_search import beam_search
from m6rec_jax.engine.decoding.sampling import SamplingOptions
from m6rec_jax.engine.decoding.slots import Slots, Step, advance, model_step
from m6rec_jax.engine.decoding.title_trie import build_trie
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.text import rows
from m6rec_jax.text.layout import pad_batch
from m6rec_jax.text.vocabulary import EOS_ID
from tests.engine.tiny_model import livelier, make_model
from tests.engine.toy_language import (
    VOCAB,
    Language,
    all_but_pad,
    random_language,
    until_end,
)
from tests.pipeline import shop_rows

LENGTH = 9
HISTORIES = [row["history"] for row in shop_rows.rows_of("test")["groups"][:3]]
TASKS = np.array([[0], [1], [0]], np.int32)


class Decoded(NamedTuple):
    tokens: Any
    log_probability: Any
    ended: Any
    entries: Any
    num_steps: Any


@functools.partial(jax.jit, static_argnames="alike")
def toy(
    language: Language,
    prefix_ids: Any,
    automaton: Automaton,
    options: Any = None,
    alike: bool = False,
) -> Decoded:
    number, length = prefix_ids.shape
    cache = language.start(1, number) if alike else language.start(number)
    features = {"prefix_ids": prefix_ids}
    if options is not None:
        features |= {"seed": jnp.arange(number, dtype=jnp.uint32), **options._asdict()}
    slots = Slots.of(cache, automaton, features)
    active = jnp.ones(number, bool)
    slots, written = advance(language.step, slots, automaton, active, length)
    ended = (written.tokens == EOS_ID).any(axis=1)
    entries = automaton.entries(slots.node)
    return Decoded(written.tokens, written.gained.sum(1), ended, entries, written.num_steps)


def plain_greedy(language: Language, source: int, prefix: tuple[int, ...], length: int) -> tuple:
    text = prefix
    while len(text) < length and text[-1:] != (EOS_ID,):
        text += (
            max(
                range(1, VOCAB), key=lambda token: language.log_probability(source, (*text, token))
            ),
        )
    return text


@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_a_plain_loop(seed: int) -> None:
    language, number = random_language(seed), 20
    prefix_ids = np.zeros((number, LENGTH), np.int32)
    prefix_ids[3, :2] = [4, 3]
    prefix_ids[4, :1] = [2]
    found = toy(language, prefix_ids, all_but_pad())
    for row in range(number):
        prefix = until_end(prefix_ids[row])
        expected = plain_greedy(language, row, prefix, LENGTH)
        assert until_end(found.tokens[row]) == expected
        assert found.ended[row] == (expected[-1] == EOS_ID)
        score = language.log_probability(row, expected, len(prefix))
        np.testing.assert_allclose(found.log_probability[row], score, rtol=1e-5)
    assert 0 < found.ended.sum() <= number
    assert found.num_steps == max(map(len, map(until_end, found.tokens)))


def test_ends_with_the_last_row() -> None:
    language = random_language(0, end=3.0)
    found = toy(language, np.zeros((5, 200), np.int32), all_but_pad())
    longest = max(len(until_end(row)) for row in found.tokens)
    assert found.ended.all()
    assert found.num_steps == longest < 200
    padding = np.zeros((6, 200), np.int32)
    padding[5, 0] = EOS_ID  # a row of padding
    again = toy(language, padding, all_but_pad())
    assert again.num_steps == longest
    assert again.log_probability[5] == 0


def test_nothing_allowed_ends_a_row() -> None:
    language = random_language(1)
    nothing = Automaton(jnp.zeros(VOCAB, bool))
    found = toy(language, np.zeros((2, LENGTH), np.int32), nothing)
    assert np.isneginf(found.log_probability).all()
    assert found.num_steps == 1
    sampled = toy(language, np.zeros((2, LENGTH), np.int32), nothing, SamplingOptions())
    assert np.isneginf(sampled.log_probability).all()


@pytest.mark.parametrize("sampled", [False, True])
def test_rows_that_end_early_keep_their_entry(sampled: bool) -> None:
    """Sequences of unlike lengths: the first rows to end wait for the others."""
    sequences = [(2,), (2, 4, 3, 2, 2), (3, 2), (3, 3), (4, 2, 2), (4, 4, 4, 4)]
    trie = build_trie(sequences)
    options = SamplingOptions() if sampled else None
    found = toy(random_language(6), np.zeros((200, LENGTH), np.int32), trie, options)
    entries = np.asarray(found.entries)
    assert [until_end(row) for row in found.tokens] == [(*sequences[i], EOS_ID) for i in entries]
    assert set(entries.tolist()) == set(range(6))
    assert found.ended.all()


def test_sampled_texts_come_as_often_as_they_are_likely() -> None:
    language, number, length = random_language(2), 8000, 3
    nothing = np.zeros((number, length), np.int32)
    found = toy(language, nothing, all_but_pad(), SamplingOptions(), alike=True)
    texts = [until_end(tokens) for tokens in found.tokens]
    for text in set(texts):
        # The pad id is never drawn; what it had falls to the others, token by token.
        weight = 1.0
        for size in range(1, len(text) + 1):
            part = text[:size]
            options = [
                np.exp(language.log_probability(0, (*part[:-1], token), size - 1))
                for token in range(1, VOCAB)
            ]
            weight *= options[part[-1] - 1] / sum(options)
        assert texts.count(text) / number == pytest.approx(weight, abs=0.02)
    row = 17
    score = language.log_probability(0, texts[row])
    np.testing.assert_allclose(found.log_probability[row], score, rtol=1e-4)


# --- the model ---------------------------------------------------------------------------------


class Uncached(NamedTuple):
    """Nothing but the tokens so far, in place of a cache.

    Attributes:
      tokens: int32 `[rows, length]`, inputs.
      encoded: the source of every row.
    """

    tokens: Any
    encoded: Encoded

    def take_rows(self, rows: Any) -> Uncached:
        """See `beam_search.ReorderedCache`."""
        return self._replace(tokens=self.tokens[rows])


def without_cache(encoded: Encoded, length: int, rows_per_source: int = 1) -> Uncached:
    """In place of `M6Rec.start_decoding`."""
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, rows_per_source, axis=0), encoded)
    return Uncached(jnp.zeros((many.mask.shape[0], length), jnp.int32), many)


def uncached_step(model: M6Rec, variables: Mapping[str, Any], task_ids: Any) -> Step:
    """In place of `model_step`: decodes everything written so far; task_ids `[rows, 1]`."""

    def step(cache: Uncached, tokens: Any, position: Any, column: Any) -> tuple[Any, Uncached]:
        inputs = cache.tokens.at[:, position].set(tokens)
        blocks = jnp.broadcast_to(jnp.arange(inputs.shape[1]) <= position, inputs.shape)
        hidden: Any = model.apply(
            *(variables, cache.encoded, inputs, blocks.astype(jnp.int32), task_ids),
            method=model.decode,
        )
        logits = model.apply(variables, hidden[:, position], method=model.token_logits)
        return logits, cache._replace(tokens=inputs)

    return step


@pytest.fixture(scope="module", params=[{}, {"late_layers_start": 1, "scan_unroll": 0}], ids=str)
def setup(request: Any, shop_vocabulary: Any) -> Any:
    """(model, variables, encoded histories, constraint)"""
    model, variables = make_model(shop_vocabulary, **request.param)
    made = [rows.source_row(shop_vocabulary, history, 96) for history in HISTORIES]
    batch = pad_batch(made, {"encoder_input_tokens": 96, "encoder_block_ids": 96})
    variables = livelier(variables)
    encoded = jax.jit(lambda *args: model.apply(*args, method=model.encode))(
        variables, batch["encoder_input_tokens"], batch["encoder_block_ids"], TASKS
    )
    return model, variables, encoded, any_text(shop_vocabulary, model.config.vocab_size)


def test_cached_beam_search_equals_uncached(setup: Any) -> None:
    model, variables, encoded, constraint = setup
    prefix_ids, beams = jnp.zeros((3, LENGTH), jnp.int32), 3
    whole = without_cache(encoded, LENGTH, beams)

    @jax.jit
    def cached(variables: Any, encoded: Any) -> Any:
        cache: Any = model.apply(
            *(variables, encoded, TASKS),
            max_length=LENGTH,
            rows_per_source=beams,
            method=model.start_decoding,
        )
        step = model_step(model, variables, TASKS)
        return beam_search(step, cache, prefix_ids, constraint, num_beams=beams, length_penalty=0.6)

    @jax.jit
    def uncached(variables: Any, whole: Uncached) -> Any:
        step = uncached_step(model, variables, np.repeat(TASKS, beams, axis=0))
        return beam_search(step, whole, prefix_ids, constraint, num_beams=beams, length_penalty=0.6)

    (actual, _), (expected, _) = cached(variables, encoded), uncached(variables, whole)
    np.testing.assert_array_equal(actual.tokens, expected.tokens)
    np.testing.assert_allclose(actual.scores, expected.scores, rtol=1e-4)
