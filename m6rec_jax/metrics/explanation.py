"""Metrics of explanations as PETER (Li et al., 2021) reports them: USR, FMR, FCR, DIV, likeness.

A *feature* is what a record's user wrote about ("pool", "ending"); each record has one. The
definitions are those of NETE (Li et al., 2020) and PETER, which compare words between spaces of
tokenised text. Here features are found as whole words by `phrases.PhraseFinder`: case, hyphens and
punctuation are no obstacle, and a feature may have several words. On PETER's lower-case tokenised
text the two agree wherever no hyphen or apostrophe stands inside a word.

PETER cuts texts after 15 words and writes all but the most frequent words as `<unk>`. M6-Rec
compares itself with such values (paper, section 4), so `peter_metrics` first gives texts that form.
USR, FMR, FCR and DIV are shares or counts, not percentages, of one text or more (DIV of two). Each
feature has a word (`phrases.phrase_key`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Literal

from m6rec_jax.metrics.generation import bleu
from m6rec_jax.metrics.phrases import PhraseFinder, ngrams, phrase_key

Feature = tuple[str, ...]

# What PETER writes for a rare word, and how many words of a text it takes.
UNKNOWN, MAX_WORDS = "<unk>", 15


def feature_sets(explanations: Sequence[str], features: Iterable[str]) -> list[frozenset[Feature]]:
    """The features that each explanation contains, as `phrase_key`; one in a longer one counts."""
    finder = PhraseFinder(map(phrase_key, features))
    return [finder.all_in(text) for text in explanations]


def unique_sentence_ratio(explanations: Sequence[str]) -> float:
    """USR: distinct explanations / explanations.

    Two are the same when all their words between spaces are, in their case, as in PETER.
    """
    return len({tuple(text.split()) for text in explanations}) / len(explanations)


def feature_matching_ratio(explanations: Sequence[str], features: Sequence[str]) -> float:
    """FMR: share of explanations that contain the feature of their own record.

    A model that is given the feature (PETER+, M6-Rec) starts far ahead of one that is not.
    """
    matched = 0
    # One finder for each distinct feature: records share them.
    finders: dict[str, PhraseFinder] = {}
    for text, feature in zip(explanations, features, strict=True):
        if feature not in finders:
            finders[feature] = PhraseFinder([phrase_key(feature)])
        matched += bool(finders[feature].all_in(text))
    return matched / len(explanations)


def feature_coverage_ratio(explanations: Sequence[str], features: Collection[str]) -> float:
    """FCR: share of all features that any explanation contains.

    `features` are those of the whole data set, training included, as in PETER. Spellings that fold
    to the same words are one feature.
    """
    found: set[Feature] = set()
    for named in feature_sets(explanations, features):
        found |= named
    return len(found) / len({phrase_key(feature) for feature in features})


def feature_diversity(sets: Sequence[Set[object]]) -> float:
    """DIV: mean number of features that two explanations share; lower is more varied.

    A feature that c explanations contain is shared by c(c-1)/2 pairs, so one count of the features
    does what PETER's code does pair by pair. `sets` are of `feature_sets`, at least two.
    """
    counts = Counter(feature for named in sets for feature in named)
    shared = sum(count * (count - 1) // 2 for count in counts.values())
    return shared / (len(sets) * (len(sets) - 1) // 2)


def frequent_words(texts: Iterable[str], number: int) -> frozenset[str]:
    """The most frequent words between spaces; of equally frequent ones those that come first.

    PETER takes 20,000 words of the explanations of all parts.
    """
    counts = Counter(word for text in texts for word in text.split())
    return frozenset(word for word, _ in counts.most_common(number))


def peter_form(text: str, known: Set[str], max_words: int = MAX_WORDS) -> str:
    """The first words of a text with single spaces; one that is not known is `<unk>`."""
    return " ".join(word if word in known else UNKNOWN for word in text.split()[:max_words])


def peter_rouge(
    generated: Sequence[str], references: Sequence[str], order: Literal[1, 2] = 1
) -> float:
    """Mean F of ROUGE-n over *sets* of n-grams, a percentage: one said twice counts once.

    Texts and references are in `peter_form`.
    """
    total = 0.0
    for text, reference in zip(generated, references, strict=True):
        got, wanted = set(ngrams(text, order)), set(ngrams(reference, order))
        if both := len(got & wanted):
            total += 2 * both / (len(got) + len(wanted))
    return 100.0 * total / len(generated)


def peter_metrics(
    generated: Sequence[str], references: Sequence[str], known: Set[str]
) -> Mapping[str, float]:
    """`bleu_1`, `bleu_4`, `rouge_1`, `rouge_2` (percentages) and `usr` of texts in `peter_form`.

    Args:
      generated, references: plain texts, one reference for each.
      known: words of PETER's vocabulary, `frequent_words`.

    Raises:
      ConfigError: sacrebleu is not installed.
    """
    ours, theirs = ([peter_form(text, known) for text in of] for of in (generated, references))
    values = {f"bleu_{n}": bleu(ours, theirs, n, tokens="none") for n in (1, 4)}
    values |= {"rouge_1": peter_rouge(ours, theirs, 1), "rouge_2": peter_rouge(ours, theirs, 2)}
    return values | {"usr": unique_sentence_ratio(ours)}
