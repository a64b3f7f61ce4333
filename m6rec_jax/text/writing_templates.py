"""Texts generated for a user about an item: explanations, titles, queries (paper, section 2).

One entry of a data set's `template.writing` says how training rows of one kind are made:

    "explanations": {
      "about":  "{title}[, {genres}]",
      "prefix": "because",
      "text":   "[By {shared_director}, like {shared_director_in}.][ {shared_genres} again.]",
      "liked":  "{title}"
    }

`about` comes last in the source (an empty one adds nothing), `prefix` is how the text begins and is
given to the model, `text` is what it learns to generate. All see the item's attributes. `text` may
also ask what the item has in common with what the user liked before: {shared_COLUMN}, the values of
a column that it shares with one liked item, and {shared_COLUMN_in}, that item, named by `liked`.
Rendering raises DataError where the item lacks what a template needs.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import NOTHING, Template, text_of
from m6rec_jax.text.records import Item, Value

# Kinds of texts, as `template.writing` and the views of prepared data call them.
WRITING = ("explanations", "contents", "titles", "queries")

_SHARED, _IN = "shared_", "_in"
# A text that named all nine actors of two sequels would name nothing else.
_MOST_SHARED = 2
# Of one part of a text; items that the user liked latest come first.
_MOST_CHOICES = 48


class Written(NamedTuple):
    """A text to learn, without its prefix, and the shared values it names, in the order of the
    template.
    """

    text: str
    features: tuple[str, ...]


class LikedItem(NamedTuple):
    """An item that a user liked, and its values by shared column."""

    item: Item
    values: Mapping[str, set[str]]


class WritingTemplate(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True
):
    """One kind of text; see the module. Raises ValueError where 'liked' is needed and missing."""

    about: Template = NOTHING
    prefix: Template = NOTHING
    text: Template
    liked: Template = NOTHING

    def __post_init__(self) -> None:
        if any(map(_names_item, self.text.fields)) and not self.liked.fields:
            raise ValueError("'text' names liked items; 'liked' must say how, as in '{title}'")

    @functools.cached_property
    def shared(self) -> tuple[str, ...]:
        """Columns whose shared values `text` asks for, in its order."""
        return tuple(dict.fromkeys(filter(None, map(_shared_column, self.text.fields))))

    def to_spec(self) -> dict[str, str]:
        """The format strings by name."""
        return {name: getattr(self, name).source for name in self.__struct_fields__}

    def validate(self, items: Sequence[str]) -> None:
        """Raises ConfigError for a field that is no item attribute, nor one that may be shared."""
        for template in (self.about, self.prefix, self.liked):
            template.validate(items)
        # {shared_made_in} is the item that shares 'made', not what is shared of 'made_in'.
        columns = [name for name in items if not name.endswith(_IN)]
        shared = [f"{_SHARED}{name}{end}" for name in columns for end in ("", _IN)]
        self.text.validate([*items, *shared])

    @property
    def cited(self) -> tuple[str, ...]:
        """Columns for whose shared values `text` names a liked item."""
        return tuple(name for name in self.shared if f"{_SHARED}{name}{_IN}" in self.text.fields)

    @property
    def citing_words(self) -> tuple[str, ...]:
        """Words of `text` that stand right before a liked item's name."""
        named = rf"(\w+)\W*\{{{_SHARED}[^}}]*{_IN}\}}"
        return tuple(dict.fromkeys(re.findall(named, self.text.source)))

    @property
    def cites_before_values(self) -> bool:
        """Whether `text` names the first liked item before what it shares."""
        return next(map(_names_item, filter(_shared_column, self.text.fields)), False)

    @property
    def item_templates(self) -> tuple[Template, ...]:
        """Templates that are rendered for every item that something is generated about.

        Items that share nothing with what the user liked have no text, and need none.
        """
        return () if self.shared else (self.about, self.prefix, self.text)

    def source(self, history: Sequence[str], item: Item | None) -> list[str]:
        """A history's segments and what the text is to be about; `item` None if none is known."""
        about = _rendered(self.about, item)
        return [*history, about] if about else list(history)

    def render_prefix(self, item: Item | None) -> str:
        """How the text begins; `item` as for `source`."""
        return _rendered(self.prefix, item)

    @property
    def needs_item(self) -> bool:
        """Whether a text can be asked for only about an item."""
        return bool(self.about.fields or self.prefix.fields or self.shared)

    def written(
        self, item: Item, liked: Sequence[Item], common: Mapping[str, frozenset[str]]
    ) -> Written | None:
        """The text to learn from; None if the template asks for shared values and there is none.

        Of the liked items the one that shares most values of a column is named, of equals the
        latest.

        Args:
          item: that the text is about.
          liked: what the user liked before, oldest first.
          common: of `common_values`; they do not count as shared.
        """
        values: dict[str, Value] = dict(item.attributes)
        features: list[str] = []
        latest_first = self.liked_items(liked)
        for column in self.shared:
            telling = _telling(item, column, common)
            sharing = [
                ([value for value in telling if value in other.values[column]], other.item)
                for other in latest_first
                if _differ(other.item, item)
            ]
            shared, other = max(
                sharing, key=lambda one: len(one[0][:_MOST_SHARED]), default=([], item)
            )
            if shared := shared[:_MOST_SHARED]:
                values |= _said(column, shared, _rendered(self.liked, other))
                features += shared
        if self.shared and not features:
            return None
        text = _rendered(self.text, item, values).strip()
        return Written(text, tuple(dict.fromkeys(features))) if text else None

    def liked_items(self, liked: Iterable[Item]) -> list[LikedItem]:
        """What `choices` reads of liked items, the latest first; `liked` is oldest first."""
        return [
            LikedItem(other, {column: set(_values(other, column)) for column in self.shared})
            for other in liked
        ][::-1]

    def choices(
        self, item: Item, liked: Sequence[LikedItem], common: Mapping[str, frozenset[str]]
    ) -> list[list[str]]:
        """For each part of the text, in order, all that holds and may stand there.

        A part is what asks for the same shared columns; it speaks of one liked item. Where it may
        be left out, one of its choices is empty. Texts are put together with a space between their
        parts.

        Args:
          item, common: as for `written`.
          liked: of `liked_items`.
        """
        choices: list[list[str]] = []
        for part in self.text.pieces(_shared_column):
            columns = list(dict.fromkeys(filter(None, map(_shared_column, part.fields))))
            ways = itertools.islice(self._ways(item, liked, common, columns), _MOST_CHOICES)
            texts = {
                _rendered(part, item, {**item.attributes, **way}).strip(): None
                for way in list(ways) or [{}]
                if all(field in way for field in part.required if _shared_column(field))
            }
            texts.pop("", None)
            choices.append([*texts, *([""] if part.may_be_empty or not texts else [])])
        return choices

    def _ways(
        self,
        item: Item,
        liked: Sequence[LikedItem],
        common: Mapping[str, frozenset[str]],
        columns: Sequence[str],
    ) -> Iterator[dict[str, Value]]:
        """What may truly be said of shared columns: values that one liked item shares, most first,
        and that item.
        """
        telling = {column: _telling(item, column, common) for column in columns}
        for other in liked:
            if not _differ(other.item, item):
                continue
            name = _rendered(self.liked, other.item)
            some_of_column = []
            for column, values in telling.items():
                shared = [value for value in values if value in other.values[column]]
                sizes = range(min(len(shared), _MOST_SHARED), -1, -1)
                some = itertools.chain(*(itertools.combinations(shared, n) for n in sizes))
                some_of_column.append([_said(column, few, name) if few else {} for few in some])
            for said in itertools.product(*some_of_column):
                if any(said):
                    yield {field: value for fields in said for field, value in fields.items()}


