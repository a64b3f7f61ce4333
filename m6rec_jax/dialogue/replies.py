"""What may be replied: a grammar of dialogue acts whose every sentence is English and true.

Sentences (`english.toml`) are put together from titles of the catalogue, an item's own attribute
values and the wishes of the dialogue; the settings (`DialogueWords`) say how values are spoken of.
Each act gives all that may be replied, and the model chooses among it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from m6rec_jax.dialogue.catalogue import ColumnValue, DialogueCatalogue
from m6rec_jax.dialogue.phrases import ENGLISH
from m6rec_jax.dialogue.wishes import (
    ForGroup,
    Like,
    Obeying,
    Unseen,
    Values,
    Wish,
    Years,
    mask,
    values_of,
)
from m6rec_jax.metrics.phrases import phrase_key

# Of one column: a text that named all nine actors would name nothing else.
_MOST_VALUES = 3
# Values by column.
_Facts = Mapping[str, Sequence[str]]


class ReplyGrammar:
    """All that may be replied about a catalogue."""

    def __init__(self, catalogue: DialogueCatalogue) -> None:
        self._catalogue, self._columns = catalogue, list(catalogue.columns)
        self._items = catalogue.words.items

    def say(self, act: str, place: int | None = None, **fields: object) -> list[str]:
        """An act of `replies` in english.toml in all its words, about the item at a place."""
        title = "" if place is None else self._catalogue.titles[place]
        fields |= {"items": self._items, "title": title}
        return [sentence.format(**fields) for sentence in ENGLISH["replies"][act]]

    def ask(self, first: bool = False) -> list[str]:
        """Questions about what is wished for, after a greeting where it is the first reply."""
        questions = [said.ask for said in self._catalogue.columns.values() if said.ask]
        return [f"{'Hello. ' if first else ''}{text}" for text in (*questions, *self.say("ask"))]

    def rate(self, place: int, rank: int) -> list[str]:
        """How popular an item is: its place among all, from 1; nothing more is known."""
        return self.say("good", place, every=len(self._catalogue.titles), rank=rank)

    def recommend(self, places: Sequence[int], obeying: Obeying) -> list[str]:
        """Offers of one of some items that obey, best first, with a reason tied to the wishes."""
        if not places:
            return self.say("nothing_left")
        before = ""
        if obeying.dropped:
            every = self.wished([*obeying.kept, *obeying.dropped])
            left = self.wished(obeying.kept) if obeying.kept else f"other {self._items}"
            before = f"I know no more {every}, only {left}. "
        offers: dict[str, None] = {}
        for place in places:
            item = self._described(place, obeying.kept)
            reason = f" It is {item}." if item else ""
            offers |= dict.fromkeys(self.say("recommend", place, reason=reason))
        return [before + text for text in offers]

    def explain(self, place: int, wishes: Sequence[Wish]) -> list[str]:
        """Why an item is recommended: what it has of what was wished for."""
        wishes = [wish for wish in wishes if mask(wish, self._catalogue)[place]]
        item = self._described(place, wishes)
        act = "why_unknown" if not item else "why" if wishes else "why_unasked"
        return self.say(act, place, item=item, wished=self.wished(wishes, place))

    def answer(self, place: int, column: str) -> list[str]:
        """What an item's values of a column are."""
        of_year = column == self._catalogue.words.year
        year = self._catalogue.year_of(place) if of_year else None
        facts = {} if of_year else {c: v for c, v in self._facts(place).items() if c == column}
        act = "answer" if facts or year is not None else "answer_unknown"
        return self.say(act, place, item=self._one(facts, year))

    def describe(self, place: int) -> list[str]:
        """All that is known of an item."""
        facts = self._facts(place)
        is_known = facts or self._catalogue.year_of(place) is not None
        return self.say("about" if is_known else "about_unknown", place, item=self._one(facts))

    def _facts(self, place: int) -> dict[str, Sequence[str]]:
        """What is known of an item, by column."""
        return {c: values for c in self._columns if (values := self._catalogue.of(place, c))}

    def _described(self, place: int, wishes: Sequence[Wish]) -> str:
        """An item by those of its values that obey the wishes: "a crime film by Joel Coen". Empty
        where nothing is known.
        """
        wanted = {value for wish in wishes for value in values_of(wish, self._catalogue)}
        asks_year = any(isinstance(wish, Years) for wish in wishes)
        year = self._catalogue.year_of(place) if asks_year else None
        known = self._facts(place)
        obeying = {c: [v for v in of if (c, phrase_key(v)) in wanted] for c, of in known.items()}
        # Where nothing was wished for of which it could be said, what is known first.
        first = dict(list(known.items())[:1]) if year is None else {}
        facts = {c: of for c, of in obeying.items() if of} or first
        return self._one(facts, year) if facts or year is not None else ""

    def _one(self, facts: _Facts, year: int | None = None) -> str:
        """An item with its values and its year, after "a" or "an"."""
        said = {column: values[:_MOST_VALUES] for column, values in facts.items()}
        phrase = self._phrase(self._catalogue.words.item, said)
        if year is not None:
            phrase = f"{phrase} from {year}"
        start = phrase[:3].lower()
        vowel = start[:1] in "aeiou" and start not in ("uni", "use", "eur", "one")
        return f"{'an' if vowel else 'a'} {phrase}"

    def _phrase(self, item: str, facts: _Facts, joint: str = "and") -> str:
        for column in self._columns:
            if values := facts.get(column):
                value = _joined(values, joint)
                item = self._catalogue.columns[column].says.format(item=item, value=value)
        return item

    def wished(self, wishes: Sequence[Wish], place: int | None = None) -> str:
        """What obeys wishes in words: "comedy films from the 1990s for children".

        With `place` a name that stands in several columns is of one that this item has it in.
        """
        catalogue = self._catalogue
        has = frozenset() if place is None else catalogue.values_of(place)
        # Of each column what all must have: a value, or one of several.
        wanted: dict[str, list[str]] = {}
        refused: list[str] = []
        ends: list[str] = []
        for wish in sorted(wishes, key=lambda wish: not isinstance(wish, Years)):
            match wish:
                case Values(values, False):
                    column, spelled = self._spelled(values, values & has)
                    wanted.setdefault(column, []).append(_joined(spelled, "or"))
                case Values(values):
                    refused.append(self._phrase(self._items, dict([self._spelled(values)]), "or"))
                case Years():
                    ends.append(f"{{item}} {_years_phrase(wish)}")
                case ForGroup(name):
                    ends.append(catalogue.words.groups[name].says)
                case Like(places):
                    titles = [catalogue.titles[place] for place in places[:_MOST_VALUES]]
                    ends.append(f"{{item}} like {_joined(titles, 'or')}")
                case Unseen():
                    ends.append("{item} new to you")
        phrase = self._phrase(self._items, wanted)
        for end in ends:
            phrase = end.replace("{item}", phrase)
        return f"{phrase} other than {_joined(refused)}" if refused else phrase

    def _spelled(
        self, values: frozenset[ColumnValue], among: frozenset[ColumnValue] = frozenset()
    ) -> tuple[str, list[str]]:
        """The first column of values, or of `among`, and its values as they are spelled."""
        column = min((column for column, _ in among or values), key=self._columns.index)
        spellings = self._catalogue.spellings
        return column, sorted(spellings[value] for value in values if value[0] == column)


def _joined(texts: Sequence[str], joint: str = "and") -> str:
    """ "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} {joint} {last}" if first else last


def _years_phrase(years: Years) -> str:
    since, until = years.since, years.until
    if until == math.inf:
        said = f"newer than {since - 1:.0f}"
    elif since == -math.inf:
        said = f"older than {until + 1:.0f}"
    elif since == until:
        said = f"from {since}"
    elif since % 10 == 0 and until == since + 9:
        said = f"from the {since}s"
    else:
        said = f"from {since} to {until}"
    return f"not {said}" if years.outside else said
