"""Generated text against reference text: BLEU and ROUGE.

All metrics are percentages (0 to 100), as tables of results print them, save that of
`bigram_precision_bleu`, which is a share as its source prints it. sacrebleu and rouge-score come
with the extra `text-metrics` and are imported when first needed.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.metrics.checked_texts import checked, same_length
from m6rec_jax.metrics.phrases import words

Smoothing = Literal["none", "exp"]
BleuTokens = Literal["13a", "intl", "none"]
RougeTokens = Literal["ascii", "unicode"]


def _extra(module: str, package: str, metric: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only the package itself missing is the missing extra; one that is broken says so itself.
        if error.name is not None and error.name.split(".")[0] == module.split(".")[0]:
            raise ConfigError(
                f"{metric} needs {package}, which is not installed: "
                "pip install 'm6rec_jax[text-metrics]'"
            ) from error
        raise


def require_text_metrics() -> None:
    """Raises ConfigError where a library of the extra `text-metrics` is not installed."""
    _extra("sacrebleu.metrics.bleu", "sacrebleu", "BLEU")
    _extra("rouge_score.rouge_scorer", "rouge-score", "ROUGE")


def _pairs(generated: Sequence[str], references: Sequence[str], metric: str) -> None:
    checked(generated, metric, "generated texts")
    same_length(generated, checked(references, metric, "references"), metric, "references")


def bleu(
    generated: Sequence[str],
    references: Sequence[str],
    max_order: int = 4,
    *,
    tokens: BleuTokens = "13a",
    smoothing: Smoothing = "none",
    lowercase: bool = False,
) -> float:
    """Corpus BLEU with one reference per text (Papineni et al., 2002), by sacrebleu.

    BP × exp(1/N × Σ_{n ≤ N} log p_n): p_n is the share of the generated n-grams, over the whole
    corpus, that are in their reference (an n-gram counts no more often than there); BP is
    exp(1 - r/c) where the generated texts are shorter (c words) than the references (r), else 1.
    BLEU-1, BLEU-2 and BLEU-4 are N = 1, 2 and 4.

    How PETER's metrics (Li et al., 2021) differ: PETER counts the words of its vocabulary between
    spaces, cut after 15, with every rare word of text and reference alike replaced by `<unk>`
    (two `<unk>` match), and does not smooth. On text so prepared, `tokens="none"` gives the figure
    it reports; M6-Rec compares itself with those. On plain text '13a' parts punctuation from words,
    so that "good." finds "good": such numbers are not comparable with PETER's.

    Args:
      generated: the texts; empty ones are allowed.
      references: one for each.
      max_order: N.
      tokens: '13a' (mteval's rules, sacrebleu's default), 'intl' (by Unicode punctuation), or
        'none' (what stands between spaces).
      smoothing: 'none': 0 when an order has no match at all, as in PETER; 'exp': sacrebleu's
        default, for corpora so small that this happens.
      lowercase: without regard to case.

    Raises:
      DataError: no texts, or numbers of texts that differ.
      ConfigError: sacrebleu is not installed.
      ValueError: `max_order` below 1, or unknown tokens or smoothing.
    """
    _pairs(generated, references, f"BLEU-{max_order}")
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    if tokens not in ("13a", "intl", "none"):
        raise ValueError(f"tokens must be '13a', 'intl' or 'none', got {tokens!r}")
    if smoothing not in ("none", "exp"):
        raise ValueError(f"smoothing must be 'none' or 'exp', got {smoothing!r}")
    metric = _extra("sacrebleu.metrics.bleu", "sacrebleu", "BLEU").BLEU(
        lowercase=lowercase,
        force=True,  # no warning about text that looks tokenised: with 'none' it should be
        tokenize=tokens,
        smooth_method=smoothing,
        max_ngram_order=max_order,
    )
    return float(metric.corpus_score(list(generated), [list(references)]).score)


def bigram_precision_bleu(
    generated: Sequence[str],
    references: Sequence[str],
    tokenise: Callable[[str], Sequence[str]] = str.split,
) -> float:
    """What KGSF (Zhou et al., 2020) reports as BLEU-2 for conversation: a share, 0 to 1.

    The mean over texts of BP × p_2, both of that text alone: its code gives NLTK's `sentence_bleu`
    the weights (0, 1, 0, 0), so the precision of single words has no part in it, unlike in
    `bleu(..., max_order=2)`. Texts without a matching bigram count 0.

    Args:
      generated: the texts; empty ones are allowed.
      references: one for each.
      tokenise: how a text becomes tokens.

    Raises:
      DataError: no texts, or numbers of texts that differ.
    """
    _pairs(generated, references, "bigram BLEU")
    total = 0.0
    for text, reference in zip(generated, references, strict=True):
        got, wanted = tokenise(text), tokenise(reference)
        bigrams = Counter(itertools.pairwise(got))
        matches = (bigrams & Counter(itertools.pairwise(wanted))).total()
        if matches:
            brevity = 1.0 if len(got) > len(wanted) else math.exp(1 - len(wanted) / len(got))
            total += brevity * matches / bigrams.total()
    return total / len(generated)


@dataclass(frozen=True)
class RougeScore:
    """Means over the texts of precision, recall and their harmonic mean, 0 to 100 each."""

    precision: float
    recall: float
    f: float


class _UnicodeTokens:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge(
    generated: Sequence[str],
    references: Sequence[str],
    orders: Sequence[int] = (1, 2),
    *,
    tokens: RougeTokens = "ascii",
    stem: bool = False,
) -> dict[int, RougeScore]:
    """ROUGE-n (Lin, 2004), by rouge-score.

    Of one text: precision = matching n-grams / n-grams of the text, recall = matching n-grams /
    n-grams of the reference, F = 2PR / (P + R), 0 where there are none. Reported is the mean over
    the texts of each of the three, so F is not the harmonic mean of the precision and recall beside
    it.

    How PETER's metrics (Li et al., 2021) differ: it takes the *set* of a text's n-grams, so that
    one said twice counts once, and words are what stands between spaces, punctuation with them.

    Args:
      generated: the texts; empty ones are allowed.
      references: one for each.
      orders: the n, 1 to 9.
      tokens: 'ascii': the original's and rouge-score's rule, runs of a-z and 0-9 after lowering;
        other letters part words ("amélie" is "am", "lie") and text in other scripts has no words at
        all. 'unicode': words of any script (`phrases.words`).
      stem: Porter's stemmer for words of more than three letters; with 'ascii' only.

    Returns:
      n -> its scores.

    Raises:
      DataError: no texts, numbers of texts that differ, or 'ascii' words of references that are all
        in other scripts.
      ConfigError: rouge-score is not installed.
      ValueError: orders outside 1 to 9, unknown tokens, or a stemmer for 'unicode'.
    """
    _pairs(generated, references, "ROUGE")
    if tokens not in ("ascii", "unicode"):
        raise ValueError(f"tokens must be 'ascii' or 'unicode', got {tokens!r}")
    if stem and tokens == "unicode":
        raise ValueError("the stemmer is for English: it goes with tokens='ascii' only")
    if not orders or not all(1 <= order <= 9 for order in orders):
        raise ValueError(f"orders must be among 1 to 9, got {tuple(orders)}")
    scorers = _extra("rouge_score.rouge_scorer", "rouge-score", "ROUGE")
    if tokens == "unicode":
        tokenizer: Any = _UnicodeTokens()
    else:
        tokenizer = importlib.import_module("rouge_score.tokenizers").DefaultTokenizer(stem)
        has_words = any(words(text) for text in references)
        if has_words and not any(tokenizer.tokenize(text) for text in references):
            raise DataError(
                "ROUGE: no reference has a word of the letters a-z; take tokens='unicode'"
            )
    names = [f"rouge{order}" for order in orders]
    scorer = scorers.RougeScorer(names, tokenizer=tokenizer)
    sums = {name: [0.0, 0.0, 0.0] for name in names}
    for text, reference in zip(generated, references, strict=True):
        for name, score in scorer.score(reference, text).items():
            for place, value in enumerate((score.precision, score.recall, score.fmeasure)):
                sums[name][place] += value
    scale = 100.0 / len(generated)
    return {
        order: RougeScore(*(value * scale for value in sums[name]))
        for order, name in zip(orders, names, strict=True)
    }
