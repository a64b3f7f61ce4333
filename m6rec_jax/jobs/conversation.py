"""One dialogue with one user: replies, and items recommended by their titles and by the two towers.

    conversation = Conversation(catalogue, replies=..., titles=..., retrieval=...)
    answer = conversation.answer("I liked Fargo. Something newer?")
    other = conversation.resumed([("USER", "Hello"), ("SYSTEM", "What would you like?")])
    other.hear("A comedy")
    (answer,) = conversation.recommend([other])

What is wished for (`dialogue.reading`) is a filter that everything recommended obeys, and what was
named is not recommended again. Replies are put together by a grammar (`dialogue.replies`) whose
every sentence is true, as the model chooses.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import gin
import numpy as np

from m6rec_jax.dialogue.catalogue import DialogueCatalogue
from m6rec_jax.dialogue.reading import DialogueReader
from m6rec_jax.dialogue.replies import ReplyGrammar
from m6rec_jax.dialogue.state import RECOMMENDS, REPLY_PREFIX, SYSTEM, USER, DialogueState
from m6rec_jax.dialogue.wishes import Obeying, obeying
from m6rec_jax.dialogue.words import FILMS, words_of
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.decoding.graphs import TextChoices
from m6rec_jax.engine.decoding.text_decoding import Decoding
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.records import Item


@dataclasses.dataclass(frozen=True)
class ConversationCatalogue:
    """What may be recommended, in one order.

    Attributes:
      titles: as the model writes them.
      texts: as the item tower reads them.
      names: by which items are named in a dialogue, such as titles without a year.
      items: with their attributes; none: nothing is known of them.
      popularity: how often each occurs; none: nobody knows.
      kinds: of each, such as genres.
    """

    titles: Sequence[str]
    texts: Sequence[str]
    names: Sequence[str]
    items: Sequence[Item] = ()
    popularity: Sequence[int] = ()
    kinds: Sequence[Sequence[str]] = ()


class Recommended(NamedTuple):
    """Items that are recommended, best first.

    Attributes:
      places: their indices in the catalogue.
      titles: of the items.
      scores: log probabilities of titles, or what the reranker ordered by, or cosine similarities.
    """

    places: list[int]
    titles: list[str]
    scores: list[float]


class Read(NamedTuple):
    """What a retriever of users reads.

    Attributes:
      history: segments.
      past: places of the items that they tell of, oldest first.
    """

    history: list[str]
    past: list[int]


class Answer(NamedTuple):
    """What the system says and recommends.

    Attributes:
      reply: its text.
      written: by titles; None where the model was not trained to write them.
      retrieved: by the two towers, and by what they are reranked with; None likewise.
      understood: the wishes that the recommendations obey; empty: none.
    """

    reply: str
    written: Recommended | None
    retrieved: Recommended | None
    understood: str = ""


@dataclasses.dataclass
class Dialogue:
    """A dialogue with one user, as far as it has come.

    Attributes:
      state: what was said.
      history: segments of what is known of the user, `DatasetTemplate.history_segments`.
      had: places of the items that may not come again, whatever is wished for.
      seen: of those that are not new to the user.
    """

    state: DialogueState
    history: tuple[str, ...]
    had: frozenset[int]
    seen: frozenset[int]

    def hear(self, text: str, speaker: str = USER) -> None:
        """The next turn."""
        self.state.hear(speaker, " ".join(text.split()))

    def act(self) -> str:
        """What the user's latest turn is replied to with, a key of `replies` in english.toml."""
        reading, latest = self.state.reading, bool(self.state.latest)
        plain = not reading.wishes
        closes = plain and not reading.named
        fits = {
            "why": latest and plain,
            "answer": latest and (plain or bool(reading.named)),
            "good": latest and plain,
            "about": latest and plain,
            "bye": closes,
            "thanks": closes,
        }
        said = reading.acts if reading.asked is None else {*reading.acts, "answer"}
        if act := next((act for act in fits if fits[act] and act in said), None):
            return act
        nothing = not (self.state.wishes or self.state.named or reading.clears)
        return "ask" if nothing else "recommend"


