"""`m6rec demo --edge`: recommendations by the model that comes with the package, without network.

The packed model (docs/edge.md) reads the films that one likes, finds those that are watched after
them by its two towers, and orders these by how likely they are liked. Vectors of the catalogue are
made once and kept in the data folder. A reason is what a film shares with the liked ones; it is
looked up, not written by the model.
"""

from __future__ import annotations

import difflib
import re
import textwrap
import time
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m6rec_jax.data.sources import default_cache_dir
from m6rec_jax.engine.index_files import catalogue_fingerprint
from m6rec_jax.engine.packed_file import read_packed
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.answering import ScoredItem
from m6rec_jax.recommender import Recommender, load
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import common_values

MODEL = Path(__file__).parent / "edge_model" / "films.m6rec"
LIKED = ("Alien", "Blade Runner", "The Terminator")
# So many films at least are found by the towers and ordered by the scorer, and so many may be asked
# for at most.
_FOUND, MOST = 64, 100
_DAY = 86_400.0
# Titles at least so alike are taken for misspelt ones.
_MISSPELT, _NEAR = 0.85, 0.6


class Recommended(NamedTuple):
    """A recommended item.

    Attributes:
      item: it.
      score: probability that it is liked.
      reason: what it shares with liked ones; empty where that is nothing.
    """

    item: Item
    score: float
    reason: str


class TitleFinder:
    """Items by what people call them.

    Args:
      items: with an attribute `title` and perhaps a `year`.
      known: how well known each is, by id; of several of one title the best known is meant.
    """

    def __init__(self, items: Mapping[str, Item], known: Mapping[str, int]) -> None:
        self._by_title: dict[str, list[Item]] = defaultdict(list)
        for item in sorted(items.values(), key=lambda item: -known.get(item.id, 0)):
            self._by_title[_plain(str(item.attributes["title"]))].append(item)

    def find(self, title: str) -> Item:
        """The item of a title, "Alien" or "Alien (1979)", in any case and nearly any spelling.

        Raises:
          ConfigError: there is none; names near titles.
        """
        dated = re.fullmatch(r"(.+?)\s*\((\d{4})\)", title.strip())
        wanted, year = (_plain(dated[1]), int(dated[2])) if dated else (_plain(title), None)
        near = difflib.get_close_matches(wanted, self._by_title, n=3, cutoff=_NEAR)
        begun = [name for name in self._by_title if wanted and name.startswith(f"{wanted} ")]
        # Another number is another film of a series, not a slip of the pen.
        alike = near and difflib.SequenceMatcher(None, near[0], wanted).ratio() >= _MISSPELT
        if alike and _numbers(near[0]) == _numbers(wanted):
            for item in self._by_title[near[0]]:
                if year in (None, item.attributes.get("year")):
                    return item
        names = [named(item) for key in (*near, *begun[:3]) for item in self._by_title[key][:3]]
        hint = f"; near: {', '.join(dict.fromkeys(names))}" if names else ""
        raise ConfigError(f"the catalogue has no film {title!r}{hint}")


def named(item: Item) -> str:
    """Title and year."""
    year = item.attributes.get("year")
    return f"{item.attributes['title']} ({year})" if year else str(item.attributes["title"])


