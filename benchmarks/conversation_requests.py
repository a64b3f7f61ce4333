"""Do the recommendations of a dialogue obey what is asked for?

    python -m benchmarks.conversation_requests RUN --name NAME

200 requests are drawn by a seed from the catalogue: of a genre, a person, a decade, newer than a
year or a film, not seen before, for children. A third of them are worded as the reader of turns
(`m6rec_jax.dialogue.reading`) was not made for. Who asks for what was not seen has seen the ten
items that the model would recommend first. The first three recommendations count; what obeys is
judged item by item from the catalogue's columns, by none of the reader's or the filter's code. The
same requests are answered without the filter, too. Any run that `m6rec chat` takes will do.

Rows go to `benchmarks/results/conversation_requests.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.command_line import errors_told
from benchmarks.results_file import add_rows, results_path, told_rows
from m6rec_jax import configuration
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Item

RESULTS = "conversation_requests"
GIN_FILE = "gin_configs/dialogue/films.gin"
# How items are called.
TITLES = "{title}[ ({year})]"
REQUESTS, SEED = 200, 0
FIRST = 3
# So many of the model's first recommendations have been seen, where it is asked for others.
SEEN = 10
# A value is asked for where at least so many items have it.
LEAST_ITEMS = 10
# Kinds that ask for a value, and whose.
_COLUMNS = {"genre": "genres", "actor": "cast", "director": "director"}
# Kind → wordings; the second ones are not among those that the reader was made with, though single
# words of theirs may be, such as "children".
PHRASES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "genre": (
        (
            "I would like a {} film.",
            "Show me {} films.",
            "Any good {} movies?",
            "something with {}",
        ),
        (
            "In the mood for a bit of {} tonight",
            "My friends and I live for {} pictures",
            "What {} would you put on for a Friday evening?",
        ),
    ),
    "actor": (
        ("A film with {}", "Something starring {}, please.", "movies with {}"),
        (
            "I can watch {} in anything",
            "What has {} been in?",
            "My favourite actor is {}, what should I watch?",
        ),
    ),
    "director": (
        ("A film by {}", "Something directed by {}, please."),
        ("What else has {} directed?", "I am going through the work of {}"),
    ),
    "decade": (
        ("A film from the {}s", "movies made in the {}s", "Something of the {}s, please."),
        ("I grew up in the {}s and want to go back", "What came out in the {}s?"),
    ),
    "newer than a year": (
        ("Something newer than {}", "films made after {}", "Show me movies since {}."),
        (
            "My collection ends with {}, what did I miss since then?",
            "{} is too old for me already, only what came after {}",
        ),
    ),
    "newer than a film": (
        ("Something newer than {}", "I liked {}. Something newer?"),
        ("{} was good, but have you got anything more recent?", "{} feels dated. Newer ones?"),
    ),
    "not seen": (
        ("Something that I have not seen", "films I haven't seen yet", "Anything new to me?"),
        ("I have been through my list. What else is there?", "Only what is unseen so far, please"),
    ),
    "for children": (
        (
            "Something for children",
            "a film for my kids",
            "What can the whole family watch?",
            "My niece of six is visiting, what shall we watch?",
        ),
        (
            "The twins of my neighbour sleep over, they start school in autumn",
            "We have children at home tonight",
            "It must be fit for a child",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A turn of a user.

    Attributes:
      kind: key of `PHRASES`.
      text: what is said.
      held_out: whether in words that the reader was not made with.
      obeys: whether an item, by its place, is what was asked for; of "not seen" see `having_seen`.
      history: what is known of the user.
    """

    kind: str
    text: str
    held_out: bool
    obeys: Callable[[int], bool]
    history: tuple[str, ...] = ()


