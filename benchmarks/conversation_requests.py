"""Do the recommendations of a dialogue obey what is asked for, and is every reply true?

    python -m benchmarks.conversation_requests RUN --name NAME

200 requests are drawn by a seed from the catalogue: of a genre, a person, a decade, newer than a
year or a film, not seen before, for children. A third of them are worded as the reader of turns
(`m6rec_jax.dialogue.reading`) was not made for. Who asks for what was not seen has seen the ten
items that the model would recommend first. The first three recommendations count; what obeys is
judged item by item from the catalogue's columns, by none of the reader's or the filter's code. The
same requests are answered without the filter, too. Any run that `m6rec chat` takes will do.

Rows go to `benchmarks/results/conversation_requests.json`, and two dialogues of eight turns, drawn
by the seed, to `docs/conversation_examples.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, results_path, told_rows
from m6rec_jax import configuration
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Item

RESULTS = "conversation_requests"
EXAMPLES = ROOT / "docs" / "conversation_examples.md"
GIN_FILE = "gin_configs/examples/film_dialogue.gin"
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
        if kind in _COLUMNS:
            column = _COLUMNS[kind]
            value = self.value(column)
            text = phrase.format(value)
            return Request(kind, text, held_out, lambda i: value in self.of(i, column))
        last = max(self.years)
        if kind == "decade":
            decade = int(self.rng.choice(sorted({y // 10 * 10 for y in self.years if y})))
            return Request(
                kind,
                phrase.format(decade),
                held_out,
                lambda i: self.years[i] // 10 * 10 == decade,
            )
        if kind == "newer than a year":
            year = int(self.rng.integers(last - 30, last - 1))
            least = year + ("since {}" not in phrase)
            text = phrase.format(*[year] * phrase.count("{}"))
            return Request(kind, text, held_out, lambda i: self.years[i] >= least)
        if kind == "newer than a film":
            place = self.place(lambda i: 0 < self.years[i] < last - 1)
            newest = self._newest_of_name(place)
            return Request(
                kind, phrase.format(self._titles[place]), held_out, lambda i: self.years[i] > newest
            )
        if kind == "not seen":
            return Request(kind, phrase, held_out, lambda i: True)
        wanted, unwanted = self._children
        return Request(
            kind,
            phrase,
            held_out,
            lambda i: self._has_any(i, wanted) and not self._has_any(i, unwanted),
        )

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

    def _newest_of_name(self, place: int) -> int:
        return max(
            y for y, t in zip(self.years, self._titles, strict=True) if t == self._titles[place]
        )

    def _has_any(self, place: int, named: Mapping[str, Sequence[str]]) -> bool:
        return any(set(values) & set(self.of(place, column)) for column, values in named.items())

    def _values_of_many(self, column: str) -> list[str]:
        counts: dict[str, int] = {}
        for place in range(len(self._items)):
            for value in self.of(place, column):
                counts[value] = counts.get(value, 0) + 1
        # "Jr." is no name that anybody asks for.
        return sorted(v for v, n in counts.items() if n >= LEAST_ITEMS and not v.endswith("."))


def judge(conversation: Any, requests: Sequence[Request], grammar: Truth) -> list[dict[str, Any]]:
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
        dialogue = conversation.resumed([], request.history)
        dialogue.hear(request.text)
        unnamed = {*range(len(conversation.catalogue.titles))} - set(dialogue.named)
        (answer,) = conversation.recommend([dialogue])
        told["obey"] = [*map(request.obeys, _places(answer)[:FIRST])]
        told["unfiltered"] = [*map(request.obeys, unfiltered(conversation, request, FIRST))]
        none_left = not any(map(request.obeys, unnamed))
        told["true"] = grammar.holds(answer.reply, none_left=none_left)
        found.append(told)
    return found


def unfiltered(conversation: Any, request: Request, number: int) -> list[int]:
    """Places of what the model recommends first where nothing but what was named is left out."""
    from m6rec_jax.dialogue.wishes import Obeying

    found: list[int] = []
    while len(found) < number:
        dialogue = conversation.resumed([], request.history)
        dialogue.hear(request.text)
        allowed = np.ones(len(conversation.catalogue.titles), bool)
        allowed[[*dialogue.named, *found]] = False
        dialogue.obeying = lambda allowed=allowed: Obeying(allowed, (), ())
        (answer,) = conversation.recommend([dialogue])
        if not (more := _places(answer)):
            break
        found += more
    return found[:number]


def having_seen(conversation: Any, request: Request) -> Request:
    """The request of a user who has seen and liked what the model would recommend first."""
    seen = unfiltered(conversation, request, SEEN)
    history = tuple(f"liked {conversation.catalogue.titles[place]}" for place in seen)
    return dataclasses.replace(request, history=history, obeys=lambda i: i not in seen)


def _places(answer: Any) -> list[int]:
    way = answer.written or answer.retrieved
    return [] if way is None else list(way.places)


class Truth:
    """Whether a reply is of the grammar, and what it says of an item is the item's own.

    Args:
      items, titles: of the catalogue.
      words: how people speak of them.
    """

    # That name an item, and what they say of it.
    _OF_ITEMS = (
        re.compile(
            r"(?P<none>I know no more .+?, only .+?\. )?(?:How about |You could try |I recommend )"
            r"(?P<item>.+?)[.?](?: It is (?P<said>an? .+)\.)?"
        ),
        re.compile(r"You asked for .+?, and (?P<item>.+) is (?P<said>an? .+)\."),
        re.compile(r"(?P<item>.+) is (?P<said>an? .+?)(?:, and you asked for .+)?\."),
        re.compile(r"(?:That is not known of|I do not know that of) (?P<item>.+)\."),
    )
    _OF_NONE = (
        *("You are welcome.", "You are welcome. Enjoy it.", "Gladly."),
        "It goes with what you told me.",
    )

    def __init__(self, items: Sequence[Item], titles: Sequence[str], words: DialogueWords) -> None:
        from m6rec_jax.metrics.faithfulness import AttributeDictionary

        self._items, self._places = items, dict[str, list[int]]()
        for place, title in enumerate(titles):
            self._places.setdefault(title, []).append(place)
        spoken = words.of_attributes()
        self._columns = list(spoken)
        values = {c: {v for item in items for v in self._of(item, c)} for c in self._columns}
        self._dictionary = AttributeDictionary(values, neutral=titles)
        asked = {own.ask for own in spoken.values() if own.ask}
        asked.add(f"What would you like? You may name {words.items} that you liked.")
        asked |= {f"Hello. {question}" for question in asked}
        self._of_none = {*self._OF_NONE, *asked}
        self._all_named = f"I know no more {words.items}, only those that we spoke of."

    def holds(self, reply: str, *, none_left: bool = True) -> bool:
        """Of any reply; `none_left`: it may say that no more is known of what was asked for."""
        if reply == self._all_named:
            return none_left
        if reply in self._of_none:
            return True
        for form in self._OF_ITEMS:
            found = form.fullmatch(reply)
            if found is None or found["item"] not in self._places:
                continue
            told = found.groupdict()
            said, _, alike = (told.get("said") or "").partition(", like ")
            return (none_left or not told.get("none")) and all(
                any(self._is_true(self._items[place], said) for place in self._places[title])
                for title in (found["item"], *self._named(alike))
            )
        return False

    def _named(self, text: str) -> list[str]:
        """The titles of an enumeration; itself where it is none."""
        found, left = [], text
        for title in sorted(self._places, key=len, reverse=True):
            if title in left:
                found.append(title)
                left = left.replace(title, "")
        return found if not left.replace(" and ", "").strip(", ") else [text]

    def _is_true(self, item: Item, said: str) -> bool:
        own = {value for column in self._columns for value in self._of(item, column)}
        named = [set(m.values.values()) for m in self._dictionary.mentions(said)]
        years = set(re.findall(r"from (\d{4})", said))
        return all(values & own for values in named) and years <= {str(item.attributes["year"])}

    def _of(self, item: Item, column: str) -> tuple[str, ...]:
        values: Any = item.attributes.get(column) or ()
        return tuple(values)


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
        "true_replies": 100 * sum(row["true"] for row in told) / len(told),
    }


def script(maker: RequestMaker, titles: Sequence[str]) -> list[str]:
    """Eight turns of a user, drawn."""
    held_out = [bool(maker.rng.integers(2)) for _ in range(4)]
    return [
        "Hello!",
        f"I liked {titles[maker.place(lambda i: maker.years[i] > 0)]}.",
        maker.request("genre", held_out[0]).text,
        "Something newer?",
        "Who directed it?",
        maker.request("decade", held_out[1]).text,
        maker.request("for children", held_out[2]).text,
        "Thank you!",
    ]


def example(conversation: Any, turns: Sequence[str], grammar: Truth) -> tuple[str, list[bool]]:
    """A dialogue as Markdown, and which of its replies are true."""
    dialogue = conversation.resumed([])
    lines, true = ["| | |", "|---|---|"], []
    for turn in turns:
        answer = dialogue.answer(turn)
        way = answer.written or answer.retrieved
        offered = " · ".join(way.titles) if way else ""
        lines.append(f"| **user** | {turn} |")
        lines.append(f"| **system** | {answer.reply}{f'<br>*{offered}*' if offered else ''} |")
        true.append(grammar.holds(answer.reply))
    return "\n".join(lines), true


EXAMPLES_HEAD = """\
<!-- Written by `python -m benchmarks.conversation_requests`. Change that, not this file. -->
# Two dialogues

