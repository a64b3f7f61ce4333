"""`m6rec demo --edge`: recommendations by the model that comes with the package, without network.

The packed model (docs/edge.md) reads the films that one likes, finds those that are watched after
them by its two towers, and orders these by how likely they are liked. It runs in numpy, since
importing JAX and compiling would take most of the time. A reason is what a film shares with the
liked ones; it is looked up, not written by the model.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.engine.programs.numpy_model import NumpyModel
from m6rec_jax.engine.programs.packed_archive import read_archive, write_files
from m6rec_jax.errors import ConfigError
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestParser
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.text.records import Item
from m6rec_jax.text.rows import packed_candidates, source_row
from m6rec_jax.text.title_search import SURE, TitleSearch
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.writing_templates import WritingTemplate, common_values

MODEL = Path(__file__).parent / "edge_model" / "films.m6rec"
LIKED = ("Alien", "Blade Runner", "The Terminator")
# The towers look among so many films, the best known ones, and find so many at least for the
# scorer to order; so many may be asked for at most.
_WELL_KNOWN, _FOUND, MOST = 2000, 64, 100
_DAY = 86_400.0


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


def named(item: Item) -> str:
    """Title and year."""
    year = item.attributes.get("year")
    return f"{item.attributes['title']} ({year})" if year else str(item.attributes["title"])


class EdgeDemo:
    """The packed model and its catalogue.

    Args:
      path: of a packed file with its catalogue, one task of scoring and one of retrieval.

    Attributes:
      about: see `engine.programs.packed_archive.Archive`.
      items: the catalogue by id.
      times_seen: how often items occur in the training data, by id.
      last_time: of what they count, unix seconds; requests are about later moments.

    Raises:
      CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path = MODEL) -> None:
        self._archive = read_archive(path)
        self.about = self._archive.manifest["about"]
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        write_files(folder, self._archive.files)
        inference = folder / "inference"
        self._settings = json.loads((inference / "settings.json").read_text())
        self._tasks = {task["kind"]: task for task in self._settings["tasks"].values()}
        prepared = self._tasks["scoring"]["prepared"]
        spec = json.loads((inference / "datasets" / f"{prepared}.json").read_text())
        self._data = ServingData.open(spec, folder / "data" / prepared)
        self._vocabulary_file = inference / "vocabulary.model"
        statistics = self._data.statistics
        assert statistics is not None  # the file carries them
        self.last_time = statistics.totals.last_time
        self.times_seen = dict(zip(statistics.item_ids, statistics.items["events"], strict=True))
        self.items = self._data.items

    @functools.cached_property
    def _titles(self) -> TitleSearch:
        items = self.items.values()
        return TitleSearch(
            [str(item.attributes["title"]) for item in items],
            [y if isinstance(y := item.attributes.get("year"), int) else None for item in items],
            [self.times_seen.get(item.id, 0) for item in items],
        )

    def find(self, title: str) -> Item:
        """The item that people call so; of several the best known one.

        Raises:
          ConfigError: there is none; names near titles.
        """
        places, items = self._titles.find(title, k=3, at_least=SURE), list(self.items.values())
        if places:
            return items[places[0]]
        near = ", ".join(named(items[place]) for place in self._titles.find(title, k=3))
        raise ConfigError(f"the catalogue has no film {title!r}{near and f'; near: {near}'}")

    @functools.cached_property
    def _model(self) -> NumpyModel:
        return NumpyModel(self._archive)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._vocabulary_file)

    @functools.cached_property
    def _well_known(self) -> tuple[list[str], np.ndarray]:
        """Ids of the best known items, and their vectors."""
        ids = sorted(self.items, key=lambda id_: -self.times_seen.get(id_, 0))[:_WELL_KNOWN]
        texts = [self._data.template.item(self.items[id_]) for id_ in ids]
        return ids, self._model.items(self._candidate_tokens(texts))

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
        ids = self.retrieve(max(_FOUND, k), history, now)
        scores = self.score(ids, history, now)
        best = np.argsort(-scores, kind="stable")[:k]
        return [self._recommended(self.items[ids[n]], float(scores[n]), liked) for n in best]

    def retrieve(self, k: int, history: Sequence[Mapping[str, Any]], time: float) -> list[str]:
        """Ids of the k well-known items that are likeliest to be watched next, best first.

        Args:
          k: how many.
          history: `item`, `time` and `value` of each behaviour, oldest first.
          time: the moment, unix seconds.
        """
        ids, vectors = self._well_known
        source, _ = self._tokens("retrieval", [], history, time)
        watched = {behaviour["item"] for behaviour in history}
        order = np.argsort(-(vectors @ self._model.user(source)), kind="stable")
        return [ids[place] for place in order if ids[place] not in watched][:k]

    def score(
        self, candidates: Sequence[str], history: Sequence[Mapping[str, Any]], time: float
    ) -> np.ndarray:
        """How likely each candidate is liked, float32 `[candidates]`; see `retrieve`."""
        source, texts = self._tokens("scoring", candidates, history, time)
        positive = self._tasks["scoring"]["positive_classes"]
        return self._model.probabilities(source, texts, positive)

    def _tokens(
        self,
        kind: str,
        candidates: Sequence[str],
        history: Sequence[Mapping[str, Any]],
        time: float,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Token ids of a history and of candidates, as a task reads them."""
        data = self._data
        parser = RequestParser(data.spec, data.items, data.statistics_names())
        renderer = RequestRenderer(data.template, data.statistics, self._tasks[kind]["max_events"])
        row = {"user": {}, "time": time, "history": history, "candidates": list(candidates)}
        text = renderer.render(parser.parse(row))
        source = source_row(self._vocabulary, text.history, self._settings["source_length"])
        return source["encoder_input_tokens"], self._candidate_tokens(text.candidates)

    def _candidate_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        most = self._settings["target_length"]
        return [
            packed_candidates(self._vocabulary, [text], most)["decoder_input_tokens"]
            for text in texts
        ]

    def _recommended(self, item: Item, score: float, liked: Sequence[Item]) -> Recommended:
        explanations, common = self._explanations
        written = explanations.written(item, liked, common)
        return Recommended(item, score, written.text if written else "")

    @functools.cached_property
    def _explanations(self) -> tuple[WritingTemplate, Mapping[str, frozenset[str]]]:
        explanations = self._data.template.writing["explanations"]
        return explanations, common_values(self.items.values(), explanations.shared)


def run_edge_demo(liked: Sequence[str], disliked: Sequence[str], k: int) -> None:
    """Prints what the model is, and recommendations for films by their titles.

    Raises:
      ConfigError: no film has such a title.
      CheckpointError: the file is damaged.
    """
    begin = time.perf_counter()
    demo = EdgeDemo()
    films, others = ([demo.find(title) for title in titles] for titles in (liked, disliked))
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
        f"{first:.1f} seconds, with loading; the same again in {again:.0f} ms."
    )
