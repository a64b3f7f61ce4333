"""Reads what a user says: wishes, items that are named, and what is asked about them.

A turn is read from left to right by the longest phrase that is known: titles of the catalogue, its
attribute values (with plurals and synonyms), and the English words below that join them. A title of
several words is found in any case, one of a single word, or of such words as all texts have, only
with its own capitals: "it" is no film. "It" at the start of a sentence counts as one, since no rule
can decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from m6rec_jax.dialogue.attributes import ColumnValue, ItemAttributes, Key
from m6rec_jax.dialogue.wishes import (
    ForGroup,
    Like,
    Unseen,
    Unwanted,
    Wanted,
    Wish,
    Years,
    column_values,
)
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.metrics.phrases import PhraseFinder, fold, phrase_key, pieces

# Words that a turn's meaning depends on; `{items}` stands for every word for an item.
_CUES = {
    "no": "no, not, don't, dont, doesn't, isn't, aren't, nothing, never, without, hate, hates, "
    "hated, dislike, disliked, didn't like, avoid, except, nor, neither, other than, rather than, "
    "instead of, anything but, tired of, can't stand, cannot stand",
    "unseen": "not seen, not yet seen, not already seen, haven't seen, have not seen, "
    "haven't yet seen, haven't already seen, never seen, never watched, not watched, "
    "haven't watched, didn't see, unseen, new to me, don't know yet, do not know yet",
    "newer_than": "newer than, more recent than, later than, after",
    "older_than": "older than, earlier than, before, prior to",
    "since": "since",
    "until": "until, up to",
    "or_newer": "or newer, or later, or more recent, and later, onwards, onward",
    "or_older": "or older, or earlier, and earlier",
    "newer": "newer, more recent, more modern",
    "older": "older",
    "recent": "something new, something modern, new {items}, modern {items}, recent, a new one, "
    "new ones, newest, latest",
    "old": "something old, something classic, old {items}, classic {items}, an old one, old ones",
    "like": "like, similar to, in the style of, reminds me of, along the lines of",
    "also": "also, as well, in addition",
    "or": "or",
    "and": "and",
    "plain": "why not, as well as",
    "why": "why",
    "thanks": "thanks, thank you, thx, cheers, great choice, sounds good, sounds great, bye, "
    "goodbye, good bye",
    "clear": "surprise me, anything goes, start over, never mind, forget that, forget it, "
    "anything is fine, i don't care, whatever you like",
}


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


# After something that was refused, these begin what is wanted.
_RESUMES = _set_of(
    "but want wants like love loves prefer give show looking something anything someone instead "
    "rather i we please how what a an"
)
# Before "like", these make it a taste in place of a comparison.
_TASTES = _set_of("i we you they would d also really do don t not")
# These leave open what goes together.
_FILLERS = _set_of("the a an year years my of any other all")
_BEFORE_YEARS = _set_of("from in of than year since the after before until between")
_SPANS = _set_of("and or to until till through the")
_COMMON = (
    _RESUMES
    | _TASTES
    | _FILLERS
    | _BEFORE_YEARS
    | _SPANS
    | _set_of(
        "no it is me us him her he she was are be been have has had can could will would see seen "
        "for on at by with about out up down who when where why which here there some one two new "
        "old good best more less very not if so as its your our their time"
    )
)
_STOPS = frozenset(".;!?")
_DECADES = {
    "twenties": 20,
    "thirties": 30,
    "forties": 40,
    "fifties": 50,
    "sixties": 60,
    "seventies": 70,
    "eighties": 80,
    "nineties": 90,
}
# A full stop ends a sentence after a word of three small letters: "Dr. No" goes on.
_SENTENCE_END = re.compile(r"(?<=[^\W_A-Z]{3})\.(?=\s|$)")
# How many words may stand between "newer than" and its year or title.
_REACH = 4


class Reading(NamedTuple):
    """What a turn says.

    Attributes:
      wishes: in its order.
      named: places of the items that it names, in its order.
      liked: those of them that are not refused, compared, unseen or asked about.
      adds: the wishes come beside earlier ones.
      clears: no earlier wish holds any longer.
      asked: a column whose values are asked for; None: none is.
      why: a reason is asked for.
      thanks: it thanks, or says goodbye.
    """

    wishes: tuple[Wish, ...] = ()
    named: tuple[int, ...] = ()
    liked: tuple[int, ...] = ()
    adds: bool = False
    clears: bool = False
    asked: str | None = None
    why: bool = False
    thanks: bool = False


class _Token(NamedTuple):
    """A piece of a turn, or a phrase that is known."""

    kind: str  # 'word', 'title', 'value', 'period', 'column', 'group', 'asked' or a key of _CUES
    words: Key
    what: Any = None


class DialogueReader:
    """Reads turns about one catalogue.

    Args:
      names: by which items are named, such as titles without a year.
      attributes: of the items.
      words: how people speak of them.
    """

    def __init__(
        self, names: Sequence[str], attributes: ItemAttributes, words: DialogueWords
    ) -> None:
        self._attributes, self._recent_years = attributes, words.recent_years
        self._titles: dict[Key, list[int]] = {}
        # Of phrases that need their own capitals, as they are written.
        self._surfaces: dict[Key, set[Key]] = {}
        for place, name in enumerate(names):
            key = phrase_key(name)
            if key:
                self._titles.setdefault(key, []).append(place)
                self._surfaces.setdefault(key, set()).add(tuple(pieces(name)))
        self._common = _COMMON | {words.item, words.items, *words.also_called}
        self._values = self._spoken_values(words)
        self._cues = _spoken_cues(words, attributes.columns)
        keys = [*self._titles, *self._values, *self._cues]
        self._finder = PhraseFinder.of_keys(keys)

    def read(self, text: str, latest: Sequence[int] = ()) -> Reading:
        """What a turn says.

        Args:
          text: of the turn.
          latest: places of the items that were named or offered last: "newer" means newer than
            these.
        """
        return _TurnReader(self._tokens(text), self._attributes, latest, self._recent_years).read()

    def _spoken_values(
        self, words: DialogueWords
    ) -> dict[Key, tuple[frozenset[ColumnValue], bool]]:
        """Phrase → the values that it means, and whether it is a plural."""
        own = words.of_attributes()
        found: dict[Key, set[ColumnValue]] = {}
        self._named_values: dict[Key, set[Key]] = {}
        for (column, key), spelling in self._attributes.spellings.items():
            found.setdefault(key, set()).add((column, key))
            if own[column].names and len(key) == 1:
                self._named_values.setdefault(key, set()).add(tuple(pieces(spelling)))
        for phrase, value in words.synonyms.items():
            meant = found.get(phrase_key(value))
            if meant:
                found.setdefault(phrase_key(phrase), set()).update(meant)
        plurals: dict[Key, set[ColumnValue]] = {}
        for key, values in found.items():
            plain = {value for value in values if not own[value[0]].names}
            for plural in _plurals(key) if plain else ():
                if plural not in found:
                    plurals.setdefault(plural, set()).update(plain)
        return {key: (frozenset(values), False) for key, values in found.items()} | {
            key: (frozenset(values), True) for key, values in plurals.items()
        }

    def _tokens(self, text: str) -> list[_Token]:
        surface = pieces(_SENTENCE_END.sub(" ;", text))
        folded = [fold(piece) for piece in surface]
        tokens: list[_Token] = []
        start = 0
        while start < len(folded):
            dated = _period(folded, start, self._attributes.last_year)
            before = tokens[-1].words[-1] if tokens else ""
            token = None
            for key in self._finder.at(folded, start):
                token = self._known(key, tuple(surface[start : start + len(key)]))
                if token:
                    break
            # "1984" after "from" is a year, also where a title is called so.
            if dated is not None and (
                before in _BEFORE_YEARS
                if token is not None and len(token.words) <= dated[1]
                else token is None and before != "("
            ):
                token = _Token("period", tuple(folded[start : start + dated[1]]), dated[0])
            if token is not None and token.kind == "title":
                token = self._narrowed(token, folded[start + len(token.words) :])
            if token is None:
                token = _Token("word", (folded[start],))
            tokens.append(token)
            start += len(token.words)
        return tokens

    def _known(self, key: Key, surface: Key) -> _Token | None:
        """A phrase, if it is one as it is written."""
        if key in self._values and (
            key not in self._named_values or surface in self._named_values[key]
        ):
            return _Token("value", key, self._values[key])
        title = key in self._titles and _Token("title", key, tuple(self._titles[key]))
        if title and surface in self._surfaces[key]:
            return title
        if key in self._cues:
            kind, what = self._cues[key]
            return _Token(kind, key, what)
        # In other capitals than its own a title needs words that say something.
        return title if title and len(key) > 1 and not self._common.issuperset(key) else None

    def _narrowed(self, token: _Token, after: Sequence[str]) -> _Token:
        """A title with the year in brackets behind it, where there is one."""
        if len(after) < 3 or after[0] != "(" or after[2] != ")" or not after[1].isdigit():
            return token
        places: tuple[int, ...] = token.what
        own = [place for place in places if self._attributes.year_of(place) == int(after[1])]
        return _Token("title", (*token.words, *after[:3]), tuple(own) or places)


class _Pending(NamedTuple):
    """A comparison that waits for its year or title.

    Attributes:
      kind: key of `_CUES`.
      reach: how many words it may still wait.
      negative: it is refused.
      relative: without either it means what was named last: "newer than that".
    """

    kind: str
    reach: int
    negative: bool
    relative: bool


class _TurnReader:
    """Puts the tokens of one turn together."""

    def __init__(
        self,
        tokens: Sequence[_Token],
        attributes: ItemAttributes,
        latest: Sequence[int],
        recent_years: int,
    ) -> None:
        self._tokens, self._attributes = tokens, attributes
        self._latest, self._recent_years = latest, recent_years
        self._wishes: list[Wish] = []
        self._flags: dict[str, Any] = {}
        # Whether what follows is refused, and whether something was.
        self._negative = self._refused = False
        self._column: str | None = None
        # "or", or "and" between plurals: the next value is another way to obey.
        self._joins = ""
        self._plural = False
        self._pending: _Pending | None = None
        self._before = ""

    def read(self) -> Reading:
        """What the turn says."""
        named: dict[int, None] = {}
        liked: dict[int, None] = {}
        number = 0
        while number < len(self._tokens):
            token = self._tokens[number]
            number += 1
            if token.kind == "period":
                number = self._read_period(token.what, number)
            elif token.kind == "title":
                if self._is_liked():
                    liked |= dict.fromkeys(token.what)
                self._read_title(token.what)
                named |= dict.fromkeys(token.what)
                self._latest = tuple(named)
            elif token.kind == "value":
                self._read_values(*token.what)
            elif token.kind == "word":
                self._read_word(token.words[0])
            else:
                self._read_cue(token)
            self._before = token.words[-1]
        self._end_comparison()
        asks = "asked" in self._flags or "why" in self._flags
        return Reading(self._merged(), tuple(named), () if asks else tuple(liked), **self._flags)

    def _is_liked(self) -> bool:
        """Whether a title here is one that the user likes."""
        if self._pending is not None:
            return self._pending.kind == "like" and not self._pending.negative
        return not self._negative and Unseen() not in self._wishes

    def _read_word(self, word: str) -> None:
        resumes = word in _RESUMES or word == ","
        if word in _STOPS:
            self._end_comparison()
            self._negative = self._refused = False
        # "No, a comedy" and "no, give me a comedy" refuse nothing.
        elif resumes and self._before == "no" and word not in ("a", "an"):
            self._negative = False
        elif word != "," and resumes and self._refused:
            self._negative = self._refused = False
        if self._pending is not None:
            self._pending = self._pending._replace(reach=self._pending.reach - 1)
            if not self._pending.reach:
                self._end_comparison()
        if word not in _FILLERS:
            self._column = None
            if word != ",":
                self._joins, self._plural = "", False

    def _read_cue(self, token: _Token) -> None:
        kind, what = token.kind, token.what
        if kind == "no":
            self._negative, self._refused = True, False
        elif kind == "unseen":
            self._wishes.append(Unseen())
        elif kind in ("newer_than", "older_than", "since", "until"):
            self._end_comparison()
            relative = token.words[-1] == "than"
            self._pending = _Pending(kind, _REACH, self._negative, relative)
        elif kind in ("newer", "older", "recent", "old"):
            self._read_age(kind)
        elif kind in ("or_newer", "or_older"):
            self._read_open_end(kind)
        elif kind == "like":
            if self._before in _TASTES:
                self._read_word("like")
            else:
                self._pending = _Pending(kind, _REACH, self._negative, False)
        elif kind in ("or", "and"):
            self._joins = kind
        elif kind == "column":
            self._column = what
        elif kind == "group":
            self._read_group(*what)
        elif kind == "asked":
            self._flags["asked"] = what
        elif kind == "also":
            self._flags["adds"] = True
        elif kind in ("why", "thanks"):
            self._flags[kind] = True
        elif kind == "clear":
            self._flags["clears"] = True
            self._wishes.clear()

    def _read_values(self, values: frozenset[ColumnValue], plural: bool) -> None:
        if self._column is not None:
            values = frozenset(v for v in values if v[0] == self._column) or values
        last = self._wishes[-1] if self._wishes else None
        either = self._joins == "or" or (self._joins == "and" and plural and self._plural)
        if self._negative:
            self._wishes.append(Unwanted(values))
            self._refused = True
        elif either and isinstance(last, Wanted):
            self._wishes[-1] = Wanted(last.values | values)
        else:
            self._wishes.append(Wanted(values))
        self._joins, self._plural = "", plural

    def _read_group(self, name: str, wanted: frozenset[ColumnValue]) -> None:
        self._refused = self._negative
        if not self._negative:
            self._wishes.append(ForGroup(name))
        elif known := frozenset(wanted & self._attributes.spellings.keys()):
            self._wishes.append(Unwanted(known))

    def _read_title(self, places: tuple[int, ...]) -> None:
        pending, self._pending = self._pending, None
        last = self._wishes[-1] if self._wishes else None
        if pending is None:
            if self._joins and isinstance(last, Like):
                self._wishes[-1] = Like((*last.places, *places))
        elif pending.kind != "like":
            self._compare(pending.kind, self._attributes.known_years(places), pending.negative)
        elif not pending.negative:
            self._wishes.append(Like(places))

    def _read_period(self, period: tuple[int, int], number: int) -> int:
        """Reads a period and those that go on with it; returns the number of the next token."""
        since, until = period
        while True:
            after = number
            while after < len(self._tokens) and self._tokens[after].words[0] in _SPANS:
                after += 1
            if after == len(self._tokens) or self._tokens[after].kind != "period":
                break
            low, high = self._tokens[after].what
            since, until, number = min(since, low), max(until, high), after + 1
        pending, self._pending = self._pending, None
        if pending is not None and pending.kind != "like":
            self._compare(pending.kind, [since, until], pending.negative)
        else:
            self._wishes.append(Years(since, until, outside=self._negative))
            self._refused = self._negative
        return number

    def _read_open_end(self, kind: str) -> None:
        """ "1990 or newer"."""
        last = self._wishes[-1] if self._wishes else None
        if isinstance(last, Years):
            newer = kind == "or_newer"
            self._wishes[-1] = Years(last.since, None) if newer else Years(None, last.until)

    def _read_age(self, kind: str) -> None:
        """Newer or older than what was named last; recent or old where nothing was."""
        years, last = self._attributes.known_years(self._latest), self._attributes.last_year
        if kind in ("newer", "older") and years:
            self._compare(f"{kind}_than", years, self._negative)
        elif last is not None:
            way = "newer_than" if kind in ("newer", "recent") else "until"
            self._compare(way, [last - self._recent_years], self._negative)

    def _compare(self, kind: str, years: Sequence[int], negative: bool) -> None:
        """Newer or older than these years."""
        if not years:
            return
        since, until = {
            "newer_than": (max(years) + 1, None),
            "since": (min(years), None),
            "older_than": (None, min(years) - 1),
            "until": (None, max(years)),
        }[kind]
        wish = Years(since, until)
        if negative:  # "not older than 1990"
            self._refused = True
            after = Years(None if until is None else until + 1, None)
            wish = after if since is None else Years(None, since - 1)
        self._wishes.append(wish)

    def _end_comparison(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and pending.relative:
            years = self._attributes.known_years(self._latest)
            self._compare(pending.kind, years, pending.negative)

    def _merged(self) -> tuple[Wish, ...]:
        """The wishes, with one span of years: "newer than 1990 and older than 2000"."""
        spans = [wish for wish in self._wishes if isinstance(wish, Years) and not wish.outside]
        rest = [wish for wish in self._wishes if wish not in spans]
        if spans:
            since = max((span.since for span in spans if span.since is not None), default=None)
            until = min((span.until for span in spans if span.until is not None), default=None)
            rest.append(Years(since, until))
        return tuple(dict.fromkeys(rest))


def _spoken_cues(words: DialogueWords, columns: Sequence[str]) -> dict[Key, tuple[str, Any]]:
    """Phrase → kind of token, and what it names."""
    found: dict[Key, tuple[str, Any]] = {}
    called = (words.item, words.items, *words.also_called)
    for kind, phrases in _CUES.items():
        for phrase in phrases.split(", "):
            for name in called if "{items}" in phrase else ("",):
                found[phrase_key(phrase.replace("{items}", name))] = (kind, None)
    for column, own in words.of_attributes().items():
        if column in columns:
            found |= {phrase_key(cue): ("column", column) for cue in own.cues}
            found |= {phrase_key(cue): ("asked", column) for cue in own.asked}
    found |= {phrase_key(cue): ("asked", words.year) for cue in words.year_asked}
    for name, group in words.of_groups().items():
        found |= {
            phrase_key(cue): ("group", (name, column_values(group.wanted))) for cue in group.cues
        }
    return found


def _plurals(key: Key) -> list[Key]:
    """How English makes several of a word."""
    *before, last = key
    ends = [f"{last}s", f"{last}es"]
    if last.endswith("y"):
        ends.append(f"{last[:-1]}ies")
    return [(*before, end) for end in ends]


def _period(
    folded: Sequence[str], start: int, last_year: int | None
) -> tuple[tuple[int, int], int] | None:
    """A year or decade at a place of a text: its first and last year, and how many pieces it has.

    Of two digits ("the 90s") it is in the latest century that has begun by the catalogue's last
    year.
    """
    word, length = folded[start], 1
    if re.fullmatch(r"\d+0", word) and folded[start + 1 : start + 2] == ["s"]:
        word, length = f"{word}s", 2
    if re.fullmatch(r"(1[89]|20)\d\d", word):
        return (int(word), int(word)), 1
    if re.fullmatch(r"(1[89]|20)\d0s", word):
        return (int(word[:-1]), int(word[:-1]) + 9), length
    short = int(word[:-1]) if re.fullmatch(r"\d0s", word) else _DECADES.get(word)
    if short is None:
        return None
    century = 2000 if last_year is not None and 2000 + short <= last_year else 1900
    return (century + short, century + short + 9), length
