"""What may be replied: a grammar of dialogue acts whose every sentence is English and true.

Sentences are put together from titles of the catalogue, an item's own attribute values and the
wishes of the dialogue; the settings (`DialogueWords`) say how values are spoken of. Each act gives
all that may be replied, and the model chooses among it:

    ask            Which genre would you like?
    recommend      How about Fargo (1996)? It is a crime film by Ethan Coen and Joel Coen.
    explain        You asked for crime films, and Fargo (1996) is a crime film.
    answer         Fargo (1996) is a film by Ethan Coen and Joel Coen.
    describe       Fargo (1996) is a crime and drama film by Joel Coen with Frances McDormand.
    rate           Of 1,682 films Fargo (1996) is number 8 by how many people chose it.
    acknowledge    You are welcome. Enjoy it.
    leave          Goodbye.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from m6rec_jax.dialogue.attributes import ColumnValue, ItemAttributes
from m6rec_jax.dialogue.wishes import (
    ForGroup,
    Like,
    Obeying,
    Unseen,
    Unwanted,
    Wanted,
    Wish,
    WishFilter,
    Years,
)
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.metrics.phrases import phrase_key


class Act(enum.Enum):
    """What a reply does, see the module."""

    ASK = "ask"
    RECOMMEND = "recommend"
    EXPLAIN = "explain"
    ANSWER = "answer"
    DESCRIBE = "describe"
    RATE = "rate"
    ACKNOWLEDGE = "acknowledge"
    LEAVE = "leave"


# Of one column: a text that named all nine actors would name nothing else.
_MOST_VALUES = 3


class ReplyGrammar:
    """All that may be replied about a catalogue.

    Args:
      titles: of the items, as they are written.
      attributes: of the items.
      words: how people speak of them.
      wish_filter: of the same items and words.
    """

    def __init__(
        self,
        titles: Sequence[str],
        attributes: ItemAttributes,
        words: DialogueWords,
        wish_filter: WishFilter,
    ) -> None:
        self._titles, self._attributes, self._words = titles, attributes, words
        self._filter = wish_filter
        known = set(attributes.columns)
        self._spoken = {c: own for c, own in words.of_attributes().items() if c in known}
        self._groups = words.of_groups()

    def ask(self, first: bool = False) -> list[str]:
        """Questions about what is wished for, after a greeting where it is the first reply."""
        own = [words.ask for words in self._spoken.values() if words.ask]
        own.append(f"What would you like? You may name {self._words.items} that you liked.")
        return [f"Hello. {question}" for question in own] if first else own

    def leave(self) -> list[str]:
        """After a goodbye."""
        return ["Goodbye.", "Goodbye. Come back when you like."]

    def describe(self, place: int) -> list[str]:
        """All that is known of an item."""
        facts = {column: self._attributes.of(place, column) for column in self._spoken}
        year = self._attributes.year_of(place)
        if not any(facts.values()) and year is None:
            return [f"Nothing is known of {self._titles[place]}."]
        return [f"{self._titles[place]} is {self._one(facts, None)}."]

    def rate(self, place: int, rank: int) -> list[str]:
        """How popular an item is: its place among all, from 1; nothing more is known."""
        title, every = self._titles[place], f"{len(self._titles):,} {self._words.items}"
        return [
            f"I have no opinion, but of {every} {title} is number {rank:,} by how many people "
            "chose it."
        ]

    def acknowledge(self) -> list[str]:
        """After thanks."""
        return ["You are welcome.", "You are welcome. Enjoy it.", "Gladly."]

    def recommend(self, places: Sequence[int], obeying: Obeying) -> list[str]:
        """Offers of one of some items that obey, with a reason tied to the wishes.

        Args:
          places: of the items, best first; none: nothing is left.
          obeying: why they may be recommended.
        """
        if not places:
            return [f"I know no more {self._words.items}, only those that we spoke of."]
        before = ""
        if obeying.dropped:
            every = self._wished([*obeying.kept, *obeying.dropped])
            left = self._wished(obeying.kept) if obeying.kept else f"other {self._words.items}"
            before = f"I know no more {every}, only {left}. "
        found = []
        for place in places:
            title, described = self._titles[place], self._described(place, obeying.kept)
            reason = f" It is {described}." if described else ""
            found += [
                f"How about {title}?{reason}",
                f"You could try {title}.{reason}",
                f"I recommend {title}.{reason}",
            ]
        return [before + text for text in dict.fromkeys(found)]

    def explain(self, place: int, wishes: Sequence[Wish]) -> list[str]:
        """Why an item is recommended: what it has of what was wished for."""
        wishes = [wish for wish in wishes if self._filter.mask(wish)[place]]
        title, described = self._titles[place], self._described(place, wishes)
        if not described:
            return ["It goes with what you told me."]
        if not wishes:
            return [f"{title} is {described}."]
        wished = self._wished(wishes, place)
        return [
            f"You asked for {wished}, and {title} is {described}.",
            f"{title} is {described}, and you asked for {wished}.",
        ]

    def answer(self, place: int, column: str) -> list[str]:
        """What an item's values of a column are."""
        title = self._titles[place]
        if column == self._words.year:
            year = self._attributes.year_of(place)
            facts, years = dict[str, Sequence[str]](), None if year is None else str(year)
        else:
            facts, years = {column: self._attributes.of(place, column)}, None
        if not any(facts.values()) and years is None:
            return [f"That is not known of {title}.", f"I do not know that of {title}."]
        return [f"{title} is {self._one(facts, years)}."]

    def understood(self, wishes: Sequence[Wish]) -> str:
        """The wishes in words, empty where there are none."""
        return self._wished(wishes) if wishes else ""

    def _described(self, place: int, wishes: Sequence[Wish]) -> str:
        """An item by those of its values that obey the wishes: "a crime film by Joel Coen". Empty
        where nothing is known.
        """
        wanted: set[ColumnValue] = set()
        alike: list[int] = []
        dated = False
        for wish in wishes:
            match wish:
                case Wanted(values):
                    wanted |= values
                case ForGroup(name):
                    wanted |= self._filter.group_values(name)[0]
                case Like(places):
                    shared = self._filter.shared_values(wish) & self._attributes.values_of(place)
                    if shared:
                        wanted |= shared
                        alike += places
                case Years():
                    dated = True
        facts: dict[str, Sequence[str]] = {}
        for column in self._spoken:
            own_values = self._attributes.of(place, column)
            facts[column] = [v for v in own_values if (column, phrase_key(v)) in wanted]
        year = self._attributes.year_of(place) if dated else None
        if year is None and not any(facts.values()):
            # Nothing was wished for of which it could be said: what is known first.
            known = [c for c in self._spoken if self._attributes.of(place, c)]
            if not known:
                return ""
            facts = {c: self._attributes.of(place, c) for c in known[:1]}
        described = self._one(facts, None if year is None else str(year))
        said = {(c, phrase_key(v)) for c, own in facts.items() for v in own[:_MOST_VALUES]}
        # They must have all that is said before their names.
        same = [
            self._titles[other]
            for other in dict.fromkeys(alike)
            if said <= self._attributes.values_of(other)
            and (year is None or self._attributes.year_of(other) == year)
        ]
        return f"{described}, like {_joined(same[:_MOST_VALUES])}" if same else described

    def _one(self, facts: Mapping[str, Sequence[str]], year: str | None) -> str:
        phrase = self._phrase(self._words.item, facts)
        if year is not None:
            phrase = f"{phrase} from {year}"
        return f"{_article(phrase)} {phrase}"

    def _phrase(self, item: str, facts: Mapping[str, Sequence[str]], joint: str = "and") -> str:
        for column, words in self._spoken.items():
            values = list(facts.get(column, ()))[:_MOST_VALUES]
            if values:
                item = words.says.render({"item": item, "value": _joined(values, joint)})
        return item

    def _wished(self, wishes: Sequence[Wish], place: int | None = None) -> str:
        """Items that obey wishes: "comedy films from the 1990s for children".

        With `place` a name that stands in several columns is of one that this item has it in.
        """
        has = frozenset() if place is None else self._attributes.values_of(place)
        phrase, spellings = self._words.items, self._attributes.spellings
        order = list(self._spoken)
        # Of each column what all must have: a value, or one of several.
        wanted: dict[str, list[str]] = {}
        for wish in wishes:
            if isinstance(wish, Wanted):
                own_columns = {column for column, _ in wish.values & has}
                column = min(own_columns or wish.columns, key=order.index)
                own = sorted(spellings[value] for value in wish.values if value[0] == column)
                wanted.setdefault(column, []).append(_joined(own, "or"))
        for column, words in self._spoken.items():
            if column in wanted:
                value = _joined(wanted[column])
                phrase = words.says.render({"item": phrase, "value": value})
        for wish in wishes:
            if isinstance(wish, Years):
                phrase = f"{phrase} {_years_phrase(wish)}"
        for wish in wishes:
            match wish:
                case ForGroup(name):
                    phrase = self._groups[name].says.render({"item": phrase})
                case Like(places):
                    titles = [self._titles[place] for place in places[:_MOST_VALUES]]
                    phrase = f"{phrase} like {_joined(titles, 'or')}"
                case Unseen():
                    phrase = f"{phrase} new to you"
        refused = [self._refused(wish.values) for wish in wishes if isinstance(wish, Unwanted)]
        return f"{phrase} other than {_joined(refused)}" if refused else phrase

    def _refused(self, values: frozenset[ColumnValue]) -> str:
        column = min((column for column, _ in values), key=list(self._spoken).index)
        own = sorted(self._attributes.spellings[v] for v in values if v[0] == column)
        return self._phrase(self._words.items, {column: own}, "or")


def _joined(texts: Sequence[str], joint: str = "and") -> str:
    """ "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} {joint} {last}" if first else last


def _article(phrase: str) -> str:
    start = phrase[:3].lower()
    vowel = start[:1] in "aeiou" and start not in ("uni", "use", "eur", "one")
    return "an" if vowel else "a"


def _years_phrase(years: Years) -> str:
    since, until = years.since, years.until
    if until is None:
        said = f"newer than {(since or 0) - 1}"
    elif since is None:
        said = f"older than {until + 1}"
    elif since == until:
        said = f"from {since}"
    elif since % 10 == 0 and until == since + 9:
        said = f"from the {since}s"
    else:
        said = f"from {since} to {until}"
    return f"not {said}" if years.outside else said