def _telling(item: Item, column: str, common: Mapping[str, frozenset[str]]) -> list[str]:
    """An item's values of a column but those that most items have."""
    everybodys = common.get(column, frozenset())
    return [value for value in dict.fromkeys(_values(item, column)) if value not in everybodys]


def _said(column: str, values: Sequence[str], name: str) -> dict[str, Value]:
    """Fields of a text that say which values of a column an item shares with a liked one."""
    return {f"{_SHARED}{column}": tuple(values), f"{_SHARED}{column}{_IN}": name}


def _shared_column(field: str) -> str:
    """The column of which a field of a text asks what is shared; empty: of none."""
    return field.removeprefix(_SHARED).removesuffix(_IN) if field.startswith(_SHARED) else ""


def _names_item(field: str) -> bool:
    return field.startswith(_SHARED) and field.endswith(_IN)


def _differ(one: Item, other: Item) -> bool:
    """Whether two items are not the same; those of requests may have no id."""
    if one.id and other.id:
        return one.id != other.id
    return one.attributes != other.attributes


def common_values(items: Iterable[Item], columns: Iterable[str]) -> dict[str, frozenset[str]]:
    """Column -> values that more than half of the items have: sharing them explains nothing."""
    items, common = list(items), {}
    for column in columns:
        counts = Counter(value for item in items for value in set(_values(item, column)))
        common[column] = frozenset(value for value, n in counts.items() if 2 * n > len(items))
    return common


def attribute_values(item: Item, columns: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Column -> the item's values there, each as a text; none where nothing is known."""
    return {column: _values(item, column) for column in columns}


def _values(item: Item, column: str) -> tuple[str, ...]:
    value = item.attributes.get(column)
    members = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(text for text in map(text_of, members) if text)


def _rendered(
    template: Template, item: Item | None, values: Mapping[str, Value] | None = None
) -> str:
    """The text about an item, of its attributes or of these values."""
    if item is None:
        if template.fields:
            raise DataError(f"'{template.name}' needs an item, and none is given")
        return template.render({})
    try:
        return template.render(item.attributes if values is None else values)
    except DataError as error:
        raise DataError(f"item '{item.id}': {error}") from None
