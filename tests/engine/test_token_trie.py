"""The trie's arrays against sets of prefixes in plain Python."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.engine.decoding.token_trie import (
    NO_ENTRY,
    NO_RANK,
    TokenTrie,
    UnseenTrie,
    build_trie,
)
from m6rec_jax.text.vocabulary import EOS_ID

VOCAB = 9
SEQUENCE = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=5).map(tuple)


@settings(max_examples=60)
@given(st.lists(SEQUENCE, min_size=1, max_size=40, unique=True), st.data())
def test_masks_and_entries_equal_sets_of_prefixes(
    sequences: list[tuple[int, ...]], data: st.DataObject
) -> None:
    trie = build_trie(sequences)
    texts = [(*sequence, EOS_ID) for sequence in sequences]
    prefixes = {text[:n] for text in texts for n in range(len(text) + 1)}
    # Every row walks along a text of its own; some of them go astray on the way.
    astray = data.draw(
        st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7), max_size=5)
    )
    walks = [*texts, *map(tuple, astray)]
    # Padded to one shape, which compiles once for all examples.
    rows, length = 64, 8
    log_probs = np.random.default_rng(0).normal(size=(rows, VOCAB)).astype(np.float32)
    padded = np.zeros((rows, length), np.int32)
    for row, walk in enumerate(walks):
        padded[row, : len(walk)] = walk
    masks, entries = map(np.asarray, follow(trie, padded, log_probs))
    for row, walk in enumerate(walks):
        for position in range(len(walk) + 1):
            before, masked = walk[:position], masks[position, row]
            allowed = [token for token in range(VOCAB) if (*before, token) in prefixes]
            assert np.flatnonzero(np.isfinite(masked)).tolist() == allowed
            assert masked[allowed].tolist() == log_probs[row, allowed].tolist()
            entry = texts.index(before) if before in texts else NO_ENTRY
            assert entries[position, row] == entry


@jax.jit
def follow(trie: TokenTrie, tokens: Any, log_probs: Any) -> Any:
    """Masks `[length, rows, vocab]` and entries `[length, rows]` before each token."""

    def step(state: Any, column: Any) -> Any:
        return trie.advance(state, column), (trie.mask(state, log_probs), trie.entries(state))

    return jax.lax.scan(step, trie.start(tokens.shape[0]), tokens.T)[1]


@settings(max_examples=60)
@given(
    st.lists(SEQUENCE, min_size=1, max_size=30, unique=True),
    st.lists(st.sets(st.integers(0, 29)), min_size=2, max_size=2),
)
def test_what_is_excluded_leaves_the_trie_of_the_rest(
    sequences: list[tuple[int, ...]], excluded: list[set[int]]
) -> None:
    """At every prefix that is left, the mask is that of a trie without the excluded sequences."""
    ordered = sorted((*sequence, EOS_ID) for sequence in sequences)
    ranks = np.full((2, 32), NO_RANK, np.int32)
    for row, own in enumerate(excluded):
        ranks[row, : len(own)] = sorted(own)
    trie = UnseenTrie(build_trie(sequences), jnp.asarray(ranks))
    log_probs = np.random.default_rng(0).normal(size=(64, VOCAB)).astype(np.float32)
    for row in range(2):
        left = [text for rank, text in enumerate(ordered) if rank not in excluded[row]]
        prefixes = {text[:n] for text in left for n in range(len(text) + 1)} or {()}
        # All walks of one source at once; the rows of the other stand beside them.
        walks = sorted(prefixes)[:32]
        padded = np.zeros((64, 8), np.int32)
        for place, walk in enumerate(walks):
            padded[32 * row + place, : len(walk)] = walk
        masks, _ = map(np.asarray, follow(trie, padded, log_probs))
        for place, walk in enumerate(walks):
            masked = masks[len(walk), 32 * row + place]
            allowed = [token for token in range(VOCAB) if (*walk, token) in prefixes]
            assert np.flatnonzero(np.isfinite(masked)).tolist() == allowed


def test_memory_follows_the_titles_not_the_vocabulary() -> None:
    """10,000 titles of 12 tokens out of 32,000: no array has more than nodes or width entries."""
    rng = np.random.default_rng(0)
    sequences = np.unique(rng.integers(2, 32_000, (10_000, 12)), axis=0)
    trie = build_trie(list(sequences))
    assert sum(array.size for array in trie) < 3 * 2 * 13 * 10_000 + 2**14
    state = trie.start(4)
    log_probs = jnp.zeros((4, 32_128))
    compiled = jax.jit(lambda trie, state: trie.mask(state, log_probs)).lower(trie, state).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]
    assert temporary <= 8 * log_probs.nbytes


def test_a_catalogue_may_grow_without_compiling_anew() -> None:
    traced = []

    @jax.jit
    def mask(trie, state, log_probs):
        traced.append(1)
        return trie.mask(state, log_probs)

    for number in (5, 6):
        trie = build_trie([(2, token) for token in range(2, 2 + number)])
        mask(trie, trie.start(3), jnp.zeros((3, 16)))
    assert len(traced) == 1
