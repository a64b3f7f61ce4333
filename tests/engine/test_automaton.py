"""Automata of titles and of choices, against sets of prefixes in plain Python."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.engine.decoding.automaton import NO_ENTRY, Automaton
from m6rec_jax.engine.decoding.graphs import TextChoices, graphs_of_choices
from m6rec_jax.engine.decoding.title_trie import build_trie
from m6rec_jax.text.vocabulary import EOS_ID
from tests.engine.toy_language import all_but_pad

VOCAB = 9
SEQUENCE = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=5).map(tuple)
CHOICES = st.lists(
    st.lists(st.integers(2, VOCAB - 1), max_size=3).map(tuple), min_size=1, max_size=4
)
PARTS = st.lists(CHOICES, max_size=3)
ROWS, LENGTH = 64, 8
LOG_PROBS = np.random.default_rng(0).normal(size=(ROWS, VOCAB)).astype(np.float32)
Text = tuple[int, ...]


@jax.jit
def follow(automaton: Automaton, tokens: Any) -> Any:
    """Masks `[length, rows, vocab]` and entries `[length, rows]` before each token."""

    def step(node: Any, column: Any) -> Any:
        found = automaton.mask(node, LOG_PROBS, LENGTH), automaton.entries(node)
        return automaton.advance(node, column, jnp.zeros(ROWS, bool)), found

    return jax.lax.scan(step, automaton.start_nodes(2, ROWS // 2), tokens.T)[1]


def check(automaton: Automaton, walks: list[list[Text]], texts: list[list[Text]]) -> None:
    """Of each source, along walks, a prefix may go on as one of its texts does.

    Once a walk has left the texts nothing is said of it.
    """
    padded = np.zeros((ROWS, LENGTH), np.int32)
    for source, own in enumerate(walks):
        for row, walk in enumerate(own[: ROWS // 2], start=source * ROWS // 2):
            padded[row, : len(walk)] = walk
    masks, entries = map(np.asarray, follow(automaton, padded))
    for source, own in enumerate(walks):
        prefixes = {text[:n] for text in texts[source] for n in range(len(text) + 1)}
        for row, walk in enumerate(own[: ROWS // 2], start=source * ROWS // 2):
            for position in range(min(len(walk) + 1, LENGTH)):
                before, masked = walk[:position], masks[position, row]
                if before not in prefixes:
                    break
                allowed = [token for token in range(VOCAB) if (*before, token) in prefixes]
                assert np.flatnonzero(np.isfinite(masked)).tolist() == allowed
                np.testing.assert_array_equal(masked[allowed], LOG_PROBS[row, allowed])
                if before not in texts[source]:
                    assert entries[position, row] == NO_ENTRY


@settings(max_examples=60)
@given(
    st.lists(SEQUENCE, min_size=1, max_size=30, unique=True),
    st.lists(st.sets(st.integers(0, 29)), min_size=2, max_size=2),
)
def test_titles_and_what_each_source_excludes(
    sequences: list[Text], excluded: list[set[int]]
) -> None:
    """At every prefix that is left, the mask is that of a trie without the excluded sequences."""
    sequences = sorted(sequences)
    texts = [(*sequence, EOS_ID) for sequence in sequences]
    trie = build_trie(sequences)
    check(trie, [texts, texts[::-1]], [texts, texts])
    flags = np.array([[entry in entries for entry in range(32)] for entries in excluded])
    left = [[t for entry, t in enumerate(texts) if not row[entry]] for row in flags]
    check(trie.without(flags), left, left)
    padded = np.zeros((ROWS, LENGTH), np.int32)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    entries = np.asarray(follow(trie, padded)[1])
    assert [entries[len(text), row] for row, text in enumerate(texts)] == [*range(len(texts))]


def texts_of(parts: list[list[Text]]) -> set[Text]:
    """All that may be said, `[EOS]` included; nothing only where there is nothing to say."""
    found = {tuple(itertools.chain(*some)) for some in itertools.product(*parts)}
    return {(*text, EOS_ID) for text in (found - {()} or found)}


_mask = jax.jit(lambda automaton, *args: automaton.mask(*args))
_advance = jax.jit(lambda automaton, *args: automaton.advance(*args))


@settings(max_examples=60)
@given(
    PARTS, st.integers(1, 12), st.lists(st.integers(2, VOCAB - 1), max_size=3), st.integers(0, 9)
)
def test_choices_after_a_prefix_end_in_their_room(
    parts: list[list[Text]], room: int, prefix: list[int], seed: int
) -> None:
    texts = texts_of(parts)
    prefixes = {text[:n] for text in texts for n in range(len(text) + 1)}
    random = np.random.default_rng(seed)
    # Beside a source that writes freely.
    automaton = graphs_of_choices([None, TextChoices(parts)], range(2))._replace(
        free=all_but_pad(VOCAB).free
    )
    node, text = automaton.start_nodes(2), ()
    for token in prefix:  # whatever the graph says of it
        node = _advance(automaton, node, np.full(2, token, np.int32), np.ones(2, bool))
    while not text or text[-1] != EOS_ID:
        masked = np.asarray(_mask(automaton, node, LOG_PROBS[:2], room - len(text)))
        assert np.flatnonzero(np.isfinite(masked[0])).tolist() == list(range(1, VOCAB))
        allowed = np.flatnonzero(np.isfinite(masked[1]))
        rest = [t for t in texts if t[: len(text)] == text and len(t) <= room]
        if rest:  # where nothing fits, whatever may be said begins
            assert {t[len(text)] for t in rest} == set(allowed.tolist())
        assert all((*text, token) in prefixes for token in allowed.tolist())
        text = (*text, int(random.choice(allowed)))
        node = _advance(automaton, node, np.full(2, text[-1], np.int32), np.zeros(2, bool))
    assert text in texts
    assert len(text) <= room or min(map(len, texts)) > room


def walk(choices: TextChoices, tokens: Text) -> int:
    node = 0
    for token in tokens:
        node = edges(choices, node).get(token, node)
    return node


def edges(choices: TextChoices, node: int) -> dict[int, int]:
    own = slice(*choices.first_edge[node : node + 2])
    return dict(zip(choices.token[own].tolist(), choices.target[own].tolist(), strict=True))


def test_too_many_choices_lose_the_last_ones() -> None:
    random = np.random.default_rng(0)
    many = [tuple(random.integers(2, 30_000, 9).tolist()) for _ in range(900)]
    choices = TextChoices([many, [*many[:3], ()]])
    node = walk(choices, many[0])
    assert node != 0
    assert walk(choices, (*many[0], *many[2])) != node
    assert many[0][0] in edges(choices, 0)
    assert 100 < len(edges(choices, 0)) <= 256


def test_what_need_not_be_said_still_need_not() -> None:
    long = tuple(range(2, 3_002))
    # Of the part that must say something, half of its one choice is left, and half of that.
    choices = TextChoices([[long, ()], [(3_002,), ()], [long]])
    assert set(edges(choices, 0)) == {3_002, 2}
    assert walk(choices, long[:1_500]) == walk(choices, (3_002, *long[:1_500])) > 0
    assert walk(choices, (EOS_ID,)) == 0


def test_memory_follows_the_titles_not_the_vocabulary() -> None:
    """10,000 titles of 12 tokens out of 32,000: no array has more than nodes or width entries."""
    rng = np.random.default_rng(0)
    sequences = np.unique(rng.integers(2, 32_000, (10_000, 12)), axis=0)
    trie = build_trie(list(sequences))
    assert sum(array.size for array in jax.tree.leaves(trie)) < 4 * 2 * 13 * 10_000
    log_probs = jnp.zeros((4, 32_128))
    compiled = _mask.lower(trie, trie.start_nodes(4), log_probs, 1).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 8 * log_probs.nbytes


def test_a_catalogue_may_grow_without_compiling_anew() -> None:
    shapes = [
        [leaf.shape for leaf in build_trie([(2, token) for token in range(2, 2 + number)])[1:5]]
        for number in (5, 6)
    ]
    assert shapes[0] == shapes[1]
