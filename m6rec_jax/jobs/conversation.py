"""One dialogue with one user: replies, and items recommended by their titles and by the two towers.

    conversation = Conversation(catalogue, replies=..., titles=..., retrieval=...)
    answer = conversation.answer("I liked Fargo. What else?")

What was named in the dialogue is not recommended again. A name of several words is found in any
case, a name of one word only with its own capitals: "it" is no film. "It" at the start of a
sentence counts as one, since no rule can decide.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.catalogue_index import CatalogueIndex
from m6rec_jax.engine.generation import Generator
from m6rec_jax.engine.retrieval import Retriever
from m6rec_jax.engine.text_decoding import Decoding
from m6rec_jax.engine.title_trie import TitleTrie
from m6rec_jax.errors import ConfigError
from m6rec_jax.metrics.faithfulness import AttributeDictionary
from m6rec_jax.metrics.phrases import phrase_key
from m6rec_jax.text.dialogue import RECOMMENDS, SYSTEM, USER, reply_source

_WORD, _PHRASE = "word", "phrase"


@dataclasses.dataclass(frozen=True)
class ConversationCatalogue:
    """What may be recommended, in one order.

    Attributes:
      titles: as the model writes them.
      texts: as the item tower reads them.
      names: by which items are named in a dialogue, such as titles without a year.
    """

    titles: Sequence[str]
    texts: Sequence[str]
    names: Sequence[str]


class Recommended(NamedTuple):
    """Items that are recommended, best first.

    Attributes:
      places: their indices in the catalogue.
      titles: of the items.
      scores: log probabilities of titles, or cosine similarities.
    """

    places: list[int]
    titles: list[str]
    scores: list[float]


class Answer(NamedTuple):
    """What the system says and recommends.

    Attributes:
      reply: its text; empty where the model was not trained to reply.
      written: by titles; None where the model was not trained to write them.
      retrieved: by the two towers; None likewise.
    """

    reply: str
    written: Recommended | None
    retrieved: Recommended | None


@gin.configurable(allowlist=["num_items", "num_beams", "max_turns"])
class Conversation:
    """A dialogue with one user.

    Args:
      catalogue: what may be recommended.
      replies: generator whose default task writes replies; None: nothing is said.
      titles: generator of titles; None: none are generated.
      retrieval: retriever whose default task embeds dialogues and items; None: nothing is searched.
      history: segments of what is known of the user, `DatasetTemplate.history_segments`.
      num_items: recommended at a time, by each of the two ways.
      num_beams: of titles, at least `num_items`.
      trained_turns: most turns of a dialogue in training; None: all.
      max_turns: how many of the latest turns are read; None: as many as in training.

    Raises:
      ConfigError: numbers that are impossible, or none of the three is given.
    """

    def __init__(
        self,
        catalogue: ConversationCatalogue,
        *,
        replies: Generator | None = None,
        titles: Generator | None = None,
        retrieval: Retriever | None = None,
        history: Sequence[str] = (),
        num_items: int = 3,
        num_beams: int = 10,
        trained_turns: int | None = None,
        max_turns: int | None = None,
    ) -> None:
        if not 1 <= num_items <= num_beams or (max_turns is not None and max_turns < 1):
            raise ConfigError(
                f"a conversation needs max_turns = {max_turns} and num_items = {num_items} of at "
                f"least 1, and num_beams = {num_beams} of at least num_items"
            )
        if replies is None and titles is None and retrieval is None:
            raise ConfigError("there is nothing to converse with: no replies, titles or retrieval")
        self._catalogue, self._history = catalogue, tuple(history)
        self._replies, self._titles, self._retrieval = replies, titles, retrieval
        self._num_items = min(num_items, len(catalogue.titles))
        self._num_beams = num_beams
        self._max_turns = trained_turns if max_turns is None else max_turns
        self._decoding = Decoding()
        self._trie: TitleTrie | None = None
        self._index: CatalogueIndex | None = None
        if titles is not None:
            self._trie = TitleTrie(titles.vocabulary, catalogue.titles, titles.max_tokens)
            self._num_beams = min(num_beams, len(self._trie))
        if retrieval is not None:
            self._index = retrieval.index(catalogue.texts)
        self._places: dict[tuple[str, ...], list[int]] = {}
        names: dict[str, list[str]] = {_WORD: [], _PHRASE: []}
        for place, name in enumerate(catalogue.names):
            key = phrase_key(name)
            self._places.setdefault(key, []).append(place)
            names[_PHRASE if len(key) > 1 else _WORD].append(name)
        self._finder = AttributeDictionary(names, cased=(_WORD,))
        self.restart()

    def resumed(
        self, turns: Sequence[tuple[str, str]], history: Sequence[str] | None = None
    ) -> Conversation:
        """Another dialogue with the same model; this one stays as it is.

        Args:
          turns: what was said in it: speaker (`text.dialogue`) and text.
          history: what is known of its user; None: what is known of this one's.
        """
        other = copy.copy(self)
        other.restart()
        if history is not None:
            other._history = tuple(history)
        for speaker, text in turns:
            other._hear(speaker, text)
        return other

    def warm_up(self) -> None:
        """Compiles every program that `answer` may run, however much was named."""
        for seen in [[]] if self._trie is None else self._trie.warm_up_seen():
            other = self.resumed([])
            other.named.update(seen)
            other.answer("a")
        if self._index is not None:
            self._index.warm_up(1, self._num_items)

    def restart(self) -> None:
        """Forgets what was said."""
        self.turns: list[str] = []
        self.named: set[int] = set()

    def answer(self, text: str) -> Answer:
        """The system's next turn after the user's `text`."""
        self._hear(USER, text)
        reply = ""
        if self._replies is not None:
            source = reply_source(self._latest(), self._history)
            # Every turn draws anew, and the same dialogue gives the same replies.
            drawn = [(len(self.turns),)]
            (said,) = self._decoding.generate(self._replies, [source], [f"{SYSTEM}:"], keys=drawn)
            reply = said.continuation
        user = None if self._retrieval is None else self._retrieval.embed_users([self._source()])
        written, retrieved = self._by_title(user), self._by_retrieval(user)
        if reply:
            self._hear(SYSTEM, reply)
        for found in (written, retrieved):
            self.named.update(() if found is None else found.places)
        return Answer(reply, written, retrieved)

    def _hear(self, speaker: str, text: str) -> None:
        text = " ".join(text.split())
        self.turns.append(f"{speaker}: {text}")
        for mention in self._finder.mentions(text):
            self.named.update(self._places[mention.key])

    def _latest(self) -> list[str]:
        return self.turns if self._max_turns is None else self.turns[-self._max_turns :]

    def _source(self) -> list[str]:
        return [*reply_source(self._latest(), self._history), RECOMMENDS]

    def _by_title(self, user: np.ndarray | None) -> Recommended | None:
        if self._titles is None or self._trie is None:
            return None
        # The two towers order films of one title, where there are towers.
        known = None if user is None or self._index is None else [self._index.scores_of(user[0])]
        (found,) = self._titles.recommend(
            [self._source()],
            self._trie,
            min(self._num_items, self._num_beams),
            num_beams=self._num_beams,
            item_scores=known,
            seen=[sorted(self.named)],
        )
        pairs = [(place, title.score) for title in found for place in title.indices]
        return self._recommended(pairs[: self._num_items])

    def _by_retrieval(self, user: np.ndarray | None) -> Recommended | None:
        if user is None or self._index is None:
            return None
        named = np.array(sorted(self.named), np.int64)
        top = self._index.top_k(user, self._num_items, [named])
        pairs = zip(top.ids[0].tolist(), top.scores[0].tolist(), strict=True)
        return self._recommended([(place, score) for place, score in pairs if place >= 0])

    def _recommended(self, pairs: Sequence[tuple[int, float]]) -> Recommended:
        return Recommended(
            [place for place, _ in pairs],
            [self._catalogue.titles[place] for place, _ in pairs],
            [float(score) for _, score in pairs],
        )
