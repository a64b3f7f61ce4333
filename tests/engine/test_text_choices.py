"""Graphs of what a text may say, against all combinations of its parts in plain Python."""

import itertools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.engine.decoding.text_choices import RowChoices, TextChoices
from m6rec_jax.text.vocabulary import EOS_ID
from tests.engine.toy_language import all_but_pad

VOCAB = 7
CHOICES = st.lists(
    st.lists(st.integers(2, VOCAB - 1), max_size=3).map(tuple), min_size=1, max_size=4
)
PARTS = st.lists(CHOICES, max_size=3)
_mask = jax.jit(lambda rows, state, scores: rows.mask(state, scores))
_advance = jax.jit(lambda rows, state, tokens: rows.advance(state, tokens))


def texts_of(parts: list[list[tuple[int, ...]]]) -> set[tuple[int, ...]]:
    """All that may be said, `[EOS]` included; nothing only where there is nothing to say."""
    found = {tuple(itertools.chain(*some)) for some in itertools.product(*parts)}
    return {(*text, EOS_ID) for text in (found - {()} or found)}


def rows_of(parts: list[list[tuple[int, ...]]], room: int) -> RowChoices:
    """Beside a source that writes freely."""
    return RowChoices.of({1: TextChoices(parts)}, {1: room}, 2, all_but_pad(VOCAB))


@settings(max_examples=60)
@given(PARTS, st.integers(0, 99))
def test_masks_equal_sets_of_prefixes(parts: list[list[tuple[int, ...]]], seed: int) -> None:
    texts = texts_of(parts)
    prefixes = {text[:n] for text in texts for n in range(len(text) + 1)}
    random = np.random.default_rng(seed)
    scores = random.normal(size=(2, VOCAB)).astype(np.float32)
    rows = rows_of(parts, 99)
    state, text = rows.start(2), ()
    while not text or text[-1] != EOS_ID:
        masked = np.asarray(_mask(rows, state, scores))
        assert np.flatnonzero(np.isfinite(masked[0])).tolist() == list(range(1, VOCAB))
        allowed = np.flatnonzero(np.isfinite(masked[1]))
        assert allowed.tolist() == [t for t in range(VOCAB) if (*text, t) in prefixes]
        np.testing.assert_array_equal(masked[1, allowed], scores[1, allowed])
        text = (*text, int(random.choice(allowed)))
        state = _advance(rows, state, np.full(2, text[-1], np.int32))
    assert text in texts


@settings(max_examples=60)
@given(PARTS, st.integers(1, 6), st.integers(0, 99))
def test_a_text_ends_in_its_room(parts: list[list[tuple[int, ...]]], room: int, seed: int) -> None:
    texts = texts_of(parts)
    random = np.random.default_rng(seed)
    rows = rows_of(parts, room)
    state, text = rows.start(2), ()
    while not text or text[-1] != EOS_ID:
        masked = np.asarray(_mask(rows, state, np.zeros((2, VOCAB), np.float32)))
        text = (*text, int(random.choice(np.flatnonzero(np.isfinite(masked[1])))))
        state = _advance(rows, state, np.full(2, text[-1], np.int32))
    assert text in texts
    # Where nothing fits, whatever may be said begins.
    assert len(text) <= room or min(map(len, texts)) > room


def test_a_graph_goes_on_where_it_stood() -> None:
    choices = TextChoices([[(3, 4), (3, 5)], [(6,), ()]])
    node = choices.walk(0, (3, 5))
    rows = RowChoices.of({0: choices}, {0: 9}, 1, all_but_pad(VOCAB), {0: node})
    masked = np.asarray(_mask(rows, rows.start(1), np.zeros((1, VOCAB), np.float32)))
    assert np.flatnonzero(np.isfinite(masked[0])).tolist() == [EOS_ID, 6]


def test_too_many_choices_lose_the_last_ones() -> None:
    random = np.random.default_rng(0)
    many = [tuple(random.integers(2, 30_000, 9).tolist()) for _ in range(900)]
    choices = TextChoices([many, [*many[:3], ()]])
    node = choices.walk(0, many[0])
    assert node != 0
    assert choices.walk(node, many[2]) != node
    first, token, _, _ = choices.arrays
    begins = set(token[first[0] : first[1]].tolist())
    assert many[0][0] in begins
    assert 100 < len(begins) <= 256


def test_what_need_not_be_said_still_need_not() -> None:
    long = tuple(range(2, 3_002))
    # Of the part that must say something, half of its one choice is left, and half of that.
    choices = TextChoices([[long, ()], [(3_002,), ()], [long]])
    first, token, _, _ = choices.arrays
    assert set(token[first[0] : first[1]].tolist()) == {3_002, 2}
    assert choices.walk(0, long[:1_500]) == choices.walk(0, (3_002, *long[:1_500])) > 0
    assert choices.walk(0, (EOS_ID,)) == 0
