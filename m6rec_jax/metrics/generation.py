"""Generated text against reference text: BLEU, ROUGE, perplexity.

BLEU and ROUGE are percentages, but for `bigram_precision_bleu`, a share as its source prints it.
sacrebleu and rouge-score come with the extra `text-metrics` and are imported when first needed.
There is at least one text, and one reference for each.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.metrics.phrases import words


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


def bleu(
    generated: Sequence[str],
    references: Sequence[str],
    max_order: int = 4,
    *,
    tokens: Literal["13a", "none"] = "13a",
) -> float:
    """Corpus BLEU with one reference per text (Papineni et al., 2002), by sacrebleu, not smoothed.

    PETER (Li et al., 2021) counts words between spaces, cut after 15, every rare word replaced by
    `<unk>`. On text so prepared `tokens="none"` gives its values; M6-Rec compares itself with
    those. On plain text '13a' parts punctuation from words, which is not comparable with PETER's.

    Args:
      generated: the texts; empty ones are allowed.
      references: one for each.
      max_order: N of BLEU-N.
      tokens: '13a' (mteval's rules) or 'none' (what stands between spaces).

    Raises:
      ConfigError: sacrebleu is not installed.
    """
    metric = _extra("sacrebleu.metrics.bleu", "sacrebleu", "BLEU").BLEU(
        force=True,  # no warning about text that looks tokenised: with 'none' it should be
        tokenize=tokens,
        smooth_method="none",
        max_ngram_order=max_order,
    )
    return float(metric.corpus_score(list(generated), [list(references)]).score)


def bigram_precision_bleu(
    generated: Sequence[str],
    references: Sequence[str],
) -> float:
    """What KGSF (Zhou et al., 2020) reports as BLEU-2 for conversation: a share, 0 to 1.

    The mean over texts of brevity penalty × bigram precision, both of that text alone: its code
    gives NLTK's `sentence_bleu` the weights (0, 1, 0, 0), so that single words have no part in it.
    Words are what stands between spaces; texts without a matching bigram count 0.
    """
    total = 0.0
    for text, reference in zip(generated, references, strict=True):
        got, wanted = text.split(), reference.split()
        bigrams = Counter(itertools.pairwise(got))
        matches = (bigrams & Counter(itertools.pairwise(wanted))).total()
        if matches:
            brevity = 1.0 if len(got) > len(wanted) else math.exp(1 - len(wanted) / len(got))
            total += brevity * matches / bigrams.total()
    return total / len(generated)


class _UnicodeTokens:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge(
    generated: Sequence[str], references: Sequence[str], orders: Sequence[int] = (1, 2)
) -> dict[int, float]:
    """ROUGE-n (Lin, 2004), by rouge-score: n → mean F over the texts, 0 to 100.

    Of one text: precision = matching n-grams / n-grams of the text, recall = matching n-grams /
    n-grams of the reference, F = 2PR / (P + R), 0 where there are none. Words are those of any
    script (`phrases.words`), so values differ from PETER's (`peter_rouge`).

    Raises:
      ConfigError: rouge-score is not installed.
    """
    names = [f"rouge{order}" for order in orders]
    scorer = _extra("rouge_score.rouge_scorer", "rouge-score", "ROUGE").RougeScorer(
        names, tokenizer=_UnicodeTokens()
    )
    sums = dict.fromkeys(names, 0.0)
    for text, reference in zip(generated, references, strict=True):
        for name, score in scorer.score(reference, text).items():
            sums[name] += score.fmeasure
    return {
        order: 100.0 * sums[name] / len(generated)
        for order, name in zip(orders, names, strict=True)
    }


def perplexity_from_sums(sum_negative_log_likelihood: float, num_tokens: float) -> float:
    """exp(Σ negative log likelihood / Σ token weights); infinity beyond what a float holds.

    Raises:
      DataError: no tokens, or a sum that is NaN.
    """
    if math.isnan(sum_negative_log_likelihood):
        raise DataError("perplexity: the summed negative log likelihood is NaN")
    if not num_tokens > 0:
        raise DataError(
            "perplexity is undefined: no target token has a positive weight; is the split empty?"
        )
    try:
        return math.exp(sum_negative_log_likelihood / num_tokens)
    except OverflowError:
        return math.inf
