"""Reads what a user says: wishes, items that are named, and what is asked about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

from m6rec_jax.dialogue.catalogue import ColumnValue, DialogueCatalogue
from m6rec_jax.dialogue.phrases import NUMBERS, WORDS, KnownPhrases, Token
from m6rec_jax.dialogue.wishes import ForGroup, Like, Unseen, Values, Wish, Years, last_word

# How many of the catalogue's last years are recent.
_RECENT_YEARS = 10
# After so many words a comparison has no year or title any more.
_REACH = 4
_COMPARED: Mapping[str, Callable[[Sequence[int]], Years]] = {
    "newer_than": lambda years: Years(since=max(years) + 1),
    "since": lambda years: Years(since=min(years)),
    "older_than": lambda years: Years(until=min(years) - 1),
    "until": lambda years: Years(until=max(years)),
}


@dataclasses.dataclass
class Reading:
    """What a turn says: wishes and places of items, each in its order."""

    wishes: tuple[Wish, ...] = ()
    named: dict[int, None] = dataclasses.field(default_factory=dict)
    # Those that are not refused, compared, unseen or asked about.
    liked: dict[int, None] = dataclasses.field(default_factory=dict)
    adds: bool = False  # the wishes come beside earlier ones
    clears: bool = False  # no earlier wish holds any longer
    withdrawn: set[str] = dataclasses.field(default_factory=set)  # groups nothing is wanted for
    asked: str | None = None  # a column whose values are asked for
    # Of 'why', 'thanks', 'bye', 'good' (is an item?) and 'about' (what is it?) those that it says.
    acts: set[str] = dataclasses.field(default_factory=set)


class DialogueReader:
    """Reads turns about a catalogue."""

    def __init__(self, catalogue: DialogueCatalogue) -> None:
        self.catalogue = catalogue
        self._phrases = KnownPhrases(catalogue)
        self.corrected = self._phrases.corrected

    def read(self, text: str, latest: Sequence[int] = ()) -> Reading:
        """What a turn says, where the items at the places `latest` were named or offered last:
        "newer" means newer than these.
        """
        return _TurnReader(self.catalogue, latest).read(self._phrases.tokens(text))


class _Comparison(NamedTuple):
    """ "Newer than" (a key of `_COMPARED`) or "like", which waits for its year or title."""

    kind: str
    negative: bool
    relative: bool = False  # without a title it means what was named last: "newer than that"
    reach: int = _REACH


@dataclasses.dataclass
class _TurnReader:
    """Puts the tokens of one turn together, from left to right."""

    catalogue: DialogueCatalogue
    latest: Sequence[int]
    wishes: list[Wish] = dataclasses.field(default_factory=list)
    reading: Reading = dataclasses.field(default_factory=Reading)
    negative: bool = False  # what follows is refused
    refused: bool = False  # something was
    since_no: set[str] = dataclasses.field(default_factory=set)  # words since "no"
    unseen: bool = False  # titles that follow have not been seen
    column: str | None = None  # of the next value
    # "or", or "and" between plurals: the next value is another way to obey.
    joins: str = ""
    plural: bool = False
    listed: int = 0  # of the last wishes, that are one list so far: "a comedy, drama"
    waiting: _Comparison | None = None
    before: str = ""

    def read(self, tokens: Sequence[Token]) -> Reading:
        """What the turn says."""
        for token in tokens:
            self._read(token)
            if token.kind != "also":  # "I also like" is "I like"
                self.before = token.words[-1]
            self.since_no.update(token.words)
        self._end_comparison()
        reading = self.reading
        reading.wishes = _merged(self.wishes)
        if reading.asked is not None or reading.acts & {"why", "good", "about"}:
            reading.liked.clear()
        return reading

    def _read(self, token: Token) -> None:
        kind, what = token.kind, token.what
        if kind not in ("word", "value", "title", "period", "or", "and"):
            self.listed = 0
            if kind not in ("no", "like", "plain"):
                self._resume_after_comma(token.words)
        match kind:
            case "word":
                self._read_word(token.words[0])
            case "value":
                self._read_values(*what)
            case "title":
                self._read_title(what)
            case "period":
                self._read_period(what)
            case "no":
                self.negative, self.refused, self.since_no = True, False, set()
            case "unseen":
                self.wishes.append(Unseen())
                self.unseen = True
            case "newer_than" | "older_than" | "since" | "until":
                self._end_comparison()
                self.waiting = _Comparison(kind, self.negative, token.words[-1] == "than")
            case "newer" | "older" | "recent" | "old":
                self._read_age(kind, token.words[-1])
            case "or_newer" | "or_older":
                self._read_open_end(newer=kind == "or_newer")
            case "like" if self.before in WORDS["tastes"]:
                self._read_word("like")
            case "like":
                self.waiting = _Comparison(kind, self.negative)
            case "or" | "and":
                self.joins = kind
            case "column":
                self.column = what
            case "group":
                self._read_group(what)
            case "asked":
                self.reading.asked = what
            case "also":
                self.reading.adds = True
            case "why" | "thanks" | "bye" | "good" | "about":
                self.reading.acts.add(kind)
            case "clear" | "open":
                self.reading.clears = True
                if kind == "clear":  # but "a comedy, I don't care which"
                    self.wishes.clear()

    def _read_word(self, word: str) -> None:
        if word == ",":
            # Also where nothing is known of what was refused: "nothing violent, ...".
            self.refused |= self.negative and self.before != "no"
        elif word in WORDS["after_comma"]:
            self._resume_after_comma((word,))
        if word in ".;!?":
            self._end_comparison()
            self.negative = self.refused = self.unseen = False
        else:
            self._resume(word)
        if word in (",", "i", "but"):
            self.unseen = False
        if self.waiting is not None:
            self.waiting = self.waiting._replace(reach=self.waiting.reach - 1)
            if self._is_no_comparison(self.waiting, word):
                self.waiting = None
            elif not self.waiting.reach:
                self._end_comparison()
        if word not in WORDS["fillers"]:
            self.column = None
            if word != ",":
                self.joins, self.plural, self.listed = "", False, 0

    def _resume(self, word: str) -> None:
        """Ends what is refused where a word begins what is wanted."""
        before, article = self.before, word in ("a", "an")
        joint = word in WORDS["after_joints"] and before in (",", "and")
        # Not in "a horror or a thriller".
        is_other = article and self.joins == "or"
        if word != "," and (is_other or not (joint or word in WORDS["resumes"])):
            return
        # Nothing was refused yet: "no, a comedy", "I am not sure, maybe a comedy".
        if not article if before == "no" else before == "," and not self.refused:
            self.negative = False
        elif word != "," and self.refused:
            self.negative = self.refused = False

    def _resume_after_comma(self, words: Sequence[str]) -> None:
        """ "No horror, from the 90s" refuses no years; "nothing from the 70s, from the 80s", which
        has the word twice, does.
        """
        if self.before == "," and self.refused and self.since_no.isdisjoint(words):
            self.negative = self.refused = False

    def _is_no_comparison(self, waiting: _Comparison, word: str) -> bool:
        """Whether a word ends it: "after work, ...", "since I loved ...", "not older than 20"."""
        if waiting.kind == "like":  # "it looks like we watched Fargo"
            return word in ("i", "we")
        if waiting.relative:  # but not "newer than that one"
            return self.before == "than" and word != "one" and (word.isdigit() or word in NUMBERS)
        called = self.catalogue.words.called
        return word not in WORDS["fillers"] | WORDS["near_years"] | called

    def _read_values(self, values: frozenset[ColumnValue], plural: bool) -> None:
        if self.column is not None:
            values = frozenset(v for v in values if v[0] == self.column) or values
        either = self.joins == "or" or (self.joins == "and" and plural and self.plural)
        if self.negative:
            self.wishes.append(Values(values, refused=True))
            self.refused, self.listed = True, 0
        elif either and self.wishes and _is_wanted(self.wishes[-1]):
            size = max(1, self.listed)
            alike = [wish.values for wish in self.wishes[-size:] if _is_wanted(wish)]
            self.wishes[-size:] = [Values(values.union(*alike))]
            self.listed = 1
        else:
            self.listed = self.listed + 1 if self.before == "," and self.listed else 1
            self.wishes.append(Values(values))
        self.joins, self.plural = "", plural

    def _read_group(self, name: str) -> None:
        if self.refused and self.joins != "or":
            self.negative = False  # "nothing scary, it is for my kids"
        self.refused = self.negative
        if not self.negative:
            self.wishes.append(ForGroup(name))
            return
        self.reading.withdrawn.add(name)
        wanted, _ = self.catalogue.groups[name]
        if spoken := wanted & self.catalogue.spellings.keys():
            self.wishes.append(Values(frozenset(spoken), refused=True))

    def _read_title(self, places: tuple[int, ...]) -> None:
        waiting, self.waiting, self.listed = self.waiting, None, 0
        is_liked = not self.negative and not self.unseen
        if waiting is None:
            self.refused |= self.negative
            if self.joins and self.wishes and isinstance(last := self.wishes[-1], Like):
                self.wishes[-1] = Like((*last.places, *places))
        elif waiting.kind != "like":
            is_liked = False
            self._compare(waiting.kind, self.catalogue.known_years(places), waiting.negative)
        elif is_liked := not waiting.negative:
            self.wishes.append(Like(places))
        self.reading.liked |= dict.fromkeys(places if is_liked else ())
        self.reading.named |= dict.fromkeys(places)
        self.latest = tuple(self.reading.named)

    def _read_period(self, years: tuple[int, int]) -> None:
        waiting, self.waiting, self.listed = self.waiting, None, 0
        if waiting is not None and waiting.kind != "like":
            self._compare(waiting.kind, years, waiting.negative)
        else:
            self.wishes.append(Years(*years, outside=self.negative))
            self.refused = self.negative

    def _read_open_end(self, newer: bool) -> None:
        """ "1990 or newer"."""
        if self.wishes and isinstance(last := self.wishes[-1], Years):
            since, until = (last.since, math.inf) if newer else (-math.inf, last.until)
            # "Before 1990 or newer" is all years.
            is_all = since == -until
            self.wishes[-1:] = [] if is_all else [Years(since, until, last.outside)]

    def _read_age(self, kind: str, word: str) -> None:
        """Newer or older than what was named last; recent or old where nothing was."""
        years, last = self.catalogue.known_years(self.latest), self.catalogue.last_year
        if last is None:
            return
        if kind in ("newer", "older") and years:
            if word == "old":  # where nothing is newer, of the last year
                years = [min(year, last - 1) for year in years]
            self._compare(f"{kind}_than", years, self.negative)
        else:
            way = "newer_than" if kind in ("newer", "recent") else "until"
            self._compare(way, [last - _RECENT_YEARS], self.negative)

    def _compare(self, kind: str, years: Sequence[int], negative: bool) -> None:
        """Newer or older than these years; where they are not known, than any."""
        if not years:
            return
        span = _COMPARED[kind](years)
        if negative:  # "not older than 1990"
            self.refused = True
            newer = span.until == math.inf
            span = Years(until=span.since - 1) if newer else Years(since=span.until + 1)
        self.wishes.append(span)

    def _end_comparison(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None and waiting.relative:
            years = self.catalogue.known_years(self.latest)
            self._compare(waiting.kind, years, waiting.negative)


def _merged(wishes: Sequence[Wish]) -> tuple[Wish, ...]:
    """Wishes with one span of years: "newer than 1990 and older than 2000"."""
    spans = [wish for wish in wishes if isinstance(wish, Years) and not wish.outside]
    rest = [one for one in reversed(last_word(reversed(wishes))) if one and one not in spans]
    since = max((span.since for span in spans), default=-math.inf)
    until = min((span.until for span in spans), default=math.inf)
    if since > until:
        # "The 70s, 80s or 90s": no year is of all of them. "Something old or new": any is.
        whole = [s for s in spans if math.isfinite(s.since + s.until)] or [Years()]
        since, until = min(s.since for s in whole), max(s.until for s in whole)
    span = Years(since, until)
    return tuple(dict.fromkeys(rest if span == Years() else [*rest, span]))


def _is_wanted(wish: Wish) -> TypeGuard[Values]:
    return isinstance(wish, Values) and not wish.refused
