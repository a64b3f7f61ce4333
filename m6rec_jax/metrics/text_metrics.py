"""Metrics of generated texts, as each field reports them.

Names: `bleu_n` and `rouge_n` (F) are percentages, all others shares or counts; `usr`, `fmr`, `fcr`
and `div` are PETER's, `peter/...` metrics in its protocol, `kgsf_...` those of KGSF (see
`metrics`). What is undefined for the texts at hand, such as distinct-4 of texts of three words, is
left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import gin

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import diversity, explanation, generation
from m6rec_jax.metrics.citations import (
    ITEM,
    Citations,
    ItemValues,
    folded_values,
    true_citations,
)
from m6rec_jax.metrics.faithfulness import AttributeDictionary, Key, faithfulness
from m6rec_jax.metrics.phrases import fold, phrase_key
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import WritingTemplate, attribute_values

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class GeneratedTexts:
    """Generated texts, and what they are compared with.

    Attributes:
      texts, references: without their prefixes.
      features: of each reference, what it speaks of; may be empty.
      all_features: of the whole data set, training included.
      training: the texts that were trained on; called when they are needed.
      facts: what holds of the items that the texts are about; None where nothing is known of them.
    """

    texts: Sequence[str]
    references: Sequence[str]
    features: Sequence[Sequence[str]]
    all_features: Callable[[], Iterable[str]]
    training: Callable[[], Iterable[str]]
    facts: ItemFacts | None = None


@dataclasses.dataclass(frozen=True)
class ItemFacts:
    """Attribute values by which explanations are checked.

    Attributes:
      dictionary: of the whole catalogue.
      of_items: for each text, attribute to the values of its item.
      citations: what texts may cite; None where they name no liked items.
    """

    dictionary: AttributeDictionary
    of_items: Sequence[Mapping[str, Sequence[str]]]
    citations: Citations | None


def attribute_dictionary(template: WritingTemplate, items: Sequence[Item]) -> AttributeDictionary:
    """All values of the columns that a kind of text may name; liked items' names are neutral.

    Columns whose values are mostly written with capitals (names) must be found with them.

    Raises:
      DataError: the catalogue has no value in any of these columns.
    """
    values = _values(items, rendered_columns(template, items))
    names = {_liked_name(template, item) for item in items}
    return AttributeDictionary(values, cased=_cased(values), neutral=names)


def citations_of(
    template: WritingTemplate, items: Sequence[Item], liked: Sequence[Sequence[int]]
) -> Citations | None:
    """What texts of a kind may cite; None where they name no liked items.

    Args:
      template, items: as for `attribute_dictionary`.
      liked: for each text, places of the items that its user liked before.
    """
    if not template.cited:
        return None
    names = [_liked_name(template, item) for item in items]
    values = _values(items, template.cited)
    dictionary = AttributeDictionary({**values, ITEM: names}, cased=[*_cased(values), ITEM])
    of_items = [folded_values(attribute_values(item, template.cited)) for item in items]
    by_name: list[dict[Key, list[ItemValues]]] = []
    for places in liked:
        own: dict[Key, list[ItemValues]] = {}
        for place in places:
            own.setdefault(phrase_key(names[place]), []).append(of_items[place])
        by_name.append(own)
    words = frozenset(map(fold, template.citing_words))
    return Citations(dictionary, by_name, words, template.cites_before_values)


def _liked_name(template: WritingTemplate, item: Item) -> str:
    """How texts name an item; "" for one that has no name, which no text can name."""
    try:
        return template.liked.render(item.attributes)
    except DataError:
        return ""


def _values(items: Sequence[Item], columns: Sequence[str]) -> dict[str, list[str]]:
    """All values of columns."""
    return {
        column: sorted({v for item in items for v in attribute_values(item, [column])[column]})
        for column in columns
    }


def _cased(values: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns whose values are mostly written with capitals."""
    return [
        column
        for column, known in values.items()
        if 2 * sum(value != value.lower() for value in known) > len(known)
    ]


def rendered_columns(template: WritingTemplate, items: Sequence[Item]) -> list[str]:
    """Columns of the items whose values the texts name, shared ones first."""
    known = items[0].attributes if items else {}
    plain = [name for name in template.text.fields if name in known]
    return list(dict.fromkeys([*template.shared, *plain]))


