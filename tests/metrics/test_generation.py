"""BLEU and ROUGE against their definitions and NLTK, distinct n-grams, novelty, perplexity."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError, DataError
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


def test_bleu_counts_punctuation_apart_unless_told():
    pytest.importorskip("sacrebleu")
    assert generation.bleu(["so good."], ["so good"], 1) == pytest.approx(100 * 2 / 3)
    assert generation.bleu(["so good."], ["so good"], 1, tokens="none") == pytest.approx(50)


@given(pairs)
@settings(max_examples=80)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bigram_precision_equals_nltk_with_its_weights(cases):
    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
    expected = [
        nltk_bleu.sentence_bleu([reference.split()], text.split(), weights=(0, 1, 0, 0))
        for text, reference in cases
    ]
    value = generation.bigram_precision_bleu(*map(list, zip(*cases, strict=True)))
    assert value == pytest.approx(sum(expected) / len(cases), abs=1e-9)


@given(pairs, st.integers(1, 3))
@settings(max_examples=80)
def test_rouge_equals_its_definition(cases, n):
    pytest.importorskip("rouge_score")
    # Its words are letters only.
    kept = [[" ".join(w for w in t.split() if w in "abc") for t in pair] for pair in cases]
    found = generation.rouge(*map(list, zip(*cases, strict=True)), (n,))[n]
    expected = [slow_rouge(*pair, n) for pair in kept]
    assert found == pytest.approx(100 * sum(expected) / len(cases))


def test_rouge_has_words_of_any_script_and_a_mean_of_f():
    pytest.importorskip("rouge_score")
    # Precision 2/3, recall 1.
    found = generation.rouge(["очень хороший фильм"], ["Хороший фильм!"], (1,))
    assert found[1] == pytest.approx(80)
    # F is 40 for both, whatever the mean precision and recall.
    assert generation.rouge(["a", "a b c d"], ["a b c d", "a"], (1,))[1] == pytest.approx(40)


@pytest.mark.parametrize(
    ("package", "call"), [("sacrebleu", generation.bleu), ("rouge_score", generation.rouge)]
)
def test_a_missing_library_names_the_extra(monkeypatch, package, call):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'm6rec_jax\[text-metrics\]'"):
        call(["a"], ["a"])


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


def test_peter_cuts_texts_hides_rare_words_and_takes_sets():
    pytest.importorskip("sacrebleu")
    words = generation.frequent_words(["the pool was good", "the pool good", "good"], 3)
    assert words == {"the", "pool", "good"}
    found = generation.peter_metrics(["the lobby", "good."], ["the terrace", "good"], words)
    # "good." is not "good", and unknown, as "lobby" and "terrace" are.
    assert found["rouge_1"] == pytest.approx(50.0)
    assert found["bleu_1"] == pytest.approx(100 * 2 / 3)
    assert found["usr"] == 1.0
    # Bigrams {the the, the pool} and {the pool}: precision 1/2, recall 1, F 2/3.
    found = generation.peter_metrics(["the the pool"], ["the pool"], words)
    assert found["rouge_2"] == pytest.approx(100 * 2 / 3)
    found = generation.peter_metrics(["the " * 15 + "pool"], ["the " * 15], words)
    assert found["bleu_4"] == pytest.approx(100)
