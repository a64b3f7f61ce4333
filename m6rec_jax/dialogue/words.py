"""How people speak of a catalogue's items: settings of a dialogue, in gin.

    DialogueWords.item = 'film'
    DialogueWords.items = 'films'
    DialogueWords.attributes = {
        'genres': {'says': '{value} {item}', 'asked': ('what genre', 'what kind')},
        'director': {'says': '{item} by {value}', 'cues': ('by', 'directed by'), 'names': True},
    }

Nothing here is about one catalogue: columns, their words and groups of values are all named by the
settings. `gin_configs/examples/film_dialogue.gin` has those of films.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import gin

from m6rec_jax.errors import ConfigError
from m6rec_jax.gin_statements import statements_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.format_strings import Template

_Words = TypeVar("_Words", "AttributeWords", "GroupWords")
FILMS = "gin_configs/examples/film_dialogue.gin"


@dataclasses.dataclass(frozen=True, slots=True)
class AttributeWords:
    """How a column's values are spoken of.

    Attributes:
      says: an item with a value: '{item} by {value}'.
      cues: what comes before a value of this column and of no other: 'by'.
      asked: how users ask for the values of an item: 'who directed'.
      ask: how users are asked for one: 'Is there a director that you like?'; empty: they are not.
      names: values are names; those of one word need their own capitals.
    """

    says: Template
    cues: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    ask: str = ""
    names: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class GroupWords:
    """Items for somebody, told by the values that they have and lack.

    Attributes:
      says: such an item: '{item} for children'.
      cues: how users ask for them.
      wanted: column to values, of which an item has at least one.
      unwanted: column to values, of which it has none.
      people: somebody whom they are for, unless an age says otherwise: 'my son', who may be 30.
      under: whoever is younger than so many years is such a one, too; 0: ages say nothing.
    """

    says: Template
    wanted: Mapping[str, tuple[str, ...]]
    cues: tuple[str, ...] = ()
    unwanted: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
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
      attributes: column to the fields of `AttributeWords`, in the order in which they are said.
      synonyms: phrase to the value that it means.
      groups: name to the fields of `GroupWords`.
      recent_years: how many of the catalogue's last years are recent.

    Raises:
      ConfigError: an unknown field, or words that do not say {item} and {value}.
    """

    item: str = "item"
    items: str = "items"
    also_called: Sequence[str] = ()
    year: str = "year"
    year_asked: Sequence[str] = ("what year", "which year", "when was", "when did", "how old is")
    attributes: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    recent_years: int = 10

    def __post_init__(self) -> None:
        _texts(self.also_called, "DialogueWords.also_called")
        _texts(self.year_asked, "DialogueWords.year_asked")
        self.of_attributes()
        self.of_groups()

    def check_attributes(self) -> None:
        """Raises ConfigError where no column is spoken of."""
        if not self.attributes:
            raise ConfigError(
                "attributes of items are to be read in dialogues, and DialogueWords.attributes "
                "names none; --gin_file gin_configs/examples/film_dialogue.gin has those of films"
            )

    def of_attributes(self) -> dict[str, AttributeWords]:
        """The words of each column."""
        return {
            column: _read(AttributeWords, given, f"attributes['{column}']", {"item", "value"})
            for column, given in self.attributes.items()
        }

    def of_groups(self) -> dict[str, GroupWords]:
        """The words of each group."""
        return {
            name: _read(GroupWords, given, f"groups['{name}']", {"item"})
            for name, given in self.groups.items()
        }


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


def _read(kind: type[_Words], given: object, where: str, fields: set[str]) -> _Words:
    """Words of a kind; `fields` are those of what it says."""
    where = f"DialogueWords.{where}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a dictionary, not {given!r}")
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    for name in given:
        if name not in types:
            hint = did_you_mean(str(name), types)
            raise ConfigError(f"{where} has no '{name}'{hint}; known: {', '.join(types)}")
    if "wanted" in types and not given.get("wanted"):
        raise ConfigError(f"{where} needs 'wanted', values that such items have")
    source = str(given.get("says", ""))
    says = Template.parse(source, f"{where}['says']")
    if set(says.fields) != fields:
        wanted = " and ".join(f"{{{name}}}" for name in sorted(fields))
        raise ConfigError(f"{where}: 'says' must have {wanted}, and has {source!r}")
    own = {
        name: _texts(v, f"{where}['{name}']") if types[name].startswith(("tuple", "Mapping")) else v
        for name, v in given.items()
    }
    return kind(**own | {"says": says})


def _texts(given: object, where: str) -> Any:
    if isinstance(given, Mapping):
        return {column: _texts(values, where) for column, values in given.items()}
    if not isinstance(given, list | tuple):
        raise ConfigError(f"{where}: a list of texts is needed, not {given!r}")
    return tuple(map(str, given))