Eight turns each ({model}), drawn by the seeds below from the wordings of
`benchmarks/conversation_requests.py`. In italics all that was recommended.
"""


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
    from m6rec_jax.bank.loading import load_with_bank
    from m6rec_jax.serving.chat import open_conversation

    configuration.parse_config([GIN_FILE], [])
    conversation = open_conversation(load_with_bank(run), titles=TITLES)
    catalogue = conversation.catalogue
    groups = DialogueWords().of_groups()["children"]
    rng = np.random.default_rng(SEED)
    maker = RequestMaker(catalogue.items, catalogue.titles, (groups.wanted, groups.unwanted), rng)
    kinds = list(PHRASES)
    asked = [
        maker.request(kinds[n % len(kinds)], n // len(kinds) % 3 == 2) for n in range(REQUESTS)
    ]
    truth = Truth(catalogue.items, catalogue.titles, DialogueWords())
    told = judge(conversation, asked, truth)
    for row in told:
        if not all(row["obey"]) or not row["true"]:
            print(row["kind"], "held out" if row["held_out"] else "", row["text"], sep=" | ")
    figures = {
        kind: shares([row for row in told if kind in ("all", row["kind"])])
        for kind in ("all", *kinds)
    }
    examples, true = [EXAMPLES_HEAD.format(model=name)], list[bool]()
    for seed in (SEED, SEED + 1):
        maker.rng = np.random.default_rng([seed, 1])
        text, own = example(conversation, script(maker, catalogue.titles), truth)
        examples.append(f"## Seed {seed}\n\n{text}\n")
        true += own
    EXAMPLES.write_text("\n".join(examples), encoding="utf-8")
    figures["two dialogues"] = {"true_replies": 100 * sum(true) / len(true)}
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
