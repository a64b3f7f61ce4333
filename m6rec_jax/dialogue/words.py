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
import re
from collections.abc import Collection
from typing import Annotated, get_type_hints

import gin
import msgspec

from m6rec_jax.configuration import statements_of
from m6rec_jax.errors import ConfigError

FILMS = "gin_configs/dialogue/films.gin"


class AttributeWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a column's values are spoken of."""

    says: str  # an item with a value: '{item} by {value}'
    cues: tuple[str, ...] = ()  # what comes before a value of this column and of no other: 'by'
    asked: tuple[str, ...] = ()  # how users ask for the values of an item: 'who directed'
    ask: str = ""  # how users are asked for one: 'Is there a director that you like?'
    names: bool = False  # values are names; those of one word need their own capitals

    def __post_init__(self) -> None:
        _check_says(self.says, ["item", "value"])


class GroupWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Items for somebody, told by the values, by column, that they have and lack."""

    says: str  # such an item: '{item} for children'
    wanted: Annotated[dict[str, tuple[str, ...]], msgspec.Meta(min_length=1)]  # at least one
    cues: tuple[str, ...] = ()  # how users ask for them
    unwanted: dict[str, tuple[str, ...]] = {}  # none of these
    # Somebody whom they are for, unless an age says otherwise: 'my son', who may be 30.
    people: tuple[str, ...] = ()
    under: int = 0  # whoever is younger is such a one, too; 0: ages say nothing

    def __post_init__(self) -> None:
        _check_says(self.says, ["item"])


def _check_says(says: str, fields: list[str]) -> None:
    if sorted(re.findall(r"\{(.*?)\}", says)) != fields:
        needed = " and ".join(f"{{{field}}}" for field in fields)
        raise ValueError(f"'says' must have {needed}, and nothing else in braces")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DialogueWords:
    """How people speak of a catalogue's items; columns that a catalogue lacks are left out.

    Raises ConfigError for an unknown field, a wrong type, or a `says` without {item} and {value}.
    """

    item: str = "item"
    items: str = "items"
    also_called: tuple[str, ...] = ()  # other words for these
    year: str = "year"  # the column with the year by which items are newer than others
    year_asked: tuple[str, ...] = ("what year", "which year", "when was", "when did", "how old is")
    # Column to its words (in gin their fields), in the order in which they are said.
    attributes: dict[str, AttributeWords] = dataclasses.field(default_factory=dict)
    synonyms: dict[str, str] = dataclasses.field(default_factory=dict)  # phrase to a value
    groups: dict[str, GroupWords] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(DialogueWords).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, msgspec.convert(value, type=kind))
            except msgspec.ValidationError as error:
                raise ConfigError(f"DialogueWords.{name}: {error}; it is {value!r}") from error

    @property
    def called(self) -> frozenset[str]:
        """All words for an item."""
        return frozenset((self.item, self.items, *self.also_called))


def words_of(columns: Collection[str]) -> DialogueWords:
    """The words of the settings; where these name no attributes, those of films for a catalogue
    with directors.
    """
    words = DialogueWords()
    if words.attributes or "director" not in columns:
        return words
    statements = statements_of([FILMS])
    return DialogueWords(**{s.arg_name: s.value for s in statements if hasattr(s, "arg_name")})
