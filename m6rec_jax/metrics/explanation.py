"""Explanations: are they varied, do they speak of the right feature (USR, FMR, FCR, DIV of PETER).

A *feature* is what a record's user wrote about ("pool", "ending"); each record has one. The
definitions are those of NETE (Li et al., 2020) and PETER (Li et al., 2021), which compare words
between spaces of text that is tokenised already. Here features are found as whole words by
`phrases.PhraseFinder`: case, hyphens and punctuation are no obstacle ("Pool." has "pool", "wi-fi"
has the feature "wi") and a feature may be of several words. On the lower-case tokenised text of
PETER's data the two agree wherever no hyphen or apostrophe stands inside a word. PETER also cuts
texts after 15 words and writes rare words, and so rare features, as one and the same `<unk>`.

All four are shares or counts as PETER reports them, not percentages. Whether what an explanation
names is true of its item is `faithfulness`' business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Set

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.checked_texts import checked, same_length
from m6rec_jax.metrics.phrases import PhraseFinder, phrase_key

Feature = tuple[str, ...]


def feature_key(feature: str, metric: str = "features") -> Feature:
    """The feature's folded words, as `feature_sets` gives them.

    Raises:
      DataError: the feature has no word that could be found.
    """
    if not isinstance(feature, str):
        raise DataError(f"{metric}: a feature must be a text, got a {type(feature).__name__}")
    key = phrase_key(feature)
    if not key:
        raise DataError(f"{metric}: the feature {feature!r} has no word that could be found")
    return key


def feature_sets(explanations: Sequence[str], features: Iterable[str]) -> list[frozenset[Feature]]:
    """The features that each explanation contains; one inside a longer one counts too.

    Args:
      explanations: the generated texts; empty ones are allowed.
      features: all features that are looked for.

    Raises:
      DataError: no texts, or a feature without a word.
    """
    checked(explanations, "features", "explanations")
    wanted = {feature_key(feature): feature for feature in features}
    finder = PhraseFinder(wanted.values())
    return [finder.all_in(text) for text in explanations]


def unique_sentence_ratio(explanations: Sequence[str]) -> float:
    """USR: distinct explanations / explanations.

    |E| / N. Two are the same when all their words between spaces are, in their case, as in PETER.

    Raises:
      DataError: no texts.
    """
    checked(explanations, "USR", "explanations")
    return len({tuple(text.split()) for text in explanations}) / len(explanations)


def feature_matching_ratio(explanations: Sequence[str], features: Sequence[str]) -> float:
    """FMR: share of explanations that contain the feature of their own record.

    1/N × Σ δ(f_ui ∈ Ê_ui). A model that is handed the feature (PETER+, M6-Rec) starts far ahead of
    one that is not: compare like with like.

    Args:
      explanations: the generated texts.
      features: the feature of each record.

    Raises:
      DataError: no texts, numbers that differ, or a feature without a word.
    """
    checked(explanations, "FMR", "explanations")
    same_length(explanations, features, "FMR", "features")
    matched = 0
    # One finder for each distinct feature: records share them.
    finders: dict[str, PhraseFinder] = {}
    for text, feature in zip(explanations, features, strict=True):
        if feature not in finders:
            feature_key(feature, "FMR")
            finders[feature] = PhraseFinder([feature])
        matched += bool(finders[feature].all_in(text))
    return matched / len(explanations)


def feature_coverage_ratio(explanations: Sequence[str], features: Collection[str]) -> float:
    """FCR: share of all features that any explanation contains, N_g / |F|.

    Args:
      explanations: the generated texts.
      features: all features: PETER takes those of the whole data set, training included. Spellings
        that fold to the same words are one feature.

    Raises:
      DataError: no texts, no features, or a feature without a word.
    """
    if not features:
        raise DataError("FCR: there are no features")
    found: set[Feature] = set()
    for named in feature_sets(explanations, features):
        found |= named
    return len(found) / len({feature_key(feature) for feature in features})


def feature_diversity(sets: Sequence[Set[object]]) -> float:
    """DIV: mean number of features that two explanations share; lower is more varied.

    2 / (N(N-1)) × Σ over pairs of |F̂ ∩ F̂'|. A feature that c explanations name is shared by
    c(c-1)/2 pairs, so one count of the features does what PETER's code does pair by pair.

    Args:
      sets: the features of each explanation (`feature_sets`, with the features of the whole data
        set).

    Raises:
      DataError: fewer than two explanations.
    """
    if len(sets) < 2:
        raise DataError(f"DIV compares pairs of explanations, but there are {len(sets)}")
    counts = Counter(feature for named in sets for feature in named)
    shared = sum(count * (count - 1) // 2 for count in counts.values())
    return shared / (len(sets) * (len(sets) - 1) // 2)
