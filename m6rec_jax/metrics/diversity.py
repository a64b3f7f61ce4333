"""How varied and how new generated texts are: distinct n-grams, novelty. No reference is needed.

Tokens are what stands between spaces, in its case. N-grams never reach across two texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.phrases import fold, ngrams, words


def _ngrams(texts: Sequence[str], n: int) -> tuple[int, int]:
    """Number of distinct n-grams of all texts, and of all n-grams."""
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)), len(found)


def corpus_distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n of a corpus (Li et al., 2016): distinct n-grams / all n-grams, 0 to 1.

    It falls as a corpus grows, so compare corpora of one size only. Raises DataError if none of the
    texts has n tokens.
    """
    distinct, total = _ngrams(texts, n)
    if not total:
        raise DataError(
            f"distinct-{n} is undefined: none of the {len(texts)} texts has {n} tokens in a row"
        )
    return distinct / total


def distinct_per_text(texts: Sequence[str], n: int) -> float:
    """Distinct-n as KGSF (Zhou et al., 2020) reports it: distinct n-grams / number of *texts*.

    The n-grams are those of the whole corpus, each counted once, so it has no upper bound of 1.
    M6-Rec sets its Dist-3 and Dist-4 beside KGSF's; whether it counted the same way is not known.
    """
    return _ngrams(texts, n)[0] / len(texts)


def normal_form(text: str) -> str:
    """Folded words with single spaces; of a text without any word, its folded signs."""
    return " ".join(words(text)) or " ".join(fold(text).split())


def novelty(generated: Sequence[str], training: Iterable[str]) -> float:
    """Share of the generated texts whose `normal_form` no training text has, 0 to 1.

    Repeated texts count each time. `training` may be a stream: only forms of generated texts are
    held.
    """
    forms = list(map(normal_form, generated))
    wanted = set(forms)
    known = {form for form in map(normal_form, training) if form in wanted}
    return sum(form not in known for form in forms) / len(forms)
