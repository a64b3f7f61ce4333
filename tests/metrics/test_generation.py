"""BLEU and ROUGE by hand, by loops, and against NLTK; what happens without the libraries."""

import math
import subprocess
import sys
from collections import Counter

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
    """Precision, recall and F of one text."""
    got, wanted = grams(text, n), grams(reference, n)
    same = (Counter(got) & Counter(wanted)).total()
    p = same / len(got) if got else 0.0
    r = same / len(wanted) if wanted else 0.0
    return p, r, 2 * p * r / (p + r) if same else 0.0


class TestBleu:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("sacrebleu")

    def test_by_hand(self):
        generated, references = ["the cat sat"], ["the cat sat down here"]
        # All n-grams match; three words against five.
        brevity = math.exp(1 - 5 / 3)
        assert generation.bleu(generated, references, 1) == pytest.approx(100 * brevity)
        # "the" counts twice at most: 2 of 4 words match; bigrams: "the the" of three.
        generated, references = ["the the the the"], ["the the cat"]
        assert generation.bleu(generated, references, 1) == pytest.approx(50)
        expected = 100 * math.sqrt(2 / 4 * 1 / 3)
        assert generation.bleu(generated, references, 2) == pytest.approx(expected)

    def test_bleu_4_by_hand(self):
        # Words 5/6, bigrams 4/5, trigrams 3/4, 4-grams 2/3; the reference is as long.
        value = generation.bleu(["a b c d e x"], ["a b c d e f"])
        product = 5 / 6 * 4 / 5 * 3 / 4 * 2 / 3
        assert value == pytest.approx(100 * product**0.25)

    @given(pairs, st.integers(1, 4))
    @settings(max_examples=100, deadline=None)
    def test_equals_the_definition(self, cases, order):
        generated, references = map(list, zip(*cases, strict=True))
        value = generation.bleu(generated, references, order, tokens="none")
        assert value == pytest.approx(slow_bleu(generated, references, order), abs=1e-9)

    def test_it_is_of_the_corpus_not_a_mean(self):
        generated, references = ["a", "x x x"], ["a", "b b b"]
        assert generation.bleu(generated, references, 1) == pytest.approx(25)

    def test_tokens(self):
        generated, references = ["so good."], ["so good"]
        # 13a: so good . against so good
        assert generation.bleu(generated, references, 1) == pytest.approx(100 * 2 / 3)
        assert generation.bleu(generated, references, 1, tokens="none") == pytest.approx(50)
        generated, references = ["«bon»"], ["bon"]
        assert generation.bleu(generated, references, 1) == 0
        assert generation.bleu(generated, references, 1, tokens="intl") == pytest.approx(100 / 3)

    def test_case_and_smoothing(self):
        generated, references = ["A b c"], ["a b d"]
        assert generation.bleu(generated, references, 1) == pytest.approx(100 / 3)
        value = generation.bleu(generated, references, 1, lowercase=True)
        assert value == pytest.approx(200 / 3)
        assert generation.bleu(generated, references, 2) == 0
        # Exponential: an order without a match counts half a match: 1/3 × (1/2 × 1/2).
        smooth = generation.bleu(generated, references, 2, smoothing="exp")
        assert smooth == pytest.approx(100 * math.sqrt(1 / 3 * 1 / 4))

    @given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=3))
    @settings(max_examples=60, deadline=None)
    def test_any_text(self, cases):
        generated, references = map(list, zip(*cases, strict=True))
        assert 0 <= generation.bleu(generated, references, 4) <= 100 + 1e-9

    def test_refusals(self):
        with pytest.raises(DataError, match="1 texts, but 2 references"):
            generation.bleu(["a"], ["a", "b"])
        with pytest.raises(DataError, match="there are no generated texts"):
            generation.bleu([], [])
        with pytest.raises(DataError, match="got one text"):
            generation.bleu("a", "a")
        with pytest.raises(ValueError, match="max_order"):
            generation.bleu(["a"], ["a"], 0)
        with pytest.raises(ValueError, match="'13b'"):
            generation.bleu(["a"], ["a"], tokens="13b")
        with pytest.raises(ValueError, match="'floor'"):
            generation.bleu(["a"], ["a"], smoothing="floor")


