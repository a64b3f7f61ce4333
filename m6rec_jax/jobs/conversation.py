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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.catalogue_index import CatalogueIndex
from m6rec_jax.engine.generation import Generator
from m6rec_jax.engine.retrieval import Retriever
from m6rec_jax.engine.runtime import smallest_that_fits
from m6rec_jax.engine.text_decoding import Decoding
from m6rec_jax.engine.title_trie import TitleTrie
from m6rec_jax.errors import ConfigError
from m6rec_jax.metrics.faithfulness import AttributeDictionary
from m6rec_jax.metrics.phrases import phrase_key
from m6rec_jax.text.dialogue import RECOMMENDS, REPLY_PREFIX, SYSTEM, USER, reply_source

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
      replies: generator of replies; None: nothing is said.
      titles: generator of titles; None: none are generated.
      retrieval: retriever that embeds dialogues and items; None: nothing is searched.
      index: the items as the retriever embeds them; None: they are embedded now.
      tasks: which task each of the three is asked for, by its name here; those that are left out
        are asked for their engine's default.
      batch_sizes: numbers of dialogues that are searched for together, ascending.
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
        index: CatalogueIndex | None = None,
        tasks: Mapping[str, str] | None = None,
        batch_sizes: Sequence[int] = (1,),
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
        self._tasks, self._batch_sizes = dict(tasks or {}), batch_sizes
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
            task = self._tasks.get("retrieval")
            self._index = index or retrieval.index(catalogue.texts, task)
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

    @property
    def shapes(self) -> tuple[object, ...]:
        """What programs depend on, beside engines: equal ones compile nothing more."""
        trie = () if self._trie is None else self._trie.arrays
        index = 0 if self._index is None else self._index.num_items
        return "conversation", tuple(leaf.shape for leaf in trie), self._num_beams, index

    def warm_up(self) -> None:
        """Compiles every program that `recommend` may run, however much was named."""
        for size in self._batch_sizes:
            for seen in [[]] if self._trie is None else self._trie.warm_up_seen():
                other = self.resumed([])
                other.hear("a")
                other.named.update(seen)
                self.recommend([other] * size)
            if self._index is not None:
                self._index.warm_up(size, self._num_items)

    def restart(self) -> None:
        """Forgets what was said."""
        self.turns: list[str] = []
        self.named: set[int] = set()

    def answer(self, text: str) -> Answer:
        """The system's next turn after the user's `text`."""
        self.hear(text)
        reply = ""
        if self._replies is not None:
            (said,) = self._decoding.generate(
                self._replies,
                [self.reply_source()],
                [REPLY_PREFIX],
                self._asked("replies", 1),
                # Every turn draws anew, and the same dialogue gives the same replies.
                keys=[(len(self.turns),)],
            )
            reply = said.continuation
        (answer,) = self.recommend([self])
        if reply:
            self._hear(SYSTEM, reply)
        for found in (answer.written, answer.retrieved):
            self.named.update(() if found is None else found.places)
        return answer._replace(reply=reply)

    def hear(self, text: str) -> None:
        """The user's next turn."""
        self._hear(USER, text)

    def reply_source(self) -> list[str]:
        """What a reply is generated from."""
        return reply_source(self._latest(), self._history)

    def recommend(self, dialogues: Sequence[Conversation]) -> list[Answer]:
        """What is recommended in dialogues that were `resumed` from this one, without replies."""
        sources = [[*one.reply_source(), RECOMMENDS] for one in dialogues]
        named = [sorted(one.named) for one in dialogues]
        users = None
        if self._retrieval is not None:
            users = self._retrieval.embed_users(sources, self._asked("retrieval", len(sources)))
        written, retrieved = self._by_title(sources, named, users), self._by_retrieval(named, users)
        return [Answer("", *both) for both in zip(written, retrieved, strict=True)]

    def _hear(self, speaker: str, text: str) -> None:
        text = " ".join(text.split())
        self.turns.append(f"{speaker}: {text}")
        for mention in self._finder.mentions(text):
            self.named.update(self._places[mention.key])

    def _latest(self) -> list[str]:
        return self.turns if self._max_turns is None else self.turns[-self._max_turns :]

    def _asked(self, part: str, number: int) -> list[str] | None:
        name = self._tasks.get(part)
        return None if name is None else [name] * number

    def _by_title(
        self,
        sources: Sequence[Sequence[str]],
        named: Sequence[Sequence[int]],
        users: np.ndarray | None,
    ) -> Sequence[Recommended | None]:
        if self._titles is None or self._trie is None:
            return [None] * len(sources)
        # The two towers order films of one title, where there are towers.
        known = None
        if users is not None and self._index is not None:
            known = [self._index.scores_of(user) for user in users]
        found = self._titles.recommend(
            sources,
            self._trie,
            min(self._num_items, self._num_beams),
            num_beams=self._num_beams,
            item_scores=known,
            tasks=self._asked("titles", len(sources)),
            seen=named,
        )
        rows = [[(i, title.score) for title in own for i in title.indices] for own in found]
        return [self._recommended(pairs[: self._num_items]) for pairs in rows]

    def _by_retrieval(
        self, named: Sequence[Sequence[int]], users: np.ndarray | None
    ) -> Sequence[Recommended | None]:
        if users is None or self._index is None:
            return [None] * len(named)
        number = smallest_that_fits(len(users), self._batch_sizes)
        padded = np.pad(users, ((0, max(0, number - len(users))), (0, 0)))
        seen = [np.array(own, np.int64) for own in named]
        seen += [np.zeros(0, np.int64)] * (len(padded) - len(users))
        top = self._index.top_k(padded, self._num_items, seen)
        rows = zip(top.ids[: len(users)].tolist(), top.scores.tolist(), strict=False)
        return [
            self._recommended([pair for pair in zip(*row, strict=True) if pair[0] >= 0])
            for row in rows
        ]

    def _recommended(self, pairs: Sequence[tuple[int, float]]) -> Recommended:
        return Recommended(
            [place for place, _ in pairs],
            [self._catalogue.titles[place] for place, _ in pairs],
            [float(score) for _, score in pairs],
        )
