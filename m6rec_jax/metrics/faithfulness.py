"""Is what explanations name true of their items: attribute values found in text and looked up.

A dictionary holds the attribute values of the whole catalogue (directors, cast, genres). Every
value that an explanation names is compared with the item's own. A text that names nothing cannot be
untrue and proves nothing: such texts are counted apart.

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
from dataclasses import dataclass, field

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.phrases import PhraseFinder, fold, phrase_key, pieces

Key = tuple[str, ...]


@dataclass(frozen=True)
class Mention:
    """A phrase of a text that is an attribute value: its folded words, and attribute -> the value
    as the catalogue spells it, for every attribute that has it; `before` is the folded word or sign
    before it.
    """

    key: Key
    values: Mapping[str, str] = field(hash=False)
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
        self.attributes = tuple(values)
        self._cased = frozenset(cased)
        # Folded words -> attribute -> spellings (words in their case -> the catalogue's value).
        self._spellings: dict[Key, dict[str, dict[Key, str]]] = {}
        for attribute, names in values.items():
            for name in names:
                key = phrase_key(name)
                if key:
                    spellings = self._spellings.setdefault(key, {}).setdefault(attribute, {})
                    spellings.setdefault(tuple(pieces(name)), name)
        if not self._spellings:
            raise DataError("faithfulness: the dictionary of attribute values is empty")
        self._neutral = {key for key in map(phrase_key, neutral) if key}
        phrases = [*self._spellings, *self._neutral]
        self._finder = PhraseFinder(phrases)

    def mentions(self, text: str) -> list[Mention]:
        """The values that a text names, in the order of the text; one named twice comes twice."""
        surface = pieces(text)
        folded = [fold(piece) for piece in surface]
        found = []
        start = 0
        while start < len(folded):
            step = 1
            for key in self._finder.at(folded, start):
                values = self._at(key, tuple(surface[start : start + len(key)]))
                if values or key in self._neutral:
                    if values:
                        before = folded[start - 1] if start else ""
                        found.append(Mention(key, values, before))
                    step = len(key)
                    break
            start += step
        return found

    def _at(self, key: Key, surface: Key) -> dict[str, str]:
        values = {}
        for attribute, spellings in self._spellings.get(key, {}).items():
            if surface in spellings:
                values[attribute] = spellings[surface]
            elif attribute not in self._cased:
                values[attribute] = next(iter(spellings.values()))
        return values


def faithfulness(
    explanations: Sequence[str],
    item_values: Sequence[Mapping[str, Iterable[str]]],
    dictionary: AttributeDictionary,
) -> dict[str, float]:
    """Compares what explanations name with their items.

    Args:
      explanations: the generated texts, one or more; empty ones are allowed.
      item_values: for each, attribute -> the values of its item. Attributes that the dictionary
        does not know are left out.
      dictionary: the values of the whole catalogue.

    Returns:
      `silent_share`, how many of the explanations name nothing; of the others, if there are any,
      `all_true_share`, in how many all holds that they name, and `true_share`, how many of the
      values that they name hold. A value that one explanation repeats counts once for it.
    """
    silent = all_true = named = true = 0
    for text, item in zip(explanations, item_values, strict=True):
        # By folded words, so that a repeated value is one.
        mentions: dict[Key, dict[str, str]] = {}
        for mention in dictionary.mentions(text):
            mentions.setdefault(mention.key, {}).update(mention.values)
        if not mentions:
            silent += 1
            continue
        own = {
            attribute: {phrase_key(value) for value in item[attribute]}
            for attribute in dictionary.attributes
            if attribute in item
        }
        holding = sum(
            any(key in own.get(attribute, ()) for attribute in values)
            for key, values in mentions.items()
        )
        named += len(mentions)
        true += holding
        all_true += holding == len(mentions)
    shares = {"silent_share": silent / len(explanations)}
    if named:
        shares["true_share"] = true / named
        shares["all_true_share"] = all_true / (len(explanations) - silent)
    return shares