@gin.configurable(allowlist=["peter_words"])
def explanation_metrics(found: GeneratedTexts, peter_words: int | None = None) -> Metrics:
    """`bleu_1`, `bleu_4`, `rouge_1`, `rouge_2`, `usr`; with features `fmr`, `fcr`, `div`.

    `fmr` looks for the first feature of each record. With facts also `true_share` (of the attribute
    values named, how many hold for the item), `all_true_share` (of the texts that name any),
    `silent_share` (of all texts), and `true_citations` (of the items cited, how many the user liked
    before and have what they are cited for).

    Args:
      found: the texts.
      peter_words: size of PETER's vocabulary, 20,000 there; given, `peter/bleu_1` and the like are
        metrics in its protocol (`metrics.explanation`), its words counted in the training texts
        and the references.
    """
    texts = found.texts
    metrics = _likeness(texts, found.references, (1, 4))
    metrics["usr"] = explanation.unique_sentence_ratio(texts)
    pairs = [
        (text, own[0])
        for text, own in zip(texts, map(_findable, found.features), strict=True)
        if own
    ]
    if pairs:
        every = sorted(set(_findable(found.all_features())))
        metrics["fmr"] = explanation.feature_matching_ratio(*map(list, zip(*pairs, strict=True)))
        metrics["fcr"] = explanation.feature_coverage_ratio(texts, every)
        if len(texts) > 1:
            sets = explanation.feature_sets(texts, every)
            metrics["div"] = explanation.feature_diversity(sets)
    if peter_words is not None:
        known = explanation.frequent_words([*found.training(), *found.references], peter_words)
        of_peter = explanation.peter_metrics(texts, found.references, known)
        metrics |= {f"peter/{name}": value for name, value in of_peter.items()}
    if found.facts is not None:
        metrics |= faithfulness(texts, found.facts.of_items, found.facts.dictionary)
        if (citations := found.facts.citations) is not None:
            share = true_citations(texts, citations)
            if share is not None:
                metrics["true_citations"] = share
    return metrics


def content_metrics(found: GeneratedTexts) -> Metrics:
    """`bleu_1`, `bleu_2`, `bleu_4`, `rouge_1`, `rouge_2`, `distinct_1` to `distinct_4`, `novelty`.

    `novelty` is the share of the texts that no training text says; `exact_match` that of those that
    say what their reference says.
    """
    texts, references = found.texts, found.references
    metrics = _likeness(texts, references, (1, 2, 4))
    metrics |= _distinct(texts, (1, 2, 3, 4))
    metrics["novelty"] = diversity.novelty(texts, found.training())
    same = map(_say_the_same, texts, references)
    metrics["exact_match"] = sum(same) / len(texts)
    return metrics


def conversation_metrics(found: GeneratedTexts) -> Metrics:
    """`bleu_2`, `kgsf_bleu_2`, `distinct_3`, `distinct_4`, `kgsf_distinct_3`, `kgsf_distinct_4`."""
    texts = found.texts
    metrics = {"bleu_2": generation.bleu(texts, found.references, 2)}
    metrics["kgsf_bleu_2"] = generation.bigram_precision_bleu(texts, found.references)
    metrics |= _distinct(texts, (3, 4))
    for n in (3, 4):
        metrics[f"kgsf_distinct_{n}"] = diversity.distinct_per_text(texts, n)
    return metrics


def _likeness(texts: Sequence[str], references: Sequence[str], orders: Iterable[int]) -> Metrics:
    metrics = {f"bleu_{n}": generation.bleu(texts, references, n) for n in orders}
    scores = generation.rouge(texts, references, (1, 2))
    return metrics | {f"rouge_{n}": score for n, score in scores.items()}


def _distinct(texts: Sequence[str], orders: Iterable[int]) -> Metrics:
    longest = max(len(text.split()) for text in texts)
    return {f"distinct_{n}": diversity.corpus_distinct(texts, n) for n in orders if n <= longest}


def _findable(features: Iterable[str]) -> list[str]:
    """Features that have a word; one of nothing but signs can be in no text."""
    return [feature for feature in features if phrase_key(feature)]


def _say_the_same(text: str, reference: str) -> bool:
    return diversity.normal_form(text) == diversity.normal_form(reference)
