"""The phrases that a turn is read by: titles, attribute values, and English words that join them.

A turn is read from left to right by the longest phrase that is known: titles of the catalogue, its
attribute values (with plurals and synonyms), and the words below. A title of several words is found
in any case, one of a single word, or of such words as all texts have, only with its own capitals:
"it" is no film. "It" at the start of a sentence counts as one, since no rule can decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from m6rec_jax.dialogue.attributes import ColumnValue, ItemAttributes, Key
from m6rec_jax.dialogue.people import People
from m6rec_jax.dialogue.wishes import column_values
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.metrics.phrases import PhraseFinder, fold, phrase_key, pieces

# Words that a turn's meaning depends on; `{items}` stands for every word for an item.
CUES = {
    "no": "no, not, don't, dont, doesn't, isn't, aren't, nothing, never, without, hate, hates, "
    "hated, dislike, disliked, didn't like, avoid, except, nor, neither, other than, rather than, "
    "instead of, anything but, anyone but, anybody but, everything but, everyone but, all but, "
    "tired of, can't stand, cannot stand, can't watch, cannot watch, "
    "won't watch, wouldn't watch, can't take, can't handle, didn't enjoy, don't care for, "
    "i don't care for, less",
    "unseen": "not seen, not yet seen, not already seen, haven't seen, have not seen, "
    "haven't yet seen, haven't already seen, never seen, never watched, not watched, "
    "haven't watched, didn't see, unseen, new to me, don't know yet, do not know yet",
    "newer_than": "newer than, more recent than, later than, after",
    "older_than": "older than, earlier than, before, prior to",
    "since": "since",
    "until": "until, up to",
    "or_newer": "or newer, or later, or more recent, and later, onwards, onward",
    "or_older": "or older, or earlier, and earlier",
    "newer": "newer, more recent, more modern, not that old, not so old, too old, less old",
    "older": "older, not that new, not so new, too new, too modern",
    "recent": "something new, something modern, new {items}, modern {items}, recent, a new one, "
    "new ones, newest, latest",
    "old": "something old, something classic, old {items}, classic {items}, an old one, old ones",
    "like": "like, similar to, in the style of, reminds me of, along the lines of",
    "also": "also, as well, in addition",
    "or": "or",
    "and": "and",
    "plain": "why not, as well as, more or less, don't you, why don't, isn't there, aren't there, "
    "nothing but, not only, don't mind, don't know, no thanks, no idea, no problem, "
    "doesn't matter, can't get enough, never get tired of, older brother, older sister, "
    "older kids, older children, older son, older sons, older daughter, older daughters, "
    "not just, never mind the year, "
    "never mind the decade, never mind the genre, never mind the actors, never mind the director, "
    "i don't care who, i don't care what, i don't care about, i don't care if, i don't care how, "
    "i don't care when, i don't care where, for example, for instance, in particular",
    "why": "why",
    "thanks": "thanks, thank you, thx, cheers, great choice, sounds good, sounds great",
    "bye": "bye, goodbye, good bye, see you, good night, that is all, that's all",
    "good": "any good, is it good, is that good, worth watching, worth it, worth seeing, good one",
    "about": "what is it about, what's it about, what is that about, tell me more, more about it, "
    "tell me about it",
    "clear": "start over, never mind, forget that, forget it",
    "open": "surprise me, anything goes, anything is fine, i don't care, i don't care which, "
    "i don't care what you, whatever you like",
}


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


# After something that was refused, these begin what is wanted.
RESUMES = _set_of(
    "but want wants like love loves prefer give show looking something anything someone instead "
    "rather i we please how what a an maybe perhaps prefers likes loves "
    "ideally preferably"
)
# After a comma or "and" these do, too: "less horror and more comedy".
AFTER_JOINTS = _set_of("more only just watch")
# After a comma, too: "no horror, from the 90s".
AFTER_COMMA = _set_of("from of in between with by for")
# Before "like", these make it a taste in place of a comparison.
TASTES = _set_of("i we you they would d really do don t not")
# These leave open what goes together.
FILLERS = _set_of("the a an year years my of any other all")
_BEFORE_YEARS = _set_of("from in of than year since the after before until between")
_PARTS_OF_DECADES = _set_of("early mid late")
_OWNERS = _set_of("my your his her our their")
# Between "after" and its year or title, beside words that leave it open.
NEAR_YEARS = _set_of(
    "about around early late mid at least roughly approximately start beginning end release "
    "classic original favourite favorite january february march april may june july august "
    "september october november december"
)
_SPANS = _set_of("and or to until till through the")
COMMON = (
    RESUMES
    | TASTES
    | FILLERS
    | _BEFORE_YEARS
    | _SPANS
    | _set_of(
        "no it is me us him her he she was are be been have has had can could will would see seen "
        "for on at by with about out up down who when where why which here there some one two new "
        "old good best less more only just very not if so as its your our their time also"
    )
)
STOPS = frozenset(".;!?")
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
    """A piece of a turn, or a phrase that is known."""

    kind: str  # 'word', 'title', 'value', 'period', 'column', 'group', 'asked' or a key of CUES
    words: Key
    what: Any = None


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
        self._attributes = attributes
        self._titles: dict[Key, list[int]] = {}
        # Of phrases that need their own capitals, as they are written.
        self._surfaces: dict[Key, set[Key]] = {}
        for place, name in enumerate(names):
            key = phrase_key(name)
            if key:
                self._titles.setdefault(key, []).append(place)
                self._surfaces.setdefault(key, set()).add(tuple(pieces(name)))
        self._items = {words.item, words.items, *words.also_called}
        self._common = COMMON | self._items
        self._groups = words.of_groups()
        self._people = People(self._groups)
        self._values = self._spoken_values(words)
        self._cues = _spoken_cues(words, attributes.columns)
        keys = [*self._titles, *self._values, *self._cues]
        self._finder = PhraseFinder(keys)

    def tokens(self, text: str) -> list[Token]:
        """A turn as phrases that are known and words between them, in its order."""
        surface = pieces(_SENTENCE_END.sub(" ;", text))
        folded = [fold(piece) for piece in surface]
        tokens: list[Token] = []
        start = 0
        while start < len(folded):
            dated = _period(folded, start, self._attributes.last_year)
            before = tokens[-1].words[-1] if tokens else ""
            token = None
            for key in self._finder.at(folded, start):
                token = self._known(key, tuple(surface[start : start + len(key)]))
                if token:
                    break
            owner = before
            if before in _PARTS_OF_DECADES and len(tokens) > 1:
                owner = tokens[-2].words[-1]
            if owner in _OWNERS:  # "my wife is in her late 30s"
                dated = None
            # "1984" after "from" is a year, also where a title is called so.
            if dated is not None and (
                before in _BEFORE_YEARS or _goes_on(tokens, dated[0])
                if token is not None and len(token.words) <= dated[1]
                else token is None and before != "("
            ):
                token = Token("period", tuple(folded[start : start + dated[1]]), dated[0])
            if token is not None and token.kind == "title":
                end = start + len(token.words)
                token = self._narrowed(token, folded[end : end + 3])
            token = token or self._somebody(folded, start)
            if token is None:
                token = Token("word", (folded[start],))
            tokens.append(token)
            start += len(token.words)
        return tokens

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

    def _known(self, key: Key, surface: Key) -> Token | None:
        """A phrase, if it is one as it is written."""
        if key in self._values and (
            key not in self._named_values or surface in self._named_values[key]
        ):
            return Token("value", key, self._values[key])
        title = key in self._titles and Token("title", key, tuple(self._titles[key]))
        if title and surface in self._surfaces[key]:
            return title
        if key in self._cues:
            kind, what = self._cues[key]
            return Token(kind, key, what)
        # In other capitals than its own a title needs words that say something.
        return title if title and len(key) > 1 and not self._common.issuperset(key) else None

    def _somebody(self, folded: list[str], start: int) -> Token | None:
        """Somebody for whom something is wanted."""
        found = self._people.at(folded, start)
        if found is None:
            return None
        name, length, is_aged = found
        end = start + length
        words = tuple(folded[start:end])
        if is_aged and end < len(folded):  # "a ten-year-old film", "ten-year-old comedies"
            values = any(key in self._values for key in self._finder.at(folded, end))
            if values or folded[end] in self._items:
                return None
        if not name:
            return Token("plain", words)
        wanted = column_values(self._groups[name].wanted)
        return Token("group", words, (name, wanted))

    def _narrowed(self, token: Token, after: Sequence[str]) -> Token:
        """A title with the year in brackets behind it, where there is one."""
        if len(after) < 3 or after[0] != "(" or after[2] != ")" or not _YEAR.fullmatch(after[1]):
            return token
        places: tuple[int, ...] = token.what
        own = [place for place in places if self._attributes.year_of(place) == int(after[1])]
        return Token("title", (*token.words, *after[:3]), tuple(own) or places)


def _spoken_cues(words: DialogueWords, columns: Sequence[str]) -> dict[Key, tuple[str, Any]]:
    """Phrase → kind of token, and what it names."""
    found: dict[Key, tuple[str, Any]] = {}
    called = (words.item, words.items, *words.also_called)
    for kind, phrases in CUES.items():
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


def joins_years(token: Token) -> bool:
    """Whether it stands between the years of one span: "from 1990 up to the 2000s"."""
    return token.kind == "until" or token.words[0] in _SPANS


def _goes_on(tokens: Sequence[Token], years: tuple[int, int]) -> bool:
    """Whether years go on with a span: "between 1890 and 1900"."""
    before = next((token for token in reversed(tokens) if not joins_years(token)), None)
    if before is None or before.kind != "period" or before is tokens[-1]:
        return False
    return bool(before.what <= years)


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
