"""Reads what a user says: wishes, items that are named, and what is asked about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from m6rec_jax.dialogue.attributes import ColumnValue, ItemAttributes
from m6rec_jax.dialogue.english import NUMBERS, WORDS
from m6rec_jax.dialogue.misspelt import MisspeltTitles
from m6rec_jax.dialogue.phrases import KnownPhrases, Token, joins_years
from m6rec_jax.dialogue.wishes import ForGroup, Like, Unseen, Unwanted, Wanted, Wish, Years
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
        self._attributes, self._words = attributes, words
        self.corrected = MisspeltTitles(names, self._phrases.tokens).corrected

    def read(self, text: str, latest: Sequence[int] = ()) -> Reading:
        """What a turn says.

        Args:
          text: of the turn.
          latest: places of the items that were named or offered last: "newer" means newer than
            these.
        """
        tokens = self._phrases.tokens(text)
        return _TurnReader(self._attributes, self._words, tokens, latest).read()


# How many words may stand between "newer than" and its year or title.
_REACH = 4


class _Comparison(NamedTuple):
    """One that waits for its year or title.

    Attributes:
      kind: of phrase.
      reach: how many words it may still wait.
      negative: it is refused.
      relative: without either it means what was named last: "newer than that".
    """

    kind: str
    reach: int
    negative: bool
    relative: bool


@dataclasses.dataclass
class _TurnReader:
    """Puts the tokens of one turn together, from left to right."""

    attributes: ItemAttributes
    words: DialogueWords
    tokens: Sequence[Token]
    latest: Sequence[int]
    wishes: list[Wish] = dataclasses.field(default_factory=list)
    reading: Reading = dataclasses.field(default_factory=Reading)
    named: dict[int, None] = dataclasses.field(default_factory=dict)
    liked: dict[int, None] = dataclasses.field(default_factory=dict)
    # Whether what follows is refused, whether something was, and the words since "no".
    negative: bool = False
    refused: bool = False
    since_no: set[str] = dataclasses.field(default_factory=set)
    # Whether titles that follow have not been seen.
    unseen: bool = False
    column: str | None = None
    # "or", or "and" between plurals: the next value is another way to obey.
    joins: str = ""
    plural: bool = False
    # How many of the last wishes are one list so far: "a comedy, drama".
    listed: int = 0
    waiting: _Comparison | None = None
    before: str = ""

    def read(self) -> Reading:
        """What the turn says."""
        place = 0
        while place < len(self.tokens):
            token = self.tokens[place]
            place += 1
            match token.kind:
                case "word":
                    self._read_word(token.words[0])
                case "value":
                    self._read_values(*token.what)
                case "title":
                    self._read_title(token.what)
                case "period":
                    place = self._read_period(token.what, place)
                case _:
                    self._read_cue(token)
            if token.kind != "also":  # "I also like" is "I like"
                self.before = token.words[-1]
            self.since_no.update(token.words)
        self._end_comparison()
        reading = self.reading
        asks = reading.asked is not None or reading.acts & {"why", "good", "about"}
        liked = () if asks else tuple(self.liked)
        return reading._replace(wishes=self._merged(), named=tuple(self.named), liked=liked)

    def _says(self, **fields: object) -> None:
        self.reading = self.reading._replace(**fields)  # type: ignore[arg-type]

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
        before = self.before
        begins = word in WORDS["resumes"] or (
            word in WORDS["after_joints"] and before in (",", "and")
        )
        article = word in ("a", "an")
        # Not in "a horror or a thriller".
        if word != "," and not (begins and not (article and self.joins == "or")):
            return
        # Nothing was refused yet: "no, a comedy", "I am not sure, maybe a comedy".
        at_once = not article if before == "no" else before == "," and not self.refused
        if at_once:
            self.negative = False
        elif word != "," and self.refused:
            self.negative = self.refused = False

    def _resume_after_comma(self, words: Sequence[str]) -> None:
        """ "No horror, from the 90s": what is refused ends there.

        Not in "nothing from the 70s, from the 80s", which has the word twice.
        """
        if self.before == "," and self.refused and self.since_no.isdisjoint(words):
            self.negative = self.refused = False

    def _is_no_comparison(self, waiting: _Comparison, word: str) -> bool:
        """Whether a word ends it: "after work, ...", "since I loved ...", "not older than 20"."""
        if waiting.kind == "like":  # "it looks like we watched Fargo"
            return word in ("i", "we")
        if waiting.relative:  # but not "newer than that one"
            return self.before == "than" and word != "one" and (word.isdigit() or word in NUMBERS)
        return not (word in WORDS["fillers"] | WORDS["near_years"] or word in self.words.called)

    def _read_cue(self, token: Token) -> None:
        kind, what = token.kind, token.what
        if kind not in ("or", "and"):
            self.listed = 0
            if kind not in ("no", "like", "plain"):
                self._resume_after_comma(token.words)
        match kind:
            case "no":
                self.negative, self.refused, self.since_no = True, False, set()
            case "unseen":
                self.wishes.append(Unseen())
                self.unseen = True
            case "newer_than" | "older_than" | "since" | "until":
                self._end_comparison()
                relative = token.words[-1] == "than"
                self.waiting = _Comparison(kind, _REACH, self.negative, relative)
            case "newer" | "older" | "recent" | "old":
                self._read_age(kind, token.words)
            case "or_newer" | "or_older":
                self._read_open_end(kind)
            case "like" if self.before in WORDS["tastes"]:
                self._read_word("like")
            case "like":
                self.waiting = _Comparison(kind, _REACH, self.negative, False)
            case "or" | "and":
                self.joins = kind
            case "column":
                self.column = what
            case "group":
                self._read_group(*what)
            case "asked":
                self._says(asked=what)
            case "also":
                self._says(adds=True)
            case "why" | "thanks" | "bye" | "good" | "about":
                self._says(acts=self.reading.acts | {kind})
            case "clear":
                self._says(clears=True)
                self.wishes.clear()
            case "open":  # but what the turn asks for holds: "a comedy, I don't care which"
                self._says(clears=True)

    def _read_values(self, values: frozenset[ColumnValue], plural: bool) -> None:
        if self.column is not None:
            values = frozenset(v for v in values if v[0] == self.column) or values
        either = self.joins == "or" or (self.joins == "and" and plural and self.plural)
        if self.negative:
            self.wishes.append(Unwanted(values))
            self.refused, self.listed = True, 0
        elif either and self.wishes and isinstance(self.wishes[-1], Wanted):
            size = max(1, self.listed)
            alike = [wish for wish in self.wishes[-size:] if isinstance(wish, Wanted)]
            self.wishes[-size:] = [Wanted(values.union(*(wish.values for wish in alike)))]
            self.listed = 1
        else:
            self.listed = self.listed + 1 if self.before == "," and self.listed else 1
            self.wishes.append(Wanted(values))
        self.joins, self.plural = "", plural

    def _read_group(self, name: str, wanted: frozenset[ColumnValue]) -> None:
        if self.refused and self.joins != "or":
            self.negative = False  # "nothing scary, it is for my kids"
        self.refused = self.negative
        if not self.negative:
            self.wishes.append(ForGroup(name))
            return
        self._says(withdrawn=self.reading.withdrawn | {name})
        if spoken := frozenset(wanted & self.attributes.spellings.keys()):
            self.wishes.append(Unwanted(spoken))
            self.listed = 0

    def _read_title(self, places: tuple[int, ...]) -> None:
        waiting, self.waiting, self.listed = self.waiting, None, 0
        is_liked = not self.negative and not self.unseen
        if waiting is None:
            self.refused |= self.negative
            if self.joins and self.wishes and isinstance(last := self.wishes[-1], Like):
                self.wishes[-1] = Like((*last.places, *places))
        elif waiting.kind != "like":
            is_liked = False
            self._compare(waiting.kind, self.attributes.known_years(places), waiting.negative)
        else:
            is_liked = not waiting.negative
            self.wishes += [Like(places)] if is_liked else []
        self.liked |= dict.fromkeys(places if is_liked else ())
        self.named |= dict.fromkeys(places)
        self.latest = tuple(self.named)

    def _read_period(self, period: tuple[int, int], place: int) -> int:
        """Reads a period and those that go on with it; returns the place of the next token."""
        since, until = period
        while True:
            after = place
            while after < len(self.tokens) and joins_years(self.tokens[after]):
                after += 1
            if after == len(self.tokens) or self.tokens[after].kind != "period":
                break
            low, high = self.tokens[after].what
            since, until, place = min(since, low), max(until, high), after + 1
        waiting, self.waiting, self.listed = self.waiting, None, 0
        if waiting is not None and waiting.kind != "like":
            self._compare(waiting.kind, [since, until], waiting.negative)
        else:
            self.wishes.append(Years(since, until, outside=self.negative))
            self.refused = self.negative
        return place

    def _read_open_end(self, kind: str) -> None:
        """ "1990 or newer"."""
        if self.wishes and isinstance(last := self.wishes[-1], Years):
            newer = kind == "or_newer"
            since, until = (last.since, None) if newer else (None, last.until)
            # "Before 1990 or newer" is all years.
            either = [Years(since, until, last.outside)] if (since, until) != (None, None) else []
            self.wishes[-1:] = either

    def _read_age(self, kind: str, cue: Sequence[str]) -> None:
        """Newer or older than what was named last; recent or old where nothing was."""
        years, last = self.attributes.known_years(self.latest), self.attributes.last_year
        if kind in ("newer", "older") and years:
            if cue[-1] == "old" and last is not None:  # where nothing is newer, of the last year
                years = [min(year, last - 1) for year in years]
            self._compare(f"{kind}_than", years, self.negative)
        elif last is not None:
            way = "newer_than" if kind in ("newer", "recent") else "until"
            self._compare(way, [last - self.words.recent_years], self.negative)

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
        if negative:  # "not older than 1990"
            self.refused = True
            since, until = (
                None if until is None else until + 1,
                None if since is None else since - 1,
            )
        self.wishes.append(Years(since, until))

    def _end_comparison(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None and waiting.relative:
            years = self.attributes.known_years(self.latest)
            self._compare(waiting.kind, years, waiting.negative)

    def _merged(self) -> tuple[Wish, ...]:
        """The wishes, with one span of years: "newer than 1990 and older than 2000"."""
        spans = [wish for wish in self.wishes if isinstance(wish, Years) and not wish.outside]
        rest = [w for w in _last_word(self.wishes) if not isinstance(w, Years) or w.outside]
        since = max((span.since for span in spans if span.since is not None), default=None)
        until = min((span.until for span in spans if span.until is not None), default=None)
        if since is not None and until is not None and since > until:
            # "The 70s, 80s or 90s": no year is of all of them. "Something old or new": any is.
            whole = [(w.since, w.until) for w in spans if None not in (w.since, w.until)]
            since = min((since for since, _ in whole if since is not None), default=None)
            until = max((until for _, until in whole if until is not None), default=None)
        if since is not None or until is not None:
            rest.append(Years(since, until))
        return tuple(dict.fromkeys(rest))


def _last_word(wishes: Sequence[Wish]) -> list[Wish]:
    """Wishes of which what is said last holds, as between turns: "a comedy, but no comedy"."""
    later: dict[type[Wish], set[ColumnValue]] = {Wanted: set(), Unwanted: set()}
    kept: list[Wish] = []
    for wish in reversed(wishes):
        if isinstance(wish, Wanted | Unwanted):
            kind, other = type(wish), Unwanted if isinstance(wish, Wanted) else Wanted
            left = wish.values - later[other]
            later[kind] |= wish.values
            kept += [kind(left)] if left else []
        else:
            kept.append(wish)
    return kept[::-1]
