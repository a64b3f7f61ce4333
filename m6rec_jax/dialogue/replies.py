"""What may be replied: a grammar of dialogue acts whose every sentence is English and true.

Sentences are put together from titles of the catalogue, an item's own attribute values and the
wishes of the dialogue; the settings (`DialogueWords`) say how values are spoken of. Each act gives
all that may be replied, and the model chooses among it.
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
from m6rec_jax.text.format_strings import Template


class Act(enum.Enum):
    """What a reply does."""

    ASK = "ask"
    RECOMMEND = "recommend"
    EXPLAIN = "explain"
    ANSWER = "answer"
    DESCRIBE = "describe"
    RATE = "rate"
    ACKNOWLEDGE = "acknowledge"
    LEAVE = "leave"


_SENTENCES = {
    Act.RECOMMEND: (
        "How about {title}?{reason}",
        "You could try {title}.{reason}",
        "I recommend {title}.{reason}",
    ),
    Act.EXPLAIN: (
        "You asked for {wished}, and {title} is {item}.",
        "{title} is {item}, and you asked for {wished}.",
    ),
    Act.ANSWER: ("That is not known of {title}.", "I do not know that of {title}."),
    Act.DESCRIBE: ("Nothing is known of {title}.",),
    Act.RATE: (
        "I have no opinion, but of {every} {title} is number {rank:,} by how many people chose it.",
    ),
    Act.ACKNOWLEDGE: ("You are welcome.", "You are welcome. Enjoy it.", "Gladly."),
    Act.LEAVE: ("Goodbye.", "Goodbye. Come back when you like."),
}
# Of one column: a text that named all nine actors would name nothing else.
_MOST_VALUES = 3


def sentences(act: Act, **fields: object) -> list[str]:
    """An act in all its words."""
    return [sentence.format(**fields) for sentence in _SENTENCES[act]]


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
        spoken = {c: own for c, own in words.of_attributes().items() if c in attributes.columns}
        self._says = {column: Template.parse(own.says) for column, own in spoken.items()}
        self._for_group = {n: Template.parse(own.says) for n, own in words.of_groups().items()}
        self._questions = [own.ask for own in spoken.values() if own.ask]

    def ask(self, first: bool = False) -> list[str]:
        """Questions about what is wished for, after a greeting where it is the first reply."""
        naming = f"What would you like? You may name {self._words.items} that you liked."
        return [f"{'Hello. ' if first else ''}{text}" for text in (*self._questions, naming)]

    def describe(self, place: int) -> list[str]:
        """All that is known of an item."""
        facts = {column: self._attributes.of(place, column) for column in self._says}
        if not any(facts.values()) and self._attributes.year_of(place) is None:
            return sentences(Act.DESCRIBE, title=self._titles[place])
        return [f"{self._titles[place]} is {self._one(facts, None)}."]

    def rate(self, place: int, rank: int) -> list[str]:
        """How popular an item is: its place among all, from 1; nothing more is known."""
        every = f"{len(self._titles):,} {self._words.items}"
        return sentences(Act.RATE, title=self._titles[place], every=every, rank=rank)

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
        offers: dict[str, None] = {}
        for place in places:
            item = self._described(place, obeying.kept)
            reason = f" It is {item}." if item else ""
            offered = sentences(Act.RECOMMEND, title=self._titles[place], reason=reason)
            offers |= dict.fromkeys(offered)
        return [before + text for text in offers]

    def explain(self, place: int, wishes: Sequence[Wish]) -> list[str]:
        """Why an item is recommended: what it has of what was wished for."""
        wishes = [wish for wish in wishes if self._filter.mask(wish)[place]]
        title, item = self._titles[place], self._described(place, wishes)
        if not item:
            return ["It goes with what you told me."]
        if not wishes:
            return [f"{title} is {item}."]
        wished = self._wished(wishes, place)
        return sentences(Act.EXPLAIN, title=title, item=item, wished=wished)

    def answer(self, place: int, column: str) -> list[str]:
        """What an item's values of a column are."""
        of_year = column == self._words.year
        year = self._attributes.year_of(place) if of_year else None
        facts = {} if of_year else {column: self._attributes.of(place, column)}
        if not any(facts.values()) and year is None:
            return sentences(Act.ANSWER, title=self._titles[place])
        return [f"{self._titles[place]} is {self._one(facts, year)}."]

    def understood(self, wishes: Sequence[Wish]) -> str:
        """The wishes in words, empty where there are none."""
        return self._wished(wishes) if wishes else ""

    def _described(self, place: int, wishes: Sequence[Wish]) -> str:
        """An item by those of its values that obey the wishes: "a crime film by Joel Coen". Empty
        where nothing is known.
        """
        wanted: set[ColumnValue] = set()
        similar: list[int] = []
        year: int | None = None
        for wish in wishes:
            match wish:
                case Wanted(values):
                    wanted |= values
                case ForGroup(name):
                    wanted |= self._filter.group_values(name)[0]
                case Like(places):
                    shared = self._filter.shared_values(wish) & self._attributes.values_of(place)
                    wanted |= shared
                    similar += places if shared else ()
                case Years():
                    year = self._attributes.year_of(place)
        known = {c: self._attributes.of(place, c) for c in self._says}
        facts = {
            column: [v for v in values if (column, phrase_key(v)) in wanted]
            for column, values in known.items()
        }
        if year is None and not any(facts.values()):
            # Nothing was wished for of which it could be said: what is known first.
            facts = {c: list(values) for c, values in known.items() if values}
            if not facts:
                return ""
            facts = dict([next(iter(facts.items()))])
        said = {(c, phrase_key(v)) for c, values in facts.items() for v in values[:_MOST_VALUES]}
        # They must have all that is said before their names.
        same = [
            self._titles[other]
            for other in dict.fromkeys(similar)
            if said <= self._attributes.values_of(other)
            and (year is None or self._attributes.year_of(other) == year)
        ]
        like = f", like {_joined(same[:_MOST_VALUES])}" if same else ""
        return self._one(facts, year) + like

    def _one(self, facts: Mapping[str, Sequence[str]], year: int | None) -> str:
        phrase = self._phrase(self._words.item, facts)
        if year is not None:
            phrase = f"{phrase} from {year}"
        return f"{_article(phrase)} {phrase}"

    def _phrase(self, item: str, facts: Mapping[str, Sequence[str]], joint: str = "and") -> str:
        for column, says in self._says.items():
            if values := facts.get(column):
                value = _joined(values[:_MOST_VALUES], joint)
                item = says.render({"item": item, "value": value})
        return item

    def _wished(self, wishes: Sequence[Wish], place: int | None = None) -> str:
        """Items that obey wishes: "comedy films from the 1990s for children".

        With `place` a name that stands in several columns is of one that this item has it in.
        """
        has = frozenset() if place is None else self._attributes.values_of(place)
        phrase = self._words.items
        # Of each column what all must have: a value, or one of several.
        wanted: dict[str, list[str]] = {}
        for wish in wishes:
            if isinstance(wish, Wanted):
                column, values = self._spelled(wish.values, wish.values & has)
                wanted.setdefault(column, []).append(_joined(values, "or"))
        for column, says in self._says.items():
            if column in wanted:
                phrase = says.render({"item": phrase, "value": _joined(wanted[column])})
        for wish in wishes:
            if isinstance(wish, Years):
                phrase = f"{phrase} {_years_phrase(wish)}"
        for wish in wishes:
            match wish:
                case ForGroup(name):
                    phrase = self._for_group[name].render({"item": phrase})
                case Like(places):
                    titles = [self._titles[place] for place in places[:_MOST_VALUES]]
                    phrase = f"{phrase} like {_joined(titles, 'or')}"
                case Unseen():
                    phrase = f"{phrase} new to you"
        refused = [
            self._phrase(self._words.items, dict([self._spelled(wish.values)]), "or")
            for wish in wishes
            if isinstance(wish, Unwanted)
        ]
        return f"{phrase} other than {_joined(refused)}" if refused else phrase

    def _spelled(
        self, values: frozenset[ColumnValue], among: frozenset[ColumnValue] = frozenset()
    ) -> tuple[str, list[str]]:
        """The first column of values, or of `among`, and its values as they are spelled."""
        column = min((column for column, _ in among or values), key=list(self._says).index)
        spellings = self._attributes.spellings
        return column, sorted(spellings[value] for value in values if value[0] == column)


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