class EdgeDemo:
    """The packed model, with vectors of its catalogue.

    Args:
      path: of a packed file with its catalogue, one task of scoring and one of retrieval.

    Attributes:
      about: see `engine.packed_file.Packed`.
      items: the catalogue by id.
      times_seen: how often items occur in the training data, by id.
      last_time: of what they count, unix seconds; requests are about later moments.
      titles: finds items.
    """

    def __init__(self, path: Path = MODEL) -> None:
        self.about = read_packed(path).about
        fresh = load(path)
        tasks = {kind: name for name, kind in fresh.tasks.items()}
        self._scoring, self._retrieval = tasks["scoring"], tasks["retrieval"]
        model = fresh.service.model.fingerprint(self._retrieval)
        catalogue = catalogue_fingerprint(fresh.service.parts.data(self._retrieval).item_texts())
        index = default_cache_dir() / "edge_indexes" / f"{model[:16]}-{catalogue[:16]}"
        if not index.is_dir():
            index.parent.mkdir(parents=True, exist_ok=True)
            build_index(index, path, task=self._retrieval)
        self.recommender = Recommender(fresh.service.over(data={"index": str(index)}))
        self._data = self.recommender.service.parts.data(self._retrieval)
        assert self._data.statistics is not None  # the file carries them
        self.last_time = self._data.statistics.last_time
        seen = self._data.statistics.items
        self.times_seen = {id_: seen.count[number] for id_, number in seen.index.items()}
        self.items = self._data.items
        self.titles = TitleFinder(self.items, self.times_seen)
        self._explanations = self._data.template.writing["explanations"]
        self._common = common_values(self.items.values(), self._explanations.shared)

    def recommend(
        self, liked: Sequence[Item], disliked: Sequence[Item] = (), k: int = 10
    ) -> list[Recommended]:
        """The k items, at most `MOST`, likeliest to be liked of those that may be watched next."""
        now = time.time()
        values = [*((item, 0.0) for item in disliked), *((item, 1.0) for item in liked)]
        history = [
            {"item": item.id, "time": now - (len(values) - n) * _DAY, "value": value}
            for n, (item, value) in enumerate(values)
        ]
        found = self.retrieve(max(_FOUND, k), history=history, time=now)
        scored = self.score([one.id for one in found], history=history, time=now)
        best = sorted(scored, key=lambda one: -one.score)[:k]
        return [self._recommended(self.items[one.id], one.score, liked) for one in best]

    def retrieve(self, k: int, **asked: Any) -> list[ScoredItem]:
        """`Recommender.retrieve` by the file's task."""
        return self.recommender.retrieve(k, task=self._retrieval, **asked)

    def score(self, candidates: Sequence[str], **asked: Any) -> list[ScoredItem]:
        """`Recommender.score` by the file's task."""
        return self.recommender.score(candidates, task=self._scoring, **asked)

    def _recommended(self, item: Item, score: float, liked: Sequence[Item]) -> Recommended:
        written = self._explanations.written(item, liked, self._common)
        return Recommended(item, score, written.text if written else "")


def run_edge_demo(liked: Sequence[str], disliked: Sequence[str], k: int) -> None:
    """Prints what the model is, and recommendations for films by their titles.

    Raises:
      ConfigError: no film has such a title.
      CheckpointError: the file is damaged.
    """
    begin = time.perf_counter()
    demo = EdgeDemo()
    films, others = ([demo.titles.find(title) for title in titles] for titles in (liked, disliked))
    found = demo.recommend(films, others, k)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    demo.recommend(films, others, k)
    again = 1000 * (time.perf_counter() - begin)
    for name, told in demo.about["trained_on"].items():
        print(f"Trained on {name} ({told['licence']}): {told['description']}.")
    print(textwrap.fill(f"It cannot: {demo.about.get('limits', 'nobody said')}", 100))
    print(f"\nLiked: {', '.join(map(named, films))}")
    if others:
        print(f"Disliked: {', '.join(map(named, others))}")
    print("\n      liked  film")
    for rank, one in enumerate(found, start=1):
        print(f"{rank:3}. {one.score:6.0%}  {named(one.item)}{one.reason and '  '}{one.reason}")
    print(
        f"\n{MODEL.stat().st_size:,} bytes, {len(demo.items):,} films. First answer after "
        f"{first:.1f} seconds, with loading and compiling; the same again in {again:.0f} ms."
    )


def _numbers(plain: str) -> list[str]:
    return re.findall(r"\d|\b(?:i[vx]|v?i{1,3}|v|x)\b", plain)


def _plain(title: str) -> str:
    """Lower-case words and digits, without accents and a leading article."""
    letters = unicodedata.normalize("NFKD", title)
    text = "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()
    words = re.sub(r"[^\w]+|_", " ", text.replace("&", " and ").replace("'", "")).split()
    plain = " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "a", "an") else words)
    return plain or title.strip()