@gin.configurable(allowlist=["num_items", "num_beams"])
class Conversation:
    """What recommends in dialogues, and a dialogue with one user.

    Args:
      catalogue: what may be recommended.
      replies: chooses among what may be replied; None: the first is said.
      titles: generator of titles; None: none are generated.
      retrieval: retriever that embeds dialogues and items; None: nothing is searched.
      index: the items as the retriever embeds them; None: they are embedded now.
      reranker: adds to what retrieval finds, and orders it; None: the towers alone recommend.
      tasks: of 'replies', 'titles' and 'retrieval' the task each is for; those that are left out
        are their engine's default.
      batch_sizes: numbers of dialogues that are searched for together, ascending.
      history: of the user, see `Dialogue`.
      past: places of items that the user had: what is asked to be new is none of them, nor of those
        that the history names.
      repeats_count: whether items of the past may come again where nothing new is asked for.
      read_liked: what a retriever of users reads, given the places of the items that were liked in
        the dialogue; None: the retriever reads dialogues.
      num_items: recommended at a time, by each of the two ways.
      num_beams: of titles, at least `num_items`.
      max_turns: how many of the latest turns are read, as in training; None: all.
      named_items: of how many named items it is read what is known, at most, as in training.

    Attributes:
      dialogue: that `answer` goes on with.

    Raises:
      ConfigError: numbers that are impossible, or what is known of named items is to be read and
        `DialogueWords` names no attributes.
    """

    def __init__(
        self,
        catalogue: ConversationCatalogue,
        *,
        replies: Generator | None = None,
        titles: Generator | None = None,
        retrieval: Retriever | None = None,
        index: CatalogueIndex | None = None,
        reranker: Reranker | None = None,
        tasks: Mapping[str, str] | None = None,
        batch_sizes: Sequence[int] = (1,),
        history: Sequence[str] = (),
        past: Sequence[int] = (),
        repeats_count: bool = False,
        read_liked: Callable[[Sequence[int]], Read] | None = None,
        num_items: int = 3,
        num_beams: int = 10,
        max_turns: int | None = None,
        named_items: int = 0,
    ) -> None:
        if not 1 <= num_items <= num_beams:
            raise ConfigError(
                f"Conversation.num_items = {num_items} must be at least 1, and num_beams = "
                f"{num_beams} at least num_items"
            )
        self.catalogue, self._batch_sizes = catalogue, batch_sizes
        self._read_liked, self._reranker = read_liked, reranker
        self._replies, self._titles, self._retrieval = replies, titles, retrieval
        self._decoding = Decoding()
        self._tasks = collections.defaultdict(str, tasks or {})
        number = len(catalogue.titles)
        self._num_items, self._num_beams = min(num_items, number), num_beams
        self._depth = min(max(self._num_items, reranker.depth if reranker else 0), number)
        self._max_turns, self._named_items = max_turns, named_items
        self._trie: TitleTrie | None = None
        self._index: CatalogueIndex | None = None
        if titles is not None:
            self._trie = TitleTrie(titles.vocabulary, catalogue.titles, titles.max_tokens)
            self._num_beams = min(num_beams, len(self._trie))
        if retrieval is not None:
            self._index = index or retrieval.index(catalogue.texts, self._tasks["retrieval"])
        items = catalogue.items or [Item("")] * number
        words = words_of(items[0].attributes)
        if named_items and not words.attributes:
            raise ConfigError(
                "the model was trained to read attributes of items in dialogues, and "
                f"DialogueWords.attributes names none; --gin_file {FILMS} has those of films"
            )
        spoken = DialogueCatalogue(items, catalogue.names, words, catalogue.titles)
        self._reader, self._grammar = DialogueReader(spoken), ReplyGrammar(spoken)
        # Of items with one title the one that occurs most often is recommended.
        self._popularity = np.asarray(catalogue.popularity or [0] * number)
        order = np.argsort(self._popularity, kind="stable").tolist()
        first = {catalogue.titles[place]: place for place in order}
        self._doubles = frozenset(order).difference(first.values())
        had = frozenset(() if repeats_count else past)
        self._user = tuple(history), had, self._named_in(history).union(past)
        self.restart()

    def restart(self) -> None:
        """Forgets what was said."""
        self.dialogue = self.resumed([])

    def resumed(
        self, turns: Sequence[tuple[str, str]], history: Sequence[str] | None = None
    ) -> Dialogue:
        """Another dialogue, to be `recommend`ed in.

        Args:
          turns: what was said in it: speaker (`dialogue.state`) and text.
          history: what is known of its user; None: the same user.
        """
        user = self._user
        if history is not None:
            user = tuple(history), frozenset(), self._named_in(history)
        dialogue = Dialogue(DialogueState(self._reader), *user)
        for speaker, text in turns:
            dialogue.hear(text, speaker)
        return dialogue

    def answer(self, text: str) -> Answer:
        """The system's next turn after the user's `text`."""
        dialogue, state = self.dialogue, self.dialogue.state
        dialogue.hear(text)
        (answer,) = self.recommend([dialogue])
        offered = _offered(answer)
        state.latest = offered or state.latest
        dialogue.hear(answer.reply, SYSTEM)
        state.named.update(dict.fromkeys(offered))
        return answer

    @property
    def greeting(self) -> str:
        """What may be said first, before the user says anything."""
        return self._grammar.ask(first=True)[0]

    @property
    def shapes(self) -> tuple[object, ...]:
        """What programs depend on, beside engines: equal ones compile nothing more."""
        trie = () if self._trie is None else self._trie.shapes
        index = 0 if self._index is None else self._index.num_items
        return "conversation", trie, self._num_beams, index

    def warm_up(self) -> None:
        """Compiles every program that `recommend` may run, however much was named."""
        for size in self._batch_sizes:
            for seen in [[]] if self._trie is None else self._trie.warm_up_seen():
                dialogue = self.resumed([(USER, "a")])
                dialogue.state.named.update(dict.fromkeys(seen))
                self.recommend([dialogue] * size)
            self._written([dialogue] * size, [TextChoices(())] * size)
        if self._index is not None:
            self._index.warm_up(self._depth, self._batch_sizes)

    def source(self, dialogue: Dialogue) -> list[str]:
        """What a reply is generated from."""
        return dialogue.state.source(self._max_turns, self._named_items, dialogue.history)

    def obeying(self, dialogue: Dialogue) -> Obeying:
        """Which items may be recommended now, and why."""
        excluded = dialogue.had.union(dialogue.state.named, self._doubles)
        catalogue, wishes = self._reader.catalogue, dialogue.state.wishes
        return obeying(catalogue, wishes, excluded, dialogue.seen)

    def recommend(self, dialogues: Sequence[Dialogue]) -> list[Answer]:
        """What is said and recommended in dialogues that were `resumed` from this one."""
        acts = [dialogue.act() for dialogue in dialogues]
        filtered = list(map(self.obeying, dialogues))
        # Nothing is searched for a turn such as "thanks".
        searched = [n for n, act in enumerate(acts) if act in ("ask", "recommend")]
        recommended = self._search(
            [dialogues[n] for n in searched], [filtered[n] for n in searched]
        )
        of_dialogue = dict(zip(searched, recommended, strict=True))
        answers = [
            Answer(
                "",
                *of_dialogue.get(number, (None, None)),
                self._grammar.wished(allowed.kept) if allowed.kept else "",
            )
            for number, allowed in enumerate(filtered)
        ]
        texts = list(map(self._may_be_said, dialogues, acts, filtered, answers))
        replies = self._chosen(dialogues, texts)
        return [a._replace(reply=reply) for a, reply in zip(answers, replies, strict=True)]

    def _named_in(self, lines: Iterable[str]) -> frozenset[int]:
        return frozenset(place for line in lines for place in self._reader.read(line).named)

    def _search(
        self, dialogues: Sequence[Dialogue], filtered: Sequence[Obeying]
    ) -> list[tuple[Recommended | None, Recommended | None]]:
        """What is recommended in each, by titles and by the two towers."""
        if not dialogues:
            return []
        sources = [[*self.source(one), RECOMMENDS] for one in dialogues]
        excluded = [np.flatnonzero(~one.allowed) for one in filtered]
        written: Sequence[Recommended | None] = [None] * len(dialogues)
        retrieved = written
        if self._retrieval is not None and self._index is not None:
            if self._read_liked is not None:
                read = [self._read_liked(one.state.liked) for one in dialogues]
            else:
                mentioned = [[*one.state.mentioned] for one in dialogues]
                read = list(map(Read, sources, mentioned))
            tasks = [self._tasks["retrieval"]] * len(read)
            users = self._retrieval.embed_users([one.history for one in read], tasks)
            retrieved = self._by_retrieval(self._index, read, excluded, users)
        if self._titles is not None and self._trie is not None:
            written = self._by_title(self._titles, self._trie, sources, excluded)
        return list(zip(written, retrieved, strict=True))

    def _by_title(
        self,
        titles: Generator,
        trie: TitleTrie,
        sources: Sequence[Sequence[str]],
        excluded: Sequence[np.ndarray],
    ) -> list[Recommended]:
        requests = [
            TextRequest(source, task=self._tasks["titles"], seen=seen.tolist())
            for source, seen in zip(sources, excluded, strict=True)
        ]
        k = min(self._num_items, self._num_beams)
        best = titles.recommend(requests, trie, k, num_beams=self._num_beams)
        rows = [[(i, title.score) for title in row for i in title.indices] for row in best]
        return list(map(self._recommended, rows))

    def _by_retrieval(
        self,
        index: CatalogueIndex,
        read: Sequence[Read],
        excluded: Sequence[np.ndarray],
        users: np.ndarray,
    ) -> list[Recommended]:
        top = index.top_k(users, self._depth, excluded, self._batch_sizes)
        if self._reranker is not None:
            top = self._reranker.rerank(
                [one.past for one in read],
                excluded,
                top,
                lambda ids: index.similarities(users, ids),
            )
        rows = (
            [pair for pair in zip(ids, scores, strict=True) if pair[0] >= 0]
            for ids, scores in zip(top.ids.tolist(), top.scores.tolist(), strict=True)
        )
        return list(map(self._recommended, rows))

    def _recommended(self, pairs: Sequence[tuple[int, float]]) -> Recommended:
        best = pairs[: self._num_items]
        places = [place for place, _ in best]
        titles = [self.catalogue.titles[place] for place in places]
        return Recommended(places, titles, [float(score) for _, score in best])

    def _may_be_said(
        self, dialogue: Dialogue, act: str, filtered: Obeying, answer: Answer
    ) -> list[str]:
        """An act in all its words."""
        grammar, state = self._grammar, dialogue.state
        match act:
            case "why":
                return grammar.explain(state.latest[-1], state.wishes)
            case "answer":
                return grammar.answer(state.latest[-1], state.reading.asked or "")
            case "about":
                return grammar.describe(state.latest[-1])
            case "good":
                before = self._popularity > self._popularity[state.latest[-1]]
                return grammar.rate(state.latest[-1], 1 + int(before.sum()))
            case "ask":
                return grammar.ask(first=len(state.turns) == 1)
            case "recommend":
                places: Iterable[int] = dict.fromkeys(_offered(answer))
                if answer.written is answer.retrieved is None:
                    # Those that occur most often.
                    allowed = np.flatnonzero(filtered.allowed)
                    places = allowed[np.argsort(-self._popularity[allowed], kind="stable")].tolist()
                return grammar.recommend([*places][: self._num_items], filtered)
        return grammar.say(act)

    def _chosen(self, dialogues: Sequence[Dialogue], texts: Sequence[Sequence[str]]) -> list[str]:
        """Of all that may be said in each dialogue, what the model chooses."""
        said = [may_be_said[0] for may_be_said in texts]
        if self._replies is None:
            return said
        vocabulary = self._replies.vocabulary
        room = self._replies.max_tokens - len(vocabulary.encode(REPLY_PREFIX))
        choices = [
            [tokens for text in may_be_said if len(tokens := vocabulary.encode(text)) < room]
            for may_be_said in texts
        ]
        several = [number for number, one in enumerate(choices) if len(one) > 1]
        replies = self._written(
            [dialogues[number] for number in several],
            [TextChoices([choices[number]]) for number in several],
        )
        for number, reply in zip(several, replies, strict=True):
            # As they were put together: a vocabulary may write some signs in another way.
            written = {vocabulary.decode(vocabulary.encode(t)).strip(): t for t in texts[number]}
            said[number] = written.get(reply, said[number])
        return said

    def _written(self, dialogues: Sequence[Dialogue], choices: Sequence[TextChoices]) -> list[str]:
        """Replies of the model, among choices."""
        if self._replies is None or not dialogues:
            return []
        requests = [
            # Every turn draws anew, and the same dialogue gives the same replies.
            self._decoding.request(
                self.source(dialogue),
                REPLY_PREFIX,
                self._tasks["replies"],
                (len(dialogue.state.turns),),
                may_be_said,
            )
            for dialogue, may_be_said in zip(dialogues, choices, strict=True)
        ]
        return [text.continuation for text in self._decoding.write(self._replies, requests)]


def _offered(answer: Answer) -> list[int]:
    """Places of the items that are recommended, by titles first."""
    ways = (answer.written, answer.retrieved)
    return [place for way in ways if way is not None for place in way.places]
