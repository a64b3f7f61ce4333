"""BLEU and ROUGE against their definitions, distinct n-grams, novelty, perplexity."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import generation

token_texts = st.lists(st.sampled_from(["a", "b", "c", "!", "🎬"]), max_size=7).map(" ".join)
pairs = st.lists(st.tuples(token_texts, token_texts), min_size=1, max_size=4)


def grams(text, n):
    tokens = text.split()
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def slow_bleu(generated, references, order):
    """Corpus BLEU without smoothing, word for word from its definition."""
    log_sum = 0.0
    for n in range(1, order + 1):
        matched = total = 0
        for text, reference in zip(generated, references, strict=True):
            left = grams(reference, n)
            for gram in grams(text, n):
                total += 1
                if gram in left:
                    left.remove(gram)
                    matched += 1
        if not matched:
            return 0.0
        log_sum += math.log(matched / total)
    c = sum(len(text.split()) for text in generated)
    r = sum(len(text.split()) for text in references)
    return 100 * min(1.0, math.exp(1 - r / c)) * math.exp(log_sum / order)


def slow_rouge(text, reference, n):
    got, wanted = grams(text, n), grams(reference, n)
    same = (Counter(got) & Counter(wanted)).total()
    return 2 * same / (len(got) + len(wanted)) if same else 0.0


@given(pairs, st.integers(1, 4))
@settings(max_examples=100)
def test_bleu_equals_its_definition(cases, order):
    pytest.importorskip("sacrebleu")
    generated, references = map(list, zip(*cases, strict=True))
    value = generation.bleu(generated, references, order, tokens="none")
    assert value == pytest.approx(slow_bleu(generated, references, order), abs=1e-9)


@given(pairs, st.integers(1, 3))
@settings(max_examples=80)
def test_rouge_equals_its_definition(cases, n):
    pytest.importorskip("rouge_score")
    # Its words are letters only.
    kept = [[" ".join(w for w in t.split() if w in "abc") for t in pair] for pair in cases]
    found = generation.rouge(*map(list, zip(*cases, strict=True)), (n,))[n]
    expected = [slow_rouge(*pair, n) for pair in kept]
    assert found == pytest.approx(100 * sum(expected) / len(cases))


def test_perplexity():
    logp = np.random.default_rng(0).normal(-2, 1, 100)
    assert generation.perplexity_from_sums(-logp.sum(), 100) == pytest.approx(np.exp(-logp.mean()))
    assert generation.perplexity_from_sums(1e6, 1) == math.inf
    for sums in ((1.0, 0), (math.nan, 1)):
        with pytest.raises(DataError):
            generation.perplexity_from_sums(*sums)


@given(pairs.map(lambda cases: [text for text, _ in cases]), st.integers(1, 4))
def test_distinct_ngrams_equal_loops_over_strings(texts, n):
    runs = [" ".join(gram) for text in texts for gram in grams(text, n)]
    assert generation.distinct_ngrams(texts, n) == (len(set(runs)), len(runs))


def test_novelty_ignores_case_punctuation_and_spaces():
    training = ["Liked it, a lot!", "Café"]
    generated = ["liked it a  lot", "liked it", "cafe\u0301.", "liked it a lot?"]
    assert generation.novelty(generated, iter(training)) == pytest.approx(1 / 4)
    assert generation.novelty(["x", "x", "y"], ["X"]) == pytest.approx(1 / 3)
    # Texts without words keep their signs.
    assert generation.novelty(["!!!", "???", "👍", ""], ["!!!"]) == pytest.approx(3 / 4)
