"""Reads what a user says: wishes, items that are named, and what is asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from m6rec_jax.dialogue.attributes import ColumnValue, ItemAttributes
from m6rec_jax.dialogue.misspelt import MisspeltTitles
from m6rec_jax.dialogue.people import NUMBERS
from m6rec_jax.dialogue.phrases import (
    AFTER_COMMA,
    AFTER_JOINTS,
    FILLERS,
    NEAR_YEARS,
    RESUMES,
    STOPS,
    TASTES,
    KnownPhrases,
    Token,
    joins_years,
)
from m6rec_jax.dialogue.wishes import (
    ForGroup,
    Like,
    Unseen,
    Unwanted,
    Wanted,
    Wish,
    Years,
)
from m6rec_jax.dialogue.words import DialogueWords


class Reading(NamedTuple):
    """What a turn says.

    Attributes:
      wishes: in its order.
      named: places of the items that it names, in its order.
      liked: those of them that are not refused, compared, unseen or asked about.
      adds: the wishes come beside earlier ones.
      clears: no earlier wish holds any longer.
      withdrawn: names of the groups that nothing is wanted for.
      asked: a column whose values are asked for; None: none is.
      acts: of 'why', 'thanks', 'bye', 'good' (is an item?) and 'about' (what is it?) those that it
        says.
    """

    wishes: tuple[Wish, ...] = ()
    named: tuple[int, ...] = ()
    liked: tuple[int, ...] = ()
    adds: bool = False
    clears: bool = False
    withdrawn: frozenset[str] = frozenset()
    asked: str | None = None
    acts: frozenset[str] = frozenset()


class DialogueReader:
    """Reads turns about one catalogue.

    Args:
      names, attributes, words: as `KnownPhrases`.
    """

    def __init__(
        self, names: Sequence[str], attributes: ItemAttributes, words: DialogueWords
    ) -> None:
        self._phrases = KnownPhrases(names, attributes, words)
        self.corrected = MisspeltTitles(names, self._phrases.tokens).corrected
        self.attributes, self.recent_years = attributes, words.recent_years
        self.near_years = NEAR_YEARS | {words.item, words.items, *words.also_called}

    def read(self, text: str, latest: Sequence[int] = ()) -> Reading:
        """What a turn says.

        Args:
          text: of the turn.
          latest: places of the items that were named or offered last: "newer" means newer than
            these.
        """
        return _TurnReader(self, self._phrases.tokens(text), latest).read()


# How many words may stand between "newer than" and its year or title.
_REACH = 4


class _Pending(NamedTuple):
    """A comparison that waits for its year or title.

    Attributes:
      kind: key of `CUES`.
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
        self, reader: DialogueReader, tokens: Sequence[Token], latest: Sequence[int]
    ) -> None:
        self._reader, self._attributes = reader, reader.attributes
        self._tokens, self._latest = tokens, latest
        self._wishes: list[Wish] = []
        # Every value that some wish of the kind may hold.
        self._said: dict[type[Wanted | Unwanted], set[ColumnValue]] = {
            Wanted: set(),
            Unwanted: set(),
        }
        self._flags: dict[str, Any] = {}
        self._acts: set[str] = set()
        # Whether what follows is refused, and whether something was.
        self._negative = self._refused = False
        # The words since "no".
        self._since_no: set[str] = set()
        # Whether titles that follow have not been seen.
        self._unseen = False
        self._column: str | None = None
        # "or", or "and" between plurals: the next value is another way to obey.
        self._joins = ""
        self._plural = False
        # How many of the last wishes are one list so far: "a comedy, drama".
        self._listed = 0
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
            if token.kind in ("period", "title"):
                self._listed = 0
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
            if token.kind != "also":  # "I also like" is "I like"
                self._before = token.words[-1]
            self._since_no.update(token.words)
        self._end_comparison()
        acts = frozenset(self._acts)
        asks = "asked" in self._flags or acts & {"why", "good", "about"}
        own = () if asks else tuple(liked)
        return Reading(self._merged(), tuple(named), own, acts=acts, **self._flags)

    def _is_liked(self) -> bool:
        """Whether a title here is one that the user likes."""
        if self._pending is not None:
            return self._pending.kind == "like" and not self._pending.negative
        return not self._negative and not self._unseen

    def _read_word(self, word: str) -> None:
        if word == ",":
            # Also where nothing is known of what was refused: "nothing violent, ...".
            self._refused |= self._negative and self._before != "no"
        elif word in AFTER_COMMA:
            self._resume_after_comma((word,))
        # Not in "a horror or a thriller".
        goes_on = word in ("a", "an") and self._joins == "or"
        begins = word in RESUMES or (word in AFTER_JOINTS and self._before in (",", "and"))
        resumes = word == "," or (begins and not goes_on)
        if word in STOPS:
            self._end_comparison()
            self._negative = self._refused = self._unseen = False
        elif resumes and self._resumes_at_once(word):
            self._negative = False
        elif word != "," and resumes and self._refused:
            self._negative = self._refused = False
        if word in (",", "i", "but"):
            self._unseen = False
        if self._pending is not None and self._is_no_comparison(self._pending, word):
            self._pending = None
        if self._pending is not None:
            self._pending = self._pending._replace(reach=self._pending.reach - 1)
            if not self._pending.reach:
                self._end_comparison()
        if word not in FILLERS:
            self._column = None
            if word != ",":
                self._joins, self._plural, self._listed = "", False, 0

    def _is_no_comparison(self, pending: _Pending, word: str) -> bool:
        """Whether a word ends it: "after work, ...", "since I loved ...", "not older than 20"."""
        if pending.kind == "like":  # "it looks like we watched Fargo"
            return word in ("i", "we")
        if pending.relative:  # but not "newer than that one"
            return self._before == "than" and word != "one" and (word.isdigit() or word in NUMBERS)
        return word not in FILLERS and word not in self._reader.near_years

    def _resume_after_comma(self, words: Sequence[str]) -> None:
        """ "No horror, from the 90s": what is refused ends there.

        Not in "nothing from the 70s, from the 80s", which has the word twice.
        """
        if self._before == "," and self._refused and self._since_no.isdisjoint(words):
            self._negative = self._refused = False

    def _resumes_at_once(self, word: str) -> bool:
        """Whether nothing was refused yet: "no, a comedy", "I am not sure, maybe a comedy"."""
        if self._before == "no":
            return word not in ("a", "an")
        return self._before == "," and not self._refused

    def _read_cue(self, token: Token) -> None:
        kind, what = token.kind, token.what
        if kind not in ("or", "and"):
            self._listed = 0
            if kind not in ("no", "like", "plain"):
                self._resume_after_comma(token.words)
        if kind == "no":
            self._negative, self._refused = True, False
            self._since_no = set()
        elif kind == "unseen":
            self._wishes.append(Unseen())
            self._unseen = True
        elif kind in ("newer_than", "older_than", "since", "until"):
            self._end_comparison()
            relative = token.words[-1] == "than"
            self._pending = _Pending(kind, _REACH, self._negative, relative)
        elif kind in ("newer", "older", "recent", "old"):
            self._read_age(kind, token.words)
        elif kind in ("or_newer", "or_older"):
            self._read_open_end(kind)
        elif kind == "like":
            if self._before in TASTES:
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
        elif kind in ("why", "thanks", "bye", "good", "about"):
            self._acts.add(kind)
        elif kind == "clear":
            self._flags["clears"] = True
            self._wishes.clear()
        elif kind == "open":  # but what the turn asks for holds: "a comedy, I don't care which"
            self._flags["clears"] = True

    def _read_values(self, values: frozenset[ColumnValue], plural: bool) -> None:
        if self._column is not None:
            values = frozenset(v for v in values if v[0] == self._column) or values
        last = self._wishes[-1] if self._wishes else None
        either = self._joins == "or" or (self._joins == "and" and plural and self._plural)
        if self._negative:
            self._refuse(values)
            self._refused = True
        elif either and isinstance(last, Wanted):
            for _ in range(max(1, self._listed)):
                wish = self._wishes.pop()
                values |= wish.values if isinstance(wish, Wanted) else frozenset()
            self._want(values)
            self._listed = 1
        else:
            self._listed = self._listed + 1 if self._before == "," and self._listed else 1
            self._want(values)
        self._joins, self._plural = "", plural

    # "A comedy, but no comedy": what is said last holds, as between turns.

    def _want(self, values: frozenset[ColumnValue]) -> None:
        self._put(Wanted(values), Unwanted)

    def _refuse(self, values: frozenset[ColumnValue]) -> None:
        self._put(Unwanted(values), Wanted)
        self._listed = 0

    def _put(self, wish: Wanted | Unwanted, other: type[Wanted | Unwanted]) -> None:
        if not wish.values.isdisjoint(self._said[other]):
            self._wishes = list(_without(self._wishes, other, wish.values))
            self._said[other] -= wish.values
        self._wishes.append(wish)
        self._said[type(wish)] |= wish.values

    def _read_group(self, name: str, wanted: frozenset[ColumnValue]) -> None:
        if self._refused and self._joins != "or":
            self._negative = False  # "nothing scary, it is for my kids"
        self._refused = self._negative
        if not self._negative:
            self._wishes.append(ForGroup(name))
            return
        self._flags["withdrawn"] = self._flags.get("withdrawn", frozenset()) | {name}
        if known := frozenset(wanted & self._attributes.spellings.keys()):
            self._refuse(known)

    def _read_title(self, places: tuple[int, ...]) -> None:
        pending, self._pending = self._pending, None
        last = self._wishes[-1] if self._wishes else None
        if pending is None:
            self._refused |= self._negative
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
            while after < len(self._tokens) and joins_years(self._tokens[after]):
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
            since, until = (last.since, None) if newer else (None, last.until)
            # "Before 1990 or newer" is all years.
            either = [Years(since, until, last.outside)] if (since, until) != (None, None) else []
            self._wishes[-1:] = either

    def _read_age(self, kind: str, cue: Sequence[str]) -> None:
        """Newer or older than what was named last; recent or old where nothing was."""
        years, last = self._attributes.known_years(self._latest), self._attributes.last_year
        if kind in ("newer", "older") and years:
            if cue[-1] == "old" and last is not None:  # where nothing is newer, of the last year
                years = [min(year, last - 1) for year in years]
            self._compare(f"{kind}_than", years, self._negative)
        elif last is not None:
            way = "newer_than" if kind in ("newer", "recent") else "until"
            self._compare(way, [last - self._reader.recent_years], self._negative)

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
        rest = [w for w in self._wishes if not isinstance(w, Years) or w.outside]
        since = max((span.since for span in spans if span.since is not None), default=None)
        until = min((span.until for span in spans if span.until is not None), default=None)
        if since is not None and until is not None and since > until:
            # "The 70s, 80s or 90s": no year is of all of them. "Something old or new": any is.
            whole = [span for span in spans if None not in (span.since, span.until)]
            since = min((span.since for span in whole if span.since is not None), default=None)
            until = max((span.until for span in whole if span.until is not None), default=None)
        if since is not None or until is not None:
            rest.append(Years(since, until))
        return tuple(dict.fromkeys(rest))


def _without(
    wishes: Sequence[Wish], kind: type[Wanted] | type[Unwanted], values: frozenset[ColumnValue]
) -> list[Wish]:
    """Wishes of a kind lose values, and go where they have no others."""
    left = [kind(wish.values - values) if isinstance(wish, kind) else wish for wish in wishes]
    return [wish for wish in left if not isinstance(wish, kind) or wish.values]
