"""How varied and how new generated texts are: distinct n-grams, novelty. No reference is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.checked_texts import checked
from m6rec_jax.metrics.phrases import fold, words

Tokenise = Callable[[str], Sequence[str]]


def _ngrams(texts: Sequence[str], n: int, tokenise: Tokenise) -> tuple[int, int]:
    """Number of distinct n-grams of all texts, and of all of them."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        tokens = tokenise(text)
        # N-grams never reach across two texts.
        for start in range(len(tokens) - n + 1):
            seen.add(tuple(tokens[start : start + n]))
            total += 1
    return len(seen), total


def corpus_distinct(texts: Sequence[str], n: int, tokenise: Tokenise = str.split) -> float:
    """Distinct-n of a corpus (Li et al., 2016): distinct n-grams / all n-grams, 0 to 1.

    It falls as a corpus grows, so compare corpora of one size only.

    Args:
      texts: the generated texts.
      n: how many tokens in a row.
      tokenise: how a text becomes tokens; by default what stands between spaces, in its case.

    Raises:
      DataError: no texts, or none that has n tokens.
      ValueError: `n` below 1.
    """
    distinct, total = _ngrams(checked(texts, f"distinct-{n}"), n, tokenise)
    if not total:
        raise DataError(
            f"distinct-{n} is undefined: none of the {len(texts)} texts has {n} tokens in a row"
        )
    return distinct / total


def distinct_per_text(texts: Sequence[str], n: int, tokenise: Tokenise = str.split) -> float:
    """Distinct-n as KGSF (Zhou et al., 2020) reports it: distinct n-grams / number of *texts*.

    The n-grams are those of the whole corpus, each counted once however many texts have it; the
    figure has no upper bound of 1. (It is not the mean of each text's own distinct share.) M6-Rec
    sets its Dist-3 and Dist-4 beside KGSF's; whether it counted them the same way is not known.

    Arguments and errors as `corpus_distinct`; texts shorter than n tokens simply add nothing.
    """
    return _ngrams(checked(texts, f"distinct-{n}"), n, tokenise)[0] / len(texts)


def normal_form(text: str) -> str:
    """What two texts share that say the same: folded words, single spaces, no signs.

    A text without any word (only punctuation, only emoji) keeps its signs, folded, so that two of
    them are the same only when their signs are.
    """
    return " ".join(words(text)) or " ".join(fold(text).split())


def novelty(generated: Sequence[str], training: Iterable[str]) -> float:
    """Share of the generated texts whose `normal_form` no training text has, 0 to 1.

    1 minus the share that is learnt by heart, as a whole; texts that only borrow long stretches
    count as new. Every generated text counts, repeated ones each time; an empty one is new only if
    no training text is empty.

    Args:
      generated: the texts.
      training: the texts that were trained on, may be a stream: only forms of generated texts are
        held.

    Raises:
      DataError: no generated texts.
    """
    forms = [normal_form(text) for text in checked(generated, "novelty", "generated texts")]
    wanted = set(forms)
    known = {form for form in map(normal_form, training) if form in wanted}
    return sum(form not in known for form in forms) / len(forms)