class RequestMaker:
    """Draws requests about a catalogue of films.

    Args:
      items, titles: of the catalogue.
      children: column → values: what films for children have, and what they lack.
      rng: what decides.

    Raises:
      DataError: too few films have a genre, an actor, a director or a year.
    """

    def __init__(
        self,
        items: Sequence[Item],
        titles: Sequence[str],
        children: tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]],
        rng: np.random.Generator,
    ) -> None:
        self._items, self._titles, self._children, self.rng = items, titles, children, rng
        self._common = {
            column: self._values_of_many(column) for column in ("genres", "cast", "director")
        }
        self.years = [int(str(item.attributes.get("year") or 0)) for item in items]
        if not all(self._common.values()) or not any(self.years):
            raise DataError("too few items have a value of 'genres', 'cast', 'director' or 'year'")

    def request(self, kind: str, held_out: bool) -> Request:
        """A request of a kind."""
        phrases = PHRASES[kind][held_out]
        phrase = phrases[self.rng.integers(len(phrases))]
        last, fill = max(self.years), ""
        obeys: Callable[[int], bool] = lambda i: True  # noqa: E731
        if kind in _COLUMNS:
            column = _COLUMNS[kind]
            fill = self.value(column)
            obeys = lambda i: fill in self.of(i, column)  # noqa: E731
        elif kind == "decade":
            decade = int(self.rng.choice(sorted({y // 10 * 10 for y in self.years if y})))
            fill, obeys = str(decade), lambda i: self.years[i] // 10 * 10 == decade
        elif kind == "newer than a year":
            year = int(self.rng.integers(last - 30, last - 1))
            least = year + ("since {}" not in phrase)
            fill, obeys = str(year), lambda i: self.years[i] >= least
        elif kind == "newer than a film":
            place = self.place(lambda i: 0 < self.years[i] < last - 1)
            fill = self._titles[place]
            newest = max(self.years[i] for i, t in enumerate(self._titles) if t == fill)
            obeys = lambda i: self.years[i] > newest  # noqa: E731
        elif kind == "for children":
            wanted, unwanted = self._children
            obeys = lambda i: self._has_any(i, wanted) and not self._has_any(i, unwanted)  # noqa: E731
        return Request(kind, phrase.replace("{}", fill), held_out, obeys)

    def value(self, column: str) -> str:
        """A value that many items have."""
        return str(self.rng.choice(self._common[column]))

    def place(self, among: Callable[[int], bool] = lambda _: True) -> int:
        """An item."""
        while not among(place := int(self.rng.integers(len(self._items)))):
            pass
        return place

    def of(self, place: int, column: str) -> tuple[str, ...]:
        """An item's values."""
        values: Any = self._items[place].attributes.get(column) or ()
        return tuple(values)

    def _has_any(self, place: int, named: Mapping[str, Sequence[str]]) -> bool:
        return any(set(values) & set(self.of(place, column)) for column, values in named.items())

    def _values_of_many(self, column: str) -> list[str]:
        counts: dict[str, int] = {}
        for place in range(len(self._items)):
            for value in self.of(place, column):
                counts[value] = counts.get(value, 0) + 1
        # "Jr." is no name that anybody asks for.
        return sorted(v for v, n in counts.items() if n >= LEAST_ITEMS and not v.endswith("."))


def judge(conversation: Any, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """What was recommended for each request, with the filter and without it, and if it obeys."""
    found = []
    for request in requests:
        if request.kind == "not seen":
            request = having_seen(conversation, request)
        told: dict[str, Any] = {
            "kind": request.kind,
            "held_out": request.held_out,
            "text": request.text,
        }
        dialogue = conversation.resumed([("USER", request.text)], request.history)
        (answer,) = conversation.recommend([dialogue])
        told["obey"] = [*map(request.obeys, _places(answer)[:FIRST])]
        told["unfiltered"] = [*map(request.obeys, unfiltered(conversation, request, FIRST))]
        found.append(told)
    return found


def unfiltered(conversation: Any, request: Request, number: int) -> list[int]:
    """Places of what the model recommends first where nothing but what was named is left out."""
    from m6rec_jax.dialogue.wishes import Obeying

    found: list[int] = []
    while len(found) < number:
        dialogue = conversation.resumed([("USER", request.text)], request.history)
        allowed = np.ones(len(conversation.titles), bool)
        allowed[[*dialogue.state.named, *found]] = False
        conversation.obeying = lambda _, allowed=allowed: Obeying(allowed, (), ())
        (answer,) = conversation.recommend([dialogue])
        del conversation.obeying
        if not (more := _places(answer)):
            break
        found += more
    return found[:number]


def having_seen(conversation: Any, request: Request) -> Request:
    """The request of a user who has seen and liked what the model would recommend first."""
    seen = unfiltered(conversation, request, SEEN)
    history = tuple(f"liked {conversation.titles[place]}" for place in seen)
    return dataclasses.replace(request, history=history, obeys=lambda i: i not in seen)


def _places(answer: Any) -> list[int]:
    way = answer.written or answer.retrieved
    return [] if way is None else list(way.places)


def shares(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures over some requests, in percent."""

    def percent(key: str, rows: Sequence[Mapping[str, Any]]) -> float:
        flags = [flag for row in rows for flag in row[key]]
        return 100 * sum(flags) / max(1, len(flags))

    held_out = [row for row in told if row["held_out"]]
    return {
        "requests": float(len(told)),
        "obey": percent("obey", told),
        "obey_held_out": percent("obey", held_out),
        "obey_without_filter": percent("unfiltered", told),
    }


@errors_told
def main() -> int:
    """Measures; returns the exit status."""
    parser = argparse.ArgumentParser(description="Do recommendations of a dialogue obey?")
    parser.add_argument("run", help="MODEL_DIR of a run that `m6rec chat` takes")
    parser.add_argument("--name", required=True, help="what the run is called in the tables")
    options = parser.parse_args()
    measure(options.run, options.name)
    return 0


def measure(run: str, name: str) -> None:
    """Asks all requests and writes what came of them; raises M6RecError where it cannot."""
    from m6rec_jax.serving.conversations import open_conversation
    from m6rec_jax.serving.service import Service

    configuration.parse_config([GIN_FILE], [])
    conversation = open_conversation(Service.open(run), titles=TITLES)
    groups = DialogueWords().groups["children"]
    rng = np.random.default_rng(SEED)
    items, words = conversation.catalogue.items, (groups.wanted, groups.unwanted)
    maker = RequestMaker(items, conversation.titles, words, rng)
    kinds = list(PHRASES)
    asked = [
        maker.request(kinds[n % len(kinds)], n // len(kinds) % 3 == 2) for n in range(REQUESTS)
    ]
    told = judge(conversation, asked)
    for row in told:
        if not all(row["obey"]):
            print(row["kind"], "held out" if row["held_out"] else "", row["text"], sep=" | ")
    figures = {
        kind: shares([row for row in told if kind in ("all", row["kind"])])
        for kind in ("all", *kinds)
    }
    rows = told_rows(
        figures,
        dataset=name,
        split="first three",
        seed=SEED,
        gin_file=GIN_FILE,
    )
    add_rows(results_path(RESULTS), rows)


if __name__ == "__main__":
    sys.exit(main())
