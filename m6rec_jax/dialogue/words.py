"""How people speak of a catalogue's items: settings of a dialogue, in gin.

    DialogueWords.item = 'film'
    DialogueWords.items = 'films'
    DialogueWords.attributes = {
        'genres': {'says': '{value} {item}', 'asked': ('what genre', 'what kind')},
        'director': {'says': '{item} by {value}', 'cues': ('by', 'directed by'), 'names': True},
    }

Nothing here is about one catalogue: columns, their words and groups of values are all named by the
settings. `gin_configs/dialogue/films.gin` has those of films.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, get_type_hints

import gin
import msgspec

from m6rec_jax.errors import ConfigError
from m6rec_jax.gin_statements import statements_of
from m6rec_jax.text.format_strings import Template

FILMS = "gin_configs/dialogue/films.gin"


class AttributeWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a column's values are spoken of.

    Attributes:
      says: an item with a value: '{item} by {value}'.
      cues: what comes before a value of this column and of no other: 'by'.
      asked: how users ask for the values of an item: 'who directed'.
      ask: how users are asked for one: 'Is there a director that you like?'; empty: they are not.
      names: values are names; those of one word need their own capitals.
    """

    says: str
    cues: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    ask: str = ""
    names: bool = False


class GroupWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Items for somebody, told by the values that they have and lack.

    Attributes:
      says: such an item: '{item} for children'.
      cues: how users ask for them.
      wanted: column to values, of which an item has at least one.
      unwanted: column to values, of which it has none.
      people: somebody whom they are for, unless an age says otherwise: 'my son', who may be 30.
      under: whoever is younger than so many years is such a one, too; 0: ages say nothing.
    """

    says: str
    wanted: Annotated[dict[str, tuple[str, ...]], msgspec.Meta(min_length=1)]
    cues: tuple[str, ...] = ()
    unwanted: dict[str, tuple[str, ...]] = {}
    people: tuple[str, ...] = ()
    under: int = 0


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DialogueWords:
    """How people speak of a catalogue's items; columns that a catalogue lacks are left out.

    Attributes:
      item, items: what one of them is called, and several.
      also_called: other words for these.
      year: the column with the year by which items are newer than others.
      year_asked: how users ask for it.
      attributes: column to `AttributeWords` (in gin their fields), in the order in which they are
        said.
      synonyms: phrase to the value that it means.
      groups: name to `GroupWords` (in gin their fields).
      recent_years: how many of the catalogue's last years are recent.

    Raises:
      ConfigError: an unknown field, a wrong type, or words that do not say {item} and {value}.
    """

    item: str = "item"
    items: str = "items"
    also_called: tuple[str, ...] = ()
    year: str = "year"
    year_asked: tuple[str, ...] = ("what year", "which year", "when was", "when did", "how old is")
    attributes: dict[str, AttributeWords] = dataclasses.field(default_factory=dict)
    synonyms: dict[str, str] = dataclasses.field(default_factory=dict)
    groups: dict[str, GroupWords] = dataclasses.field(default_factory=dict)
    recent_years: int = 10

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(DialogueWords).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, msgspec.convert(value, type=kind))
            except msgspec.ValidationError as error:
                raise ConfigError(f"DialogueWords.{name}: {error}; it is {value!r}") from error
        _check_says("attributes", self.attributes, {"item", "value"})
        _check_says("groups", self.groups, {"item"})

    @property
    def called(self) -> frozenset[str]:
        """All words for an item."""
        return frozenset((self.item, self.items, *self.also_called))


def words_of(columns: Collection[str]) -> DialogueWords:
    """The words of the settings; where these name no attributes, those of a catalogue of films.

    Args:
      columns: of the catalogue. One that has directors is of films.
    """
    words = DialogueWords()
    if words.attributes or "director" not in columns:
        return words
    statements = statements_of([FILMS])
    return DialogueWords(**{s.arg_name: s.value for s in statements if hasattr(s, "arg_name")})


def _check_says(
    setting: str, words: Mapping[str, AttributeWords | GroupWords], fields: set[str]
) -> None:
    for name, one in words.items():
        where = f"DialogueWords.{setting}['{name}']['says']"
        if set(Template.parse(one.says, where).fields) != fields:
            needed = " and ".join(f"{{{field}}}" for field in sorted(fields))
            raise ConfigError(f"{where} must have {needed}, and has {one.says!r}")
