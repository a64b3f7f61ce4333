"""Generated texts against references, and how varied and new they are.

BLEU and ROUGE are percentages and come from sacrebleu and rouge-score, the extra `text-metrics`;
all others are shares. There is at least one text, and one reference for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.metrics.phrases import fold, ngrams, words


def require_text_metrics() -> None:
    """Raises ConfigError where a library of the extra `text-metrics` is not installed."""
    try:
        import rouge_score.rouge_scorer  # noqa: F401
        import sacrebleu.metrics.bleu  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"BLEU and ROUGE need {error.name}, which is not installed: "
            "pip install 'm6rec_jax[text-metrics]'"
        ) from error


def bleu(
    generated: Sequence[str],
    references: Sequence[str],
    max_order: int = 4,
    *,
    tokens: Literal["13a", "none"] = "13a",
) -> float:
    """Corpus BLEU-N with one reference per text (Papineni et al., 2002), not smoothed.

    Tokens are '13a' (mteval's rules, which part punctuation from words) or 'none' (what stands
    between spaces). Raises ConfigError where sacrebleu is not installed.
    """
    require_text_metrics()
    from sacrebleu.metrics.bleu import BLEU

    # force: no warning about text that looks tokenised; with 'none' it should be.
    metric = BLEU(force=True, tokenize=tokens, smooth_method="none", max_ngram_order=max_order)
    return float(metric.corpus_score(list(generated), [list(references)]).score)


class _UnicodeTokens:
    """What rouge-score takes for a tokenizer."""

    tokenize = staticmethod(words)


def rouge(
    generated: Sequence[str], references: Sequence[str], orders: Sequence[int] = (1, 2)
) -> dict[int, float]:
    """ROUGE-n (Lin, 2004): n → mean F over the texts, 0 to 100.

    Words are those of any script (`phrases.words`). Raises ConfigError where rouge-score is not
    installed.
    """
    require_text_metrics()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([f"rouge{n}" for n in orders], tokenizer=_UnicodeTokens())
    pairs = zip(references, generated, strict=True)
    scores = [scorer.score(reference, text) for reference, text in pairs]
    return {n: 100 * sum(s[f"rouge{n}"].fmeasure for s in scores) / len(scores) for n in orders}


def unique_sentence_ratio(texts: Sequence[str]) -> float:
    """USR of PETER (Li et al., 2021): distinct texts / texts, by their words, in their case."""
    return len({tuple(text.split()) for text in texts}) / len(texts)


def distinct_ngrams(texts: Sequence[str], n: int) -> tuple[int, int]:
    """Number of distinct n-grams between spaces of all texts, none across two texts, and of all."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)), len(grams)


def normal_form(text: str) -> str:
    """Folded words with single spaces; of a text without any word, its folded signs."""
    return " ".join(words(text)) or " ".join(fold(text).split())


def novelty(generated: Sequence[str], training: Iterable[str]) -> float:
    """Share of the generated texts whose `normal_form` no training text has, 0 to 1.

    Repeated texts count each time. `training` may be a stream.
    """
    forms = list(map(normal_form, generated))
    wanted = set(forms)
    trained = {form for form in map(normal_form, training) if form in wanted}
    return sum(form not in trained for form in forms) / len(forms)


def perplexity_from_sums(sum_negative_log_likelihood: float, num_tokens: float) -> float:
    """exp(Σ negative log likelihood / Σ token weights); infinity beyond what a float holds.

    Raises:
      DataError: no tokens, or a sum that is NaN.
    """
    if math.isnan(sum_negative_log_likelihood) or not num_tokens > 0:
        raise DataError(
            f"perplexity is undefined: a negative log likelihood of {sum_negative_log_likelihood} "
            f"over a weight of {num_tokens} target tokens; is the split empty?"
        )
    try:
        return math.exp(sum_negative_log_likelihood / num_tokens)
    except OverflowError:
        return math.inf
