"""Is what explanations say true: attribute values and liked items found in texts and looked up.

A dictionary holds the attribute values of the whole catalogue (directors, cast, genres). Every
value that an explanation names is compared with the item's own. A text that names nothing cannot be
untrue and proves nothing: such texts are counted apart. "By A, like B" also says that the user
liked B, which is by A, too: an item is cited for the values that stand before it, as far back as
the item that was cited before.

Values are found from left to right:

- Whole words only, and the longest match first: "New York" does not also name "York". Words that
  one match has taken no other can have.
- Case does not count, unless the attribute is in `cased`: then the words need the capitals of the
  catalogue, so that "will" is not the actor "Will".
- One phrase may be a value of several attributes (a director who also acts). It is true when it
  holds for any of them.
- `neutral` phrases (film titles) take their words and count for nothing: "American Beauty" as a
  film of the user's past says nothing of a country. Where a neutral phrase and a value are the same
  words, the value counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.phrases import PhraseFinder, fold, phrase_key, pieces

# A phrase as its folded words; an item's attributes with such values.
Key = tuple[str, ...]
ItemValues = Mapping[str, frozenset[Key]]

# Beside attributes, what names of items are found as; no attribute is called so.
ITEM = ""


class Mention(NamedTuple):
    """An attribute value in a text: attribute -> its spelling in the catalogue, for every attribute
    that has it, and the folded word or sign before it.
    """

    key: Key
    values: Mapping[str, str]
    before: str


class AttributeDictionary:
    """The attribute values of a catalogue, made to be found in text.

    Args:
      values: attribute -> all its values over the catalogue. Values without a word are left out.
      cased: attributes whose values must stand in the text with their own capitals.
      neutral: phrases that take their words from the text and count for nothing.

    Raises:
      DataError: no value at all.
    """

    def __init__(
        self,
        values: Mapping[str, Iterable[str]],
        *,
        cased: Collection[str] = (),
        neutral: Iterable[str] = (),
    ):
        self._cased = frozenset(cased)
        # Folded words -> attribute -> spellings (words in their case -> the catalogue's value).
        self._spellings: dict[Key, dict[str, dict[Key, str]]] = {}
        for attribute, names in values.items():
            for name in names:
                if key := phrase_key(name):
                    spellings = self._spellings.setdefault(key, {}).setdefault(attribute, {})
                    spellings.setdefault(tuple(pieces(name)), name)
        if not self._spellings:
            raise DataError("faithfulness: the dictionary of attribute values is empty")
        self._neutral = set(map(phrase_key, neutral)) - {()}
        self._finder = PhraseFinder([*self._spellings, *self._neutral])

    def mentions(self, text: str) -> list[Mention]:
        """The values that a text names, in the order of the text; one named twice comes twice."""
        surface = pieces(text)
        folded = list(map(fold, surface))
        mentions, start = [], 0
        while start < len(folded):
            for key in self._finder.at(folded, start):
                values = self._values(key, tuple(surface[start : start + len(key)]))
                if values:
                    mentions.append(Mention(key, values, folded[start - 1] if start else ""))
                if values or key in self._neutral:
                    start += len(key)
                    break
            else:
                start += 1
        return mentions

    def _values(self, key: Key, surface: Key) -> dict[str, str]:
        return {
            attribute: spellings.get(surface, next(iter(spellings.values())))
            for attribute, spellings in self._spellings.get(key, {}).items()
            if surface in spellings or attribute not in self._cased
        }


def folded_values(values: Mapping[str, Iterable[str]]) -> dict[str, frozenset[Key]]:
    """An item's values, to be compared with those of texts."""
    return {attribute: frozenset(map(phrase_key, of)) for attribute, of in values.items()}


def _holds(mention: Mention, item: ItemValues) -> bool:
    return any(mention.key in item.get(attribute, ()) for attribute in mention.values)


def faithfulness(
    explanations: Sequence[str],
    item_values: Sequence[Mapping[str, Iterable[str]]],
    dictionary: AttributeDictionary,
) -> dict[str, float]:
    """Compares what explanations name with their items.

    Args:
      explanations: the generated texts, one or more; empty ones are allowed.
      item_values: for each, attribute -> the values of its item.
      dictionary: the values of the whole catalogue.

    Returns:
      `silent_share`, how many of the explanations name nothing; of the others, if there are any,
      `all_true_share`, in how many all holds that they name, and `true_share`, how many of the
      values that they name hold. A value that one explanation repeats counts once for it.
    """
    truths: list[list[bool]] = []
    for text, values in zip(explanations, item_values, strict=True):
        item, holds = folded_values(values), dict[Key, bool]()
        for mention in dictionary.mentions(text):
            holds[mention.key] = holds.get(mention.key, False) or _holds(mention, item)
        if holds:
            truths.append(list(holds.values()))
    shares = {"silent_share": 1 - len(truths) / len(explanations)}
    if truths:
        shares["true_share"] = sum(map(sum, truths)) / sum(map(len, truths))
        shares["all_true_share"] = sum(map(all, truths)) / len(truths)
    return shares


@dataclass(frozen=True)
class Citations:
    """What texts may cite.

    Attributes:
      dictionary: of the whole catalogue, values of the columns that items are cited for, and under
        `ITEM` their names.
      liked: for each text, folded names of the items that its user liked before, with the values of
        those that are called so.
      words: folded, that stand right before an item.
      name_first: an item stands before the values that it is cited for.
    """

    dictionary: AttributeDictionary
    liked: Sequence[Mapping[Key, Sequence[ItemValues]]]
    words: frozenset[str]
    name_first: bool


def true_citations(explanations: Sequence[str], citations: Citations) -> float | None:
    """Share of the items cited that the user liked and that have all they are cited for.

    A phrase that is both a value and an item is one after a word that items are cited with
    ("like"). None where no text cites an item.
    """
    truths: list[bool] = []
    for text, liked in zip(explanations, citations.liked, strict=True):
        mentions = citations.dictionary.mentions(text)
        claims: list[Mention] = []
        for mention in reversed(mentions) if citations.name_first else mentions:
            is_value = len(mention.values) > 1 and mention.before not in citations.words
            if ITEM not in mention.values or is_value:
                claims.append(mention)
                continue
            items = liked.get(mention.key, ())
            truths.append(any(all(_holds(claim, item) for claim in claims) for item in items))
            claims = []
    return sum(truths) / len(truths) if truths else None
