"""The phrases that a turn is read by: titles, attribute values, and English words that join them.

A turn is read from left to right by the longest phrase that is known: titles of the catalogue, its
attribute values (with plurals and synonyms), and those of `english`. A title of several words is
found in any case, one of a single word, or of such words as all texts have, only with its own
capitals: "it" is no film. "It" at the start of a sentence counts as one, since no rule can decide.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from m6rec_jax.dialogue.attributes import ColumnValue, ItemAttributes, Key
from m6rec_jax.dialogue.english import COMMON, DECADES, PHRASES, WORDS
from m6rec_jax.dialogue.people import People
from m6rec_jax.dialogue.wishes import column_values
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.metrics.phrases import PhraseFinder, fold, phrase_key, pieces

_YEAR = re.compile(r"\d{4}")
# A full stop ends a sentence after three small letters, a number or a bracket, and before a capital
# after "no" and words such as "it": "Dr. No", "vs. Godzilla" and "No. 1" go on.
_ABBREVIATED = "vs|mr|dr|st|mt|jr|sr|ft|ep|pt|ww|lt|co|ed"
_SENTENCE_END = re.compile(
    r"(?:(?<=[^\W_A-Z]{3})|(?<=[)\d]))\.(?=\s|$)"
    rf"|(?:(?<=\b[Nn]o)|(?<=\bTV)|(?<=[^\w.][a-z]{{2}})(?<!\b(?:{_ABBREVIATED})))"
    r"\.+(?=\s+[A-Z]|\s*$)"
)


class Token(NamedTuple):
    """A word or sign of a turn, or a phrase that is known."""

    kind: str  # 'word', 'title', 'value', 'period', 'column', 'group', 'asked' or a key of PHRASES
    words: Key
    what: Any = None


class _Meaning(NamedTuple):
    """What a phrase says, if it is written in one of some ways; None: in any."""

    kind: str
    what: Any
    surfaces: set[Key] | None = None


class KnownPhrases:
    """Finds what is known in turns about one catalogue.

    Args:
      names: by which items are named, such as titles without a year.
      attributes: of the items.
      words: how people speak of them.
    """

    def __init__(
        self, names: Sequence[str], attributes: ItemAttributes, words: DialogueWords
    ) -> None:
        self._attributes, self._called = attributes, words.called
        self._groups = words.of_groups()
        self._people = People(self._groups)
        titles: defaultdict[Key, list[int]] = defaultdict(list)
        surfaces: defaultdict[Key, set[Key]] = defaultdict(set)
        for place, name in enumerate(names):
            if key := phrase_key(name):
                titles[key].append(place)
                surfaces[key].add(tuple(pieces(name)))
        # What a phrase may mean, the first that fits how it is written counts.
        self._meanings: defaultdict[Key, list[_Meaning]] = defaultdict(list)
        for key, meaning in _spoken_values(attributes, words):
            self._meanings[key].append(meaning)
        for key, places in titles.items():
            self._meanings[key].append(_Meaning("title", tuple(places), surfaces[key]))
        for key, meaning in _spoken_cues(words, attributes.columns).items():
            self._meanings[key].append(meaning)
        common = COMMON | self._called
        for key, places in titles.items():
            # In other capitals than its own a title needs words that say something.
            if len(key) > 1 and not common.issuperset(key):
                self._meanings[key].append(_Meaning("title", tuple(places)))
        self._finder = PhraseFinder(self._meanings)

    def tokens(self, text: str) -> list[Token]:
        """A turn as phrases that are known and words between them, in its order."""
        surface = pieces(_SENTENCE_END.sub(" ;", text))
        folded = [fold(piece) for piece in surface]
        tokens: list[Token] = []
        start = 0
        while start < len(folded):
            token = self._phrase(surface, folded, start)
            if period := self._period(tokens, folded, start, token):
                token = period
            elif token is not None and token.kind == "title":
                end = start + len(token.words)
                token = self._narrowed(token, folded[end : end + 3])
            token = token or self._somebody(folded, start) or Token("word", (folded[start],))
            tokens.append(token)
            start += len(token.words)
        return tokens

    def _phrase(self, surface: list[str], folded: list[str], start: int) -> Token | None:
        """The longest known phrase at a place, if it is one as it is written."""
        for key in self._finder.at(folded, start):
            written = tuple(surface[start : start + len(key)])
            for kind, what, surfaces in self._meanings[key]:
                if surfaces is None or written in surfaces:
                    return Token(kind, key, what)
        return None

    def _period(
        self, tokens: Sequence[Token], folded: list[str], start: int, phrase: Token | None
    ) -> Token | None:
        """A year or decade at a place, unless the phrase there is meant."""
        dated = _years_at(folded, start, self._attributes.last_year)
        before = tokens[-1].words[-1] if tokens else ""
        decade_of = tokens[-2:-1] if before in WORDS["parts_of_decades"] else tokens[-1:]
        if dated is None or any(t.words[-1] in WORDS["owners"] for t in decade_of):
            return None  # "my wife is in her late 30s"
        years, length = dated
        if phrase is None or len(phrase.words) > length:
            meant = phrase is None and before != "("
        else:  # "1984" after "from" is a year, also where a title is called so
            meant = before in WORDS["before_years"] or _goes_on(tokens, years)
        return Token("period", tuple(folded[start : start + length]), years) if meant else None

    def _somebody(self, folded: list[str], start: int) -> Token | None:
        """Somebody for whom something is wanted."""
        person = self._people.at(folded, start)
        if person is None:
            return None
        name, length, is_aged = person
        end = start + length
        if is_aged and end < len(folded):  # "a ten-year-old film", "ten-year-old comedies"
            keys = self._finder.at(folded, end)
            values = any(self._meanings[key][0].kind == "value" for key in keys)
            if values or folded[end] in self._called:
                return None
        if not name:
            return Token("plain", tuple(folded[start:end]))
        wanted = column_values(self._groups[name].wanted)
        return Token("group", tuple(folded[start:end]), (name, wanted))

    def _narrowed(self, token: Token, after: Sequence[str]) -> Token:
        """A title with the year in brackets behind it, where there is one."""
        if len(after) < 3 or after[0] != "(" or after[2] != ")" or not _YEAR.fullmatch(after[1]):
            return token
        year = int(after[1])
        places = tuple(p for p in token.what if self._attributes.year_of(p) == year)
        return Token("title", (*token.words, *after), places or token.what)


def _spoken_values(
    attributes: ItemAttributes, words: DialogueWords
) -> Iterable[tuple[Key, _Meaning]]:
    """Phrases and the values that they mean, and whether they are plurals."""
    columns = words.of_attributes()
    values: defaultdict[Key, set[ColumnValue]] = defaultdict(set)
    # Names of one word, as they are written.
    surfaces: defaultdict[Key, set[Key]] = defaultdict(set)
    for (column, key), spelling in attributes.spellings.items():
        values[key].add((column, key))
        if columns[column].names and len(key) == 1:
            surfaces[key].add(tuple(pieces(spelling)))
    for phrase, value in words.synonyms.items():
        if meant := values.get(phrase_key(value)):
            values[phrase_key(phrase)] |= meant
    plurals: defaultdict[Key, set[ColumnValue]] = defaultdict(set)
    for (*first, last), meant in values.items():
        plain = {value for value in meant if not columns[value[0]].names}
        ends = [f"{last}s", f"{last}es", *([f"{last[:-1]}ies"] if last.endswith("y") else [])]
        for plural in [(*first, end) for end in ends] if plain else ():
            if plural not in values:
                plurals[plural] |= plain
    for key, meant in values.items():
        yield key, _Meaning("value", (frozenset(meant), False), surfaces.get(key))
    for key, meant in plurals.items():
        yield key, _Meaning("value", (frozenset(meant), True))


def _spoken_cues(words: DialogueWords, columns: Sequence[str]) -> dict[Key, _Meaning]:
    """Phrases of the language and of the settings."""
    cues: dict[Key, _Meaning] = {}
    for kind, phrases in PHRASES.items():
        for phrase in phrases:
            for name in words.called if "{items}" in phrase else ("",):
                cues[phrase_key(phrase.replace("{items}", name))] = _Meaning(kind, None)
    for column, spoken in words.of_attributes().items():
        if column in columns:
            cues |= {phrase_key(cue): _Meaning("column", column) for cue in spoken.cues}
            cues |= {phrase_key(cue): _Meaning("asked", column) for cue in spoken.asked}
    cues |= {phrase_key(cue): _Meaning("asked", words.year) for cue in words.year_asked}
    for name, group in words.of_groups().items():
        meaning = _Meaning("group", (name, column_values(group.wanted)))
        cues |= {phrase_key(cue): meaning for cue in group.cues}
    return cues


def joins_years(token: Token) -> bool:
    """Whether it stands between the years of one span: "from 1990 up to the 2000s"."""
    return token.kind == "until" or token.words[0] in WORDS["spans"]


def _goes_on(tokens: Sequence[Token], years: tuple[int, int]) -> bool:
    """Whether years go on with a span: "between 1890 and 1900"."""
    before = next((token for token in reversed(tokens) if not joins_years(token)), None)
    if before is None or before.kind != "period" or before is tokens[-1]:
        return False
    return bool(before.what <= years)


def _years_at(
    folded: Sequence[str], start: int, last_year: int | None
) -> tuple[tuple[int, int], int] | None:
    """A year or decade at a place of a text: its first and last year, and how many words it has.

    Of two digits ("the 90s") it is in the latest century that has begun by the catalogue's last
    year.
    """
    word, length = folded[start], 1
    if re.fullmatch(r"\d+0", word) and folded[start + 1 : start + 2] == ["s"]:
        word, length = f"{word}s", 2
    if re.fullmatch(r"(1[89]|20)\d\d", word):
        return (int(word), int(word)), 1
    first = DECADES.get(word)
    if re.fullmatch(r"(1[89]|20)?\d0s", word):
        first = int(word[:-1])
    if first is None:
        return None
    if first < 100:
        first += 2000 if last_year is not None and 2000 + first <= last_year else 1900
    return (first, first + 9), length
