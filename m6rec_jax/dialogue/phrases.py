"""The phrases that a turn is read by: titles, attribute values, people, and words that join them.

A turn is read from left to right by the longest phrase that is known: titles of the catalogue, its
attribute values (with plurals and synonyms), and those of `english.toml`. A title of several words
is found in any case, one of a single word, or of such words as all texts have, only with its own
capitals: "it" is no film. "It" at the start of a sentence counts as one, since no rule can decide.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

from rapidfuzz import fuzz

from m6rec_jax.dialogue.catalogue import ColumnValue, DialogueCatalogue, Key
from m6rec_jax.metrics.phrases import PhraseFinder, fold, phrase_key, pieces, words
from m6rec_jax.text.title_search import SURE, TitleSearch

ENGLISH = tomllib.loads(resources.files(__package__).joinpath("english.toml").read_text("utf-8"))
_LISTS = {name: listed.split() for name, listed in ENGLISH["words"].items()}
WORDS = {name: frozenset(listed) for name, listed in _LISTS.items()}
# A title of these needs its own capitals.
_COMMON = frozenset[str]().union(
    *(WORDS[n] for n in ("resumes", "tastes", "fillers", "before_years", "spans", "common"))
)
_DECADES = {name: 10 * n for n, name in enumerate(_LISTS["decades"], start=2)}
# From twenty on in tens, which are enough for ages.
NUMBERS = {name: n if n <= 20 else 10 * (n - 18) for n, name in enumerate(_LISTS["numbers"])}
_NUMBER = rf"(?:\d{{1,2}}|{'|'.join(NUMBERS)})"
_PATTERNS = ENGLISH["patterns"]
_YEARS = re.compile(_PATTERNS["years"].replace("{decade}", "|".join(_DECADES)))
# Words and signs of a turn that may speak of somebody.
_REACH = 12


class Token(NamedTuple):
    """A word or sign of a turn, or a phrase that is known."""

    kind: str  # 'word', 'title', 'value', 'period', 'column', 'group', 'asked' or of english.toml
    words: Key
    what: Any = None


class _Meaning(NamedTuple):
    """What a phrase says, if it is written in one of some ways; None: in any."""

    kind: str
    what: Any
    surfaces: set[Key] | None = None


class KnownPhrases:
    """Finds what is known in turns about a catalogue."""

    def __init__(self, catalogue: DialogueCatalogue) -> None:
        self._catalogue = catalogue
        self._titles = TitleSearch(catalogue.names)
        # What a phrase may mean; the first that fits how it is written counts.
        self._meanings: defaultdict[Key, list[_Meaning]] = defaultdict(list)
        for key, meaning in _meanings(catalogue):
            self._meanings[key].append(meaning)
        self._finder = PhraseFinder(self._meanings)
        self._group_of = dict.fromkeys(WORDS["anybody"], "") | {
            " ".join(phrase_key(called)): name
            for name, group in catalogue.words.groups.items()
            for called in group.people
        }
        who = "|".join(map(re.escape, sorted(self._group_of, key=len, reverse=True)))
        fields = {"{who}": who, "{age}": _PATTERNS["age"], "{number}": _NUMBER}
        self._people: list[re.Pattern[str]] = []
        for pattern in _PATTERNS["people"]:
            for field, text in fields.items():
                pattern = pattern.replace(field, text)
            self._people.append(re.compile(pattern))

    def tokens(self, text: str) -> list[Token]:
        """A turn as phrases that are known and words between them, in its order."""
        surface = pieces(re.sub(_PATTERNS["sentence_end"], " ;", text))
        folded = [fold(piece) for piece in surface]
        tokens: list[Token] = []
        start = 0
        while start < len(folded):
            phrase = self._phrase(surface, folded, start)
            # Where the last years are, if only words of a span stand behind: "between 1890 and".
            joining = [t.kind == "until" or t.words[0] in WORDS["spans"] for t in reversed(tokens)]
            span = 1 + joining.index(False) if False in joining else 0
            before = tokens[-span] if span and tokens[-span].kind == "period" else None
            token = (
                self._period(tokens, folded, start, phrase, before if span > 1 else None)
                or self._dated(phrase, folded, start)
                or self._somebody(folded, start)
                or Token("word", (folded[start],))
            )
            start += len(token.words)
            if token.kind == "period" and before is not None:
                (since, until), (low, high) = before.what, token.what
                token = before._replace(what=(min(since, low), max(until, high)))
                del tokens[-span:]
            tokens.append(token)
        return tokens

    def _phrase(self, surface: list[str], folded: list[str], start: int) -> Token | None:
        """The longest known phrase at a place, if it is one as it is written."""
        for key in self._finder.at(folded, start):
            written = tuple(surface[start : start + len(key)])
            for kind, what, surfaces in self._meanings[key]:
                if surfaces is None or written in surfaces:
                    return Token(kind, key, what)
        return None

    def _dated(self, phrase: Token | None, folded: list[str], start: int) -> Token | None:
        """A title with the year in brackets behind it, where there is one."""
        if phrase is None or phrase.kind != "title":
            return phrase
        end = start + len(phrase.words)
        after = tuple(folded[end : end + 3])
        if not re.fullmatch(r"\( \d{4} \)", " ".join(after)):
            return phrase
        places = [p for p in phrase.what if self._catalogue.year_of(p) == int(after[1])]
        return Token("title", phrase.words + after, tuple(places) or phrase.what)

    def _period(
        self,
        tokens: Sequence[Token],
        folded: list[str],
        start: int,
        phrase: Token | None,
        begun: Token | None,
    ) -> Token | None:
        """A year or decade at a place, unless the phrase there is meant; `begun` is the span of
        years that it may go on with.

        Of two digits ("the 90s") it is in the latest century that has begun by the catalogue's
        last year.
        """
        match = _YEARS.match(" ".join(folded[start : start + 2]))
        last = tokens[-1].words[-1] if tokens else ""
        decade_of = tokens[-2:-1] if last in WORDS["parts_of_decades"] else tokens[-1:]
        if match is None or any(t.words[-1] in WORDS["owners"] for t in decade_of):
            return None  # "my wife is in her late 30s"
        first = int(match["year"] or match["digits"] or _DECADES[match["name"]])
        if first < 100:
            first += 2000 if first + 2000 <= (self._catalogue.last_year or 0) else 1900
        years = (first, first if match["year"] else first + 9)
        key = tuple(folded[start : start + 1 + match[0].count(" ")])
        if phrase is None or len(phrase.words) > len(key):
            meant = phrase is None and last != "("
        else:  # "1984" after "from" is a year, also where a title is called so
            meant = last in WORDS["before_years"] or (begun is not None and begun.what <= years)
        return Token("period", key, years) if meant else None

    def _somebody(self, folded: list[str], start: int) -> Token | None:
        """Somebody for whom something is wanted: of a group, unless an age says otherwise."""
        text = " ".join(folded[start : start + _REACH])
        for match in filter(None, (pattern.match(text) for pattern in self._people)):
            group, age = self._group_of.get(match["who"] or "", ""), match["age"]
            end = start + match[0].count(" ") + 1
            if age and (match["link"] or match["unit"]):
                group = self._group_of_age(group, _youngest(age, match["unit"] or ""))
                if end < len(folded):  # "a ten-year-old film", "ten-year-old comedies"
                    meanings = (self._meanings[key][0] for key in self._finder.at(folded, end))
                    called = self._catalogue.words.called
                    if folded[end] in called or any(m.kind == "value" for m in meanings):
                        return None
                return Token("group" if group else "plain", tuple(folded[start:end]), group)
            if group and not age:  # else a number by itself, or anybody
                return Token("group", tuple(folded[start:end]), group)
        return None

    def _group_of_age(self, called: str, age: int) -> str:
        """The group of somebody of an age who is called as those of a group are."""
        groups = self._catalogue.words.groups
        if called and not groups[called].under:
            return called
        return next((name for name, group in groups.items() if age < group.under), "")

    def corrected(self, text: str) -> str:
        """A turn with misspelt titles as the catalogue has them.

        Corrected is what is as likely a title as what is typed into a search, and no title as it
        stands.
        """
        titles = "\n".join(" ".join(t.words) for t in self.tokens(text) if t.kind == "title")
        clauses = re.split(_PATTERNS["around_titles"], text)
        for number in range(0, len(clauses), 2):
            begins = not number or clauses[number - 1] in ".;!?"
            title = self._title(clauses[number], titles, begins)
            joined = re.split(r"(\b(?:and|or)\b)", clauses[number])
            if title is None and len(joined) > 1:
                title = "".join(
                    self._title(part, titles, begins and not place) or part
                    for place, part in enumerate(joined)
                )
            clauses[number] = title or clauses[number]
        return "".join(clauses)

    def _title(self, text: str, titles: str, begins: bool) -> str | None:
        """The title that a part of a turn means, but for those that the turn has; None: none."""
        content = [word for word in words(text) if word not in _COMMON]
        kinds = {token.kind for token in self.tokens(text) if token.words[0] not in _COMMON}
        if "title" in kinds or "word" not in kinds or " ".join(words(text)) in titles:
            return None
        for place in self._titles.find(text, 1, SURE):
            name = self._catalogue.names[place]
            # One word is part of many titles. It needs a capital that is no sentence's.
            whole = fuzz.ratio(text.strip().casefold(), name.casefold()) >= 100 * SURE
            if len(content) > 1 or (whole and not begins and not text.islower()):
                return f" {name} "
        return None


def _meanings(catalogue: DialogueCatalogue) -> Iterator[tuple[Key, _Meaning]]:
    """Phrases with what they mean: of several meanings the first that fits is meant."""
    yield from _values(catalogue)
    titles: defaultdict[Key, list[int]] = defaultdict(list)
    for place, name in enumerate(catalogue.names):
        titles[phrase_key(name)].append(place)
    titles.pop((), None)
    for key, places in titles.items():
        written = {tuple(pieces(catalogue.names[place])) for place in places}
        yield key, _Meaning("title", tuple(places), written)
    said = catalogue.words
    cues = [("group", name, group.cues) for name, group in said.groups.items()]
    cues.append(("asked", said.year, said.year_asked))
    for column, spoken in catalogue.columns.items():
        cues += [("asked", column, spoken.asked), ("column", column, spoken.cues)]
    for kind, what, phrases in cues:
        yield from ((phrase_key(cue), _Meaning(kind, what)) for cue in phrases)
    for kind, listed in ENGLISH["phrases"].items():
        for phrase in listed.split(","):
            for called in said.called if "{items}" in phrase else ("",):
                yield phrase_key(phrase.replace("{items}", called)), _Meaning(kind, None)
    # In any case those of words that say something.
    common = _COMMON | said.called
    for key, places in titles.items():
        if len(key) > 1 and not common.issuperset(key):
            yield key, _Meaning("title", tuple(places))


def _values(catalogue: DialogueCatalogue) -> Iterator[tuple[Key, _Meaning]]:
    """Phrases and the values that they mean, and whether they are plurals."""
    values: defaultdict[Key, set[ColumnValue]] = defaultdict(set)
    # Names of one word, as they are written.
    surfaces: defaultdict[Key, set[Key]] = defaultdict(set)
    for (column, key), spelling in catalogue.spellings.items():
        values[key].add((column, key))
        if catalogue.columns[column].names and len(key) == 1:
            surfaces[key].add(tuple(pieces(spelling)))
    for phrase, value in catalogue.words.synonyms.items():
        if meant := values.get(phrase_key(value)):
            values[phrase_key(phrase)] |= meant
    plurals: defaultdict[Key, set[ColumnValue]] = defaultdict(set)
    for (*first, last), meant in values.items():
        yield (
            (*first, last),
            _Meaning("value", (frozenset(meant), False), surfaces.get((*first, last))),
        )
        plain = {value for value in meant if not catalogue.columns[value[0]].names}
        ends = [f"{last}s", f"{last}es", *([f"{last[:-1]}ies"] if last.endswith("y") else [])]
        for plural in [(*first, end) for end in ends] if plain else ():
            if plural not in values:
                plurals[plural] |= plain
    for key, meant in plurals.items():
        yield key, _Meaning("value", (frozenset(meant), True))


def _youngest(age: str, unit: str) -> int:
    """The age of the youngest, in years."""
    if "month" in unit:
        return 0
    ages = re.findall(rf"\b{_NUMBER}\b", age)
    return min(int(one) if one.isdigit() else NUMBERS[one] for one in ages)
