"""Metrics of generated texts, as each field reports them.

Names: `bleu_n` and `rouge_n` (F) are percentages, all others shares or counts; `usr`, `fmr`, `fcr`
and `div` are PETER's. What is undefined for the texts at hand, such as distinct-4 of texts of three
words, is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import generation
from m6rec_jax.metrics.faithfulness import (
    ITEM,
    AttributeDictionary,
    Citations,
    ItemValues,
    Key,
    faithfulness,
    folded_values,
    true_citations,
)
from m6rec_jax.metrics.phrases import PhraseFinder, fold, phrase_key
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import WritingTemplate, attribute_values

Metrics = dict[str, float]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
    values, cased = _values(items, rendered_columns(template, items))
    names = {_liked_name(template, item) for item in items}
    return AttributeDictionary(values, cased=cased, neutral=names)


def citations_of(
    template: WritingTemplate, items: Sequence[Item], liked: Sequence[Sequence[int]]
) -> Citations | None:
    """What texts of a kind may cite; None where they name no liked items.

    `liked` has for each text the places of the items that its user liked before.
    """
    if not template.cited:
        return None
    names = [_liked_name(template, item) for item in items]
    values, cased = _values(items, template.cited)
    dictionary = AttributeDictionary({**values, ITEM: names}, cased=[*cased, ITEM])
    of_items = [folded_values(attribute_values(item, template.cited)) for item in items]
    by_name: list[dict[Key, list[ItemValues]]] = []
    for places in liked:
        by_name.append({})
        for place in places:
            by_name[-1].setdefault(phrase_key(names[place]), []).append(of_items[place])
    words = frozenset(map(fold, template.citing_words))
    return Citations(dictionary, by_name, words, template.cites_before_values)


def _liked_name(template: WritingTemplate, item: Item) -> str:
    """How texts name an item; "" for one that has no name, which no text can name."""
    try:
        return template.liked.render(item.attributes)
    except DataError:
        return ""


def _values(
    items: Sequence[Item], columns: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """All values of columns, and those columns whose values mostly have capitals."""
    values = {
        column: sorted({v for item in items for v in attribute_values(item, [column])[column]})
        for column in columns
    }
    return values, [c for c, of in values.items() if 2 * sum(v != v.lower() for v in of) > len(of)]


def rendered_columns(template: WritingTemplate, items: Sequence[Item]) -> list[str]:
    """Columns of the items whose values the texts name, shared ones first."""
    attributes = items[0].attributes if items else {}
    plain = [name for name in template.text.fields if name in attributes]
    return list(dict.fromkeys([*template.shared, *plain]))


def explanation_metrics(texts: GeneratedTexts) -> Metrics:
    """`bleu_1`, `bleu_4`, `rouge_1`, `rouge_2`, `usr`, and those of `feature_metrics`.

    With facts also `true_share` (of the attribute values named, how many hold for the item),
    `all_true_share` (of the texts that name any), `silent_share` (of all texts), and
    `true_citations` (of the items cited, how many the user liked before and have what they are
    cited for).
    """
    metrics = _likeness(texts, (1, 4))
    metrics["usr"] = generation.unique_sentence_ratio(texts.texts)
    metrics |= feature_metrics(texts.texts, texts.features, texts.all_features)
    if texts.facts is not None:
        metrics |= faithfulness(texts.texts, texts.facts.of_items, texts.facts.dictionary)
        if (citations := texts.facts.citations) is not None:
            share = true_citations(texts.texts, citations)
            metrics |= {} if share is None else {"true_citations": share}
    return metrics


def feature_metrics(
    texts: Sequence[str],
    features: Sequence[Sequence[str]],
    all_features: Callable[[], Iterable[str]],
) -> Metrics:
    """`fmr`, `fcr` and `div` of NETE (Li et al., 2020) and PETER; none without features.

    `fmr` is the share of the texts that contain their own feature, the first one of each record;
    `fcr` the share of all features that any text contains; `div` the mean number of features that
    two texts share, lower is more varied. A feature ("pool", "ending") is found as whole words, by
    `phrases.PhraseFinder`; spellings that fold to the same words are one.
    """
    wanted = [next(filter(None, map(phrase_key, of)), None) for of in features]
    if not any(wanted):
        return {}
    every = set(map(phrase_key, all_features())) - {()}
    finder, others = PhraseFinder(every), PhraseFinder(filter(None, wanted))
    named = [finder.all_in(text) for text in texts]
    matches = [key in others.all_in(text) for text, key in zip(texts, wanted, strict=True) if key]
    counts = Counter(feature for of_text in named for feature in of_text)
    metrics = {"fmr": sum(matches) / len(matches), "fcr": len(counts) / len(every)}
    if len(texts) > 1:  # one that c texts contain is shared by c(c-1)/2 pairs
        shared = sum(count * (count - 1) for count in counts.values())
        metrics["div"] = shared / (len(texts) * (len(texts) - 1))
    return metrics


def content_metrics(texts: GeneratedTexts) -> Metrics:
    """`bleu_1`, `bleu_2`, `bleu_4`, `rouge_1`, `rouge_2`, `distinct_1` to `distinct_4`, `novelty`.

    `novelty` is the share of the texts that no training text says; `exact_match` that of those that
    say what their reference says.
    """
    metrics = _likeness(texts, (1, 2, 4)) | _distinct(texts.texts, (1, 2, 3, 4))
    metrics["novelty"] = generation.novelty(texts.texts, texts.training())
    forms = (map(generation.normal_form, of) for of in (texts.texts, texts.references))
    same = [text == reference for text, reference in zip(*forms, strict=True)]
    return metrics | {"exact_match": sum(same) / len(same)}


def conversation_metrics(texts: GeneratedTexts) -> Metrics:
    """`bleu_2`, `distinct_3` and `distinct_4`."""
    metrics = {"bleu_2": generation.bleu(texts.texts, texts.references, 2)}
    return metrics | _distinct(texts.texts, (3, 4))


def _likeness(texts: GeneratedTexts, orders: Iterable[int]) -> Metrics:
    pair = texts.texts, texts.references
    metrics = {f"bleu_{n}": generation.bleu(*pair, n) for n in orders}
    return metrics | {f"rouge_{n}": score for n, score in generation.rouge(*pair).items()}


def _distinct(texts: Sequence[str], orders: Iterable[int]) -> Metrics:
    """Distinct-n of the corpus (Li et al., 2016). It falls as a corpus grows."""
    counts = {n: generation.distinct_ngrams(texts, n) for n in orders}
    return {f"distinct_{n}": distinct / total for n, (distinct, total) in counts.items() if total}
