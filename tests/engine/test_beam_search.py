"""Beam search finds what enumerating every text finds, and a narrow one what a plain loop finds."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.engine.decoding.beam_search import beam_search, top_k
from m6rec_jax.engine.decoding.title_trie import build_trie
from m6rec_jax.text.vocabulary import EOS_ID
from tests.engine.toy_language import (
    NUM_CODES,
    VOCAB,
    Language,
    all_but_pad,
    every_text,
    random_language,
    until_end,
)

LENGTH = 4
SOURCES = 2


@functools.partial(jax.jit, static_argnames=("num_beams",))
def search(
    language: Language,
    prefix_ids: Any,
    constraint: Any,
    length_penalty: float,
    *,
    num_beams: int,
) -> Any:
    return beam_search(
        language.step,
        language.start(prefix_ids.shape[0], num_beams),
        prefix_ids,
        constraint,
        num_beams=num_beams,
        length_penalty=length_penalty,
    )


def free(length: int = LENGTH, sources: int = SOURCES) -> np.ndarray:
    return np.zeros((sources, length), np.int32)


def normalised(log_probability: float, length: int, penalty: float) -> float:
    return log_probability / ((5 + length) / 6) ** penalty


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_a_wide_beam_equals_enumeration(penalty: float, end: float) -> None:
    language = random_language(int(10 * penalty), end)
    texts = every_text(LENGTH)
    num_beams = 3**LENGTH  # as many as there are texts without [EOS]: none is ever dropped
    found, _ = search(language, free(), all_but_pad(), penalty, num_beams=num_beams)
    for source in range(SOURCES):
        scored = [
            (
                text[-1] == EOS_ID,
                normalised(language.log_probability(source, text), len(text), penalty),
                text,
            )
            for text in texts
        ]
        expected = sorted(scored, reverse=True)[:num_beams]
        assert [until_end(t) for t in found.tokens[source]] == [text for *_, text in expected]
        assert found.ended[source].tolist() == [ended for ended, *_ in expected]
        np.testing.assert_allclose(found.scores[source], [s for _, s, _ in expected], rtol=1e-5)
        np.testing.assert_allclose(
            found.log_probability[source],
            [language.log_probability(source, text) for *_, text in expected],
            rtol=1e-5,
        )
    assert (found.ended.sum(axis=1) == 1 + 3 + 9 + 27).all()


def plain_search(
    language: Language,
    source: int,
    prefix: tuple[int, ...],
    num_beams: int,
    penalty: float,
    length: int,
) -> list[tuple[float, tuple[int, ...]]]:
    """Finished texts with scores: every step of the full length, Python lists, no early end."""
    living: list[tuple[float, tuple[int, ...]]] = [(0.0, prefix)]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for position in range(len(prefix), length):
        longer = [
            (language.log_probability(source, (*text, token), len(prefix)), (*text, token))
            for _, text in living
            for token in range(1, VOCAB)
        ]
        written = position + 1 - len(prefix)
        finished += [(normalised(s, written, penalty), t) for s, t in longer if t[-1] == EOS_ID]
        finished = sorted(finished, reverse=True)[:num_beams]
        living = sorted([(s, t) for s, t in longer if t[-1] != EOS_ID], reverse=True)[:num_beams]
    return finished


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    num_beams=st.sampled_from([1, 2, 3]),
    penalty=st.sampled_from([0.0, 0.6, 1.5]),
    end=st.sampled_from([0.0, 1.0, 3.0]),
    prefix=st.lists(st.integers(2, VOCAB - 1), max_size=2),
)
def test_a_narrow_beam_equals_a_plain_search(
    seed: int, num_beams: int, penalty: float, end: float, prefix: list[int]
) -> None:
    """Also: ending early changes nothing."""
    language, length = random_language(seed, end), 6
    prefix_ids = free(length)
    prefix_ids[1, : len(prefix)] = prefix
    found, _ = search(language, prefix_ids, all_but_pad(), penalty, num_beams=num_beams)
    for source, beginning in ((0, ()), (1, tuple(prefix))):
        expected = plain_search(language, source, beginning, num_beams, penalty, length)
        number = len(expected)
        assert found.ended[source].tolist() == [place < number for place in range(num_beams)]
        assert [until_end(t) for t in found.tokens[source][:number]] == [t for _, t in expected]
        np.testing.assert_allclose(
            found.scores[source][:number], [s for s, _ in expected], rtol=1e-5, atol=1e-6
        )


def test_ends_when_nothing_can_get_better() -> None:
    sure_to_end = random_language(0, end=12.0)
    found, num_steps = search(sure_to_end, free(50), all_but_pad(), 0.6, num_beams=2)
    assert num_steps < 5
    assert found.ended.all()
    never_ends = random_language(0, end=-12.0)
    assert search(never_ends, free(50), all_but_pad(), 0.6, num_beams=2)[1] == 50


def test_a_longer_text_may_still_win_when_all_beams_have_finished() -> None:
    """What a living beam can hope for is its score at the full length, not at its own."""
    logits = np.zeros((NUM_CODES, VOCAB), np.float32)
    logits[:, EOS_ID] = 20.0  # whatever was written, it ends there
    logits[32] = np.log([0.01, 0.45, 0.3, 0.12, 0.12])  # but for the first token of source 0
    found, _ = search(Language(logits), free(LENGTH, 1), all_but_pad(), 3.0, num_beams=1)
    # log 0.45 / 1 = -0.80, log 0.3 / (7/6)^3 = -0.76, though log 0.3 / 1 = -1.20.
    assert until_end(found.tokens[0, 0]) == (2, EOS_ID)
    by_probability, num_steps = search(
        Language(logits), free(LENGTH, 1), all_but_pad(), 0.0, num_beams=1
    )
    assert until_end(by_probability.tokens[0, 0]) == (EOS_ID,)
    assert num_steps == 1


def test_rows_of_padding_hold_nothing_up() -> None:
    language = random_language(0, end=12.0)
    prefix_ids = free(50)
    prefix_ids[1, 0] = EOS_ID
    alone, num_steps_alone = search(language, prefix_ids[:1], all_but_pad(), 0.0, num_beams=2)
    found, num_steps = search(language, prefix_ids, all_but_pad(), 0.0, num_beams=2)
    assert num_steps == num_steps_alone
    np.testing.assert_array_equal(found.tokens[:1], alone.tokens)
    assert found.scores[1].tolist() == [0.0, -np.inf]


def test_repeated_argmax_is_a_top_k() -> None:
    x = np.random.default_rng(0).integers(0, 5, (4, 30)).astype(np.float32)  # many ties
    x[1:3] = np.where(x[1:3] < 4, -np.inf, x[1:3])
    for actual, expected in zip(top_k(x, 8), jax.lax.top_k(x, 8), strict=True):
        np.testing.assert_array_equal(actual, expected)
    names = str(jax.make_jaxpr(lambda x: top_k(x, 8))(x))
    assert "top_k" not in names
    assert "sort" not in names
    assert "top_k" in str(jax.make_jaxpr(lambda x: top_k(x, 12))(x))


def test_only_sequences_of_a_trie() -> None:
    """Fewer sequences than beams: all of them, in order, then nothing."""
    sequences = [(2, 2, 2), (2, 3), (2, 3, 4), (4,)]
    language = random_language(4)
    trie = build_trie(sequences)
    found, _ = search(language, free(), trie, 0.0, num_beams=6)
    for source in range(SOURCES):
        log_probs = [language.log_probability(source, (*s, EOS_ID)) for s in sequences]
        order = np.argsort(log_probs)[::-1]
        assert found.entries[source].tolist()[:4] == order.tolist()
        np.testing.assert_allclose(found.scores[source][:4], np.array(log_probs)[order], rtol=1e-5)
        assert np.isneginf(found.scores[source][4:]).all()
        assert [until_end(t) for t in found.tokens[source][:4]] == [
            (*sequences[i], EOS_ID) for i in order
        ]
    assert found.ended[:, :4].all()
    assert not found.ended[:, 4:].any()
