"""Is what explanations cite true: "By A, like B" says that the user liked B, which is by A, too.

Values and items are found in a text as in `faithfulness`: an item is cited for the values that
stand before it, as far back as the item that was cited before. A phrase that is both a value and an
item is one after a word that items are cited with ("like"). As there, a value that several columns
have is true where it holds for any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m6rec_jax.metrics.faithfulness import AttributeDictionary, Key, Mention
from m6rec_jax.metrics.phrases import phrase_key

# Beside columns, what names of items are found as; no column is called so.
ITEM = ""

# An item's values: column to their folded words.
ItemValues = Mapping[str, frozenset[Key]]


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

    Args:
      explanations: the texts.
      citations: with one entry of `liked` for each.

    Returns:
      None where no text cites an item.
    """
    told: list[bool] = []
    for text, liked in zip(explanations, citations.liked, strict=True):
        mentions = citations.dictionary.mentions(text)
        claimed: list[Mention] = []
        for mention in reversed(mentions) if citations.name_first else mentions:
            is_value = len(mention.values) > 1 and mention.before not in citations.words
            if ITEM not in mention.values or is_value:
                claimed.append(mention)
                continue
            told.append(any(_has(own, claimed) for own in liked.get(mention.key, ())))
            claimed = []
    return sum(told) / len(told) if told else None


def folded_values(values: Mapping[str, Sequence[str]]) -> dict[str, frozenset[Key]]:
    """An item's values by column, as `Citations.liked` has them."""
    return {column: frozenset(map(phrase_key, own)) for column, own in values.items()}


def _has(own: ItemValues, claimed: Sequence[Mention]) -> bool:
    return all(
        any(mention.key in own.get(column, ()) for column in mention.values) for mention in claimed
    )