class TestBigramPrecisionBleu:
    def test_by_hand(self):
        generated, references = ["a b c", "x y", ""], ["a b d e", "p q", "r"]
        # The first: one of two bigrams, three words against four; the others nothing.
        expected = math.exp(1 - 4 / 3) / 2 / 3
        value = generation.bigram_precision_bleu(generated, references)
        assert value == pytest.approx(expected)

    def test_single_words_have_no_part_in_it(self):
        assert generation.bigram_precision_bleu(["a b x"], ["a b c"]) == pytest.approx(1 / 2)
        assert generation.bigram_precision_bleu(["a"], ["a"]) == 0

    @given(pairs)
    @settings(max_examples=80, deadline=None)
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_equals_nltk_with_its_weights(self, cases):
        nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
        expected = [
            nltk_bleu.sentence_bleu([reference.split()], text.split(), weights=(0, 1, 0, 0))
            for text, reference in cases
        ]
        value = generation.bigram_precision_bleu(*map(list, zip(*cases, strict=True)))
        assert value == pytest.approx(sum(expected) / len(cases), abs=1e-9)


class TestRouge:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("rouge_score")

    def test_by_hand(self):
        scores = generation.rouge(["the cat sat"], ["The cat lay down."])
        # Words: the, cat of three and of four; bigrams: the cat of two and of three.
        one, two = scores[1], scores[2]
        assert (one.precision, one.recall) == pytest.approx((200 / 3, 50))
        assert one.f == pytest.approx(100 * 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
        assert (two.precision, two.recall, two.f) == pytest.approx((50, 100 / 3, 40))

    def test_the_mean_of_f_is_not_the_f_of_means(self):
        score = generation.rouge(["a", "a b c d"], ["a b c d", "a"], (1,))[1]
        assert (score.precision, score.recall) == pytest.approx((62.5, 62.5))
        assert score.f == pytest.approx(40)

    def test_repeated_words_count_as_often_as_in_the_reference(self):
        score = generation.rouge(["a a a a"], ["a a b b"], (1,))[1]
        assert score.precision == pytest.approx(50)

    @given(pairs, st.integers(1, 3))
    @settings(max_examples=80, deadline=None)
    def test_equals_the_definition(self, cases, n):
        generated, references = map(list, zip(*cases, strict=True))
        score = generation.rouge(generated, references, (n,))[n]
        # Its tokens are letters and digits only.
        kept = [
            [" ".join(w for w in text.split() if w in "abc") for text in texts]
            for texts in (generated, references)
        ]
        expected = [slow_rouge(*pair, n) for pair in zip(*kept, strict=True)]
        means = [100 * sum(values) / len(cases) for values in zip(*expected, strict=True)]
        assert [score.precision, score.recall, score.f] == pytest.approx(means)

    def test_scripts(self):
        generated, references = ["очень хороший фильм"], ["Хороший фильм!"]
        score = generation.rouge(generated, references, (1,), tokens="unicode")[1]
        assert (score.precision, score.recall) == pytest.approx((200 / 3, 100))
        with pytest.raises(DataError, match="tokens='unicode'"):
            generation.rouge(generated, references)

    def test_stemmer(self):
        assert generation.rouge(["films"], ["film"], (1,))[1].f == 0
        assert generation.rouge(["films"], ["film"], (1,), stem=True)[1].f == pytest.approx(100)

    @pytest.mark.parametrize("tokens", ["ascii", "unicode"])
    def test_texts_without_words_score_nothing(self, tokens):
        scores = generation.rouge(["", "!?", "🎬"], ["!", "", "🎬"], tokens=tokens)
        assert scores[1] == scores[2] == generation.RougeScore(0, 0, 0)

    @given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=3))
    @settings(max_examples=60, deadline=None)
    def test_any_text(self, cases):
        generated, references = map(list, zip(*cases, strict=True))
        for score in generation.rouge(generated, references, tokens="unicode").values():
            assert min(score.precision, score.recall, score.f) >= 0
            assert max(score.precision, score.recall, score.f) <= 100 + 1e-9

    def test_refusals(self):
        with pytest.raises(ValueError, match="orders"):
            generation.rouge(["a"], ["a"], (0,))
        with pytest.raises(ValueError, match="orders"):
            generation.rouge(["a"], ["a"], ())
        with pytest.raises(ValueError, match="stemmer"):
            generation.rouge(["a"], ["a"], stem=True, tokens="unicode")
        with pytest.raises(ValueError, match="'words'"):
            generation.rouge(["a"], ["a"], tokens="words")
        with pytest.raises(DataError, match="2 texts, but 1 references"):
            generation.rouge(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("package", "call"), [("sacrebleu", generation.bleu), ("rouge_score", generation.rouge)]
)
def test_a_missing_library_names_the_extra(monkeypatch, package, call):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'm6rec_jax\[text-metrics\]'"):
        call(["a"], ["a"])


def test_the_libraries_are_imported_when_needed():
    code = (
        "import sys, m6rec_jax.metrics.generation; "
        "print([m for m in ('sacrebleu', 'rouge_score', 'nltk', 'jax') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
