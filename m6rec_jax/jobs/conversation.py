"""One dialogue with one user: replies, and items recommended by their titles and by the two towers.

    conversation = Conversation(catalogue, replies=..., titles=..., retrieval=...)
    answer = conversation.answer("I liked Fargo. Something newer?")

What is wished for (`dialogue.reading`) is a filter that everything recommended obeys, and what was
named is not recommended again. Replies are put together by a grammar (`dialogue.replies`) whose
every sentence is true, as the model chooses.
"""

from __future__ import annotations

import copy
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
from m6rec_jax.engine.decoding.generation import GeneratedText, Generator, TextRequest
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


@gin.configurable(allowlist=["num_items", "num_beams", "max_turns"])
class Conversation:
    """A dialogue with one user.

    Args:
      catalogue: what may be recommended.
      replies: chooses among what may be replied; None: the first is said.
      titles: generator of titles; None: none are generated.
      retrieval: retriever that embeds dialogues and items; None: nothing is searched.
      index: the items as the retriever embeds them; None: they are embedded now.
      reranker: adds to what retrieval finds, and orders it; None: the towers alone recommend.
      tasks: which task each of the three is asked for, by its name here; those that are left out
        are asked for their engine's default.
      batch_sizes: numbers of dialogues that are searched for together, ascending.
      history: segments of what is known of the user, `DatasetTemplate.history_segments`.
      past: places of items that the user had: what is asked to be new is none of them, nor of those
        that the history names.
      repeats_count: whether items of the past may come again where nothing new is asked for.
      read_liked: what a retriever of users reads, given the places of the items that were liked in
        the dialogue; None: the retriever reads dialogues.
      num_items: recommended at a time, by each of the two ways.
      num_beams: of titles, at least `num_items`.
      trained_turns: most turns of a dialogue in training; None: all.
      named_items: of how many named items it is read what is known, at most, as in training.
      max_turns: how many of the latest turns are read; None: as many as in training.

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
        trained_turns: int | None = None,
        named_items: int = 0,
        max_turns: int | None = None,
    ) -> None:
        if not 1 <= num_items <= num_beams or (max_turns is not None and max_turns < 1):
            raise ConfigError(
                f"a conversation needs max_turns = {max_turns} and num_items = {num_items} of at "
                f"least 1, and num_beams = {num_beams} of at least num_items"
            )
        self._read_liked, self._reranker = read_liked, reranker
        self.catalogue, self._history = catalogue, tuple(history)
        self._had = frozenset(() if repeats_count else past)
        self._replies, self._titles, self._retrieval = replies, titles, retrieval
        self._tasks, self._batch_sizes = dict(tasks or {}), batch_sizes
        self._num_items = min(num_items, len(catalogue.titles))
        self._num_beams = num_beams
        depth = self._num_items if reranker is None else max(self._num_items, reranker.depth)
        self._depth = min(depth, len(catalogue.titles))
        self._max_turns = trained_turns if max_turns is None else max_turns
        self._decoding = Decoding()
        self._trie: TitleTrie | None = None
        self._index: CatalogueIndex | None = None
        if titles is not None:
            self._trie = TitleTrie(titles.vocabulary, catalogue.titles, titles.max_tokens)
            self._num_beams = min(num_beams, len(self._trie))
        if retrieval is not None:
            self._index = index or retrieval.index(catalogue.texts, self._task("retrieval"))
        items = catalogue.items or [Item("")] * len(catalogue.titles)
        words = words_of(items[0].attributes)
        if named_items and not words.attributes:
            raise ConfigError(
                "the model was trained to read attributes of items in dialogues, and "
                f"DialogueWords.attributes names none; --gin_file {FILMS} has those of films"
            )
        spoken = DialogueCatalogue(items, catalogue.names, words, catalogue.titles)
        self._reader, self._grammar = DialogueReader(spoken), ReplyGrammar(spoken)
        self._named_items = named_items
        self._seen = self._named_in(self._history).union(past)
        # Of items with one title the one that occurs most often is recommended.
        self._popularity = np.asarray(catalogue.popularity or [0] * len(catalogue.titles))
        order = np.argsort(self._popularity, kind="stable").tolist()
        first = {catalogue.titles[place]: place for place in order}
        self._doubles = frozenset(order).difference(first.values())
        self.restart()

    def resumed(
        self, turns: Sequence[tuple[str, str]], history: Sequence[str] | None = None
    ) -> Conversation:
        """Another dialogue with the same model; this one stays as it is.

        Args:
          turns: what was said in it: speaker (`dialogue.state`) and text.
          history: what is known of its user; None: what is known of this one's.
        """
        other = copy.copy(self)
        other.restart()
        if history is not None:
            other._history, other._had = tuple(history), frozenset()
            other._seen = self._named_in(history)
        for speaker, text in turns:
            other._hear(speaker, text)
        return other

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
                other = self.resumed([])
                other.hear("a")
                other.named.update(dict.fromkeys(seen))
                self.recommend([other] * size)
            if self._chooses:
                self._generated([other] * size, [TextChoices(())] * size)
        if self._index is not None:
            self._index.warm_up(self._depth, self._batch_sizes)

    def restart(self) -> None:
        """Forgets what was said."""
        self.state = DialogueState(self._reader)

    @property
    def greeting(self) -> str:
        """What may be said first, before the user says anything."""
        return self._grammar.ask(first=True)[0]

    @property
    def turns(self) -> list[str]:
        """What was said."""
        return self.state.turns

    @property
    def named(self) -> dict[int, None]:
        """Places of the items that were named or offered, in the order in which they first were."""
        return self.state.named

    def answer(self, text: str) -> Answer:
        """The system's next turn after the user's `text`."""
        self.hear(text)
        (answer,) = self.recommend([self])
        offered = [place for found in _found(answer) for place in found.places]
        self.state.latest = offered or self.state.latest
        self._hear(SYSTEM, answer.reply)
        self.named.update(dict.fromkeys(offered))
        return answer

    def hear(self, text: str) -> None:
        """The user's next turn."""
        self._hear(USER, text)

    def reply_source(self) -> list[str]:
        """What a reply is generated from."""
        return self.state.source(self._max_turns, self._named_items, self._history)

    def recommend(self, dialogues: Sequence[Conversation]) -> list[Answer]:
        """What is said and recommended in dialogues that were `resumed` from this one."""
        acts = [one.act() for one in dialogues]
        filtered = [one.obeying() for one in dialogues]
        # Nothing is searched for a turn such as "thanks".
        searched = [n for n, act in enumerate(acts) if act in ("ask", "recommend")]
        found = self._search([dialogues[n] for n in searched], [filtered[n] for n in searched])
        of_dialogue = dict(zip(searched, found, strict=True))
        answers = [
            Answer(
                "",
                *of_dialogue.get(number, (None, None)),
                self._grammar.wished(own.kept) if own.kept else "",
            )
            for number, own in enumerate(filtered)
        ]
        may_be_said = list(map(self._may_be_said, dialogues, acts, filtered, answers))
        said = self._chosen(dialogues, may_be_said)
        return [own._replace(reply=text) for own, text in zip(answers, said, strict=True)]

    def _search(
        self, dialogues: Sequence[Conversation], filtered: Sequence[Obeying]
    ) -> list[tuple[Recommended | None, Recommended | None]]:
        """What is recommended in each, by titles and by the two towers."""
        if not dialogues:
            return []
        sources = [[*one.reply_source(), RECOMMENDS] for one in dialogues]
        excluded = [np.flatnonzero(~own.allowed) for own in filtered]
        users = None
        read = [
            Read(source, [*one.state.mentioned])
            for source, one in zip(sources, dialogues, strict=True)
        ]
        if self._retrieval is not None:
            if self._read_liked is not None:
                read = [self._read_liked(one.state.liked) for one in dialogues]
            histories = [own.history for own in read]
            users = self._retrieval.embed_users(
                histories, [self._task("retrieval")] * len(histories)
            )
        written = self._by_title(sources, excluded, users)
        return list(zip(written, self._by_retrieval(read, excluded, users), strict=True))

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
        nothing = not (self.state.wishes or self.named or reading.clears)
        return "ask" if nothing else "recommend"

    def obeying(self) -> Obeying:
        """Which items may be recommended now, and why."""
        excluded = self._had.union(self.named, self._doubles)
        return obeying(self._reader.catalogue, self.state.wishes, excluded, self._seen)

    def _named_in(self, lines: Iterable[str]) -> set[int]:
        return {place for line in lines for place in self._reader.read(line).named}

    def _may_be_said(
        self, dialogue: Conversation, act: str, filtered: Obeying, answer: Answer
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
                return grammar.ask(first=len(dialogue.turns) == 1)
            case "recommend":
                found = _found(answer)
                offered = dict.fromkeys(place for own in found for place in own.places)
                places = list(offered)[: self._num_items] if found else self._popular(filtered)
                return grammar.recommend(places, filtered)
        return grammar.say(act)

    def _popular(self, filtered: Obeying) -> list[int]:
        """Items that may be recommended, those that occur most often first."""
        allowed = np.flatnonzero(filtered.allowed)
        best = np.argsort(-self._popularity[allowed], kind="stable")[: self._num_items]
        return [int(place) for place in allowed[best]]

    def _chosen(
        self, dialogues: Sequence[Conversation], texts: Sequence[Sequence[str]]
    ) -> list[str]:
        """Of all that may be said in each dialogue, what the model chooses."""
        said = [own[0] for own in texts]
        if self._replies is None or not self._chooses:
            return said
        vocabulary = self._replies.vocabulary
        room = self._replies.max_tokens - len(vocabulary.encode(REPLY_PREFIX))
        choices = [
            [tokens for t in own if len(tokens := vocabulary.encode(t)) < room] for own in texts
        ]
        open_ = [number for number, own in enumerate(choices) if len(own) > 1]
        if not open_:
            return said
        chosen = self._generated(
            [dialogues[number] for number in open_],
            [TextChoices([choices[number]]) for number in open_],
        )
        for number, text in zip(open_, chosen, strict=True):
            # As they were put together: a vocabulary may write some signs in another way.
            written = {vocabulary.decode(vocabulary.encode(t)).strip(): t for t in texts[number]}
            said[number] = written.get(text.continuation, said[number])
        return said

    @property
    def _chooses(self) -> bool:
        """Whether the model chooses among replies; the programs of an export cannot."""
        return self._replies is not None and self._replies.options.programs is None

    def _generated(
        self,
        dialogues: Sequence[Conversation],
        choices: Sequence[TextChoices],
    ) -> list[GeneratedText]:
        """Replies of the model, among choices."""
        assert self._replies is not None
        requests = [
            # Every turn draws anew, and the same dialogue gives the same replies.
            self._decoding.request(
                one.reply_source(), REPLY_PREFIX, self._task("replies"), (len(one.turns),), own
            )
            for one, own in zip(dialogues, choices, strict=True)
        ]
        return self._decoding.write(self._replies, requests)

    def _hear(self, speaker: str, text: str) -> None:
        self.state.hear(speaker, " ".join(text.split()))

    def _task(self, part: str) -> str:
        return self._tasks.get(part, "")

    def _by_title(
        self,
        sources: Sequence[Sequence[str]],
        excluded: Sequence[np.ndarray],
        users: np.ndarray | None,
    ) -> Sequence[Recommended | None]:
        if self._titles is None or self._trie is None:
            return [None] * len(sources)
        # The two towers order films of one title, where there are towers.
        known = None
        if users is not None and self._index is not None:
            similarities = self._index.similarities
            known = [
                lambda places, user=user: similarities(user[None], np.asarray(places)[None])[0]
                for user in users
            ]
        requests = [
            TextRequest(source, task=self._task("titles"), seen=own.tolist())
            for source, own in zip(sources, excluded, strict=True)
        ]
        found = self._titles.recommend(
            requests,
            self._trie,
            min(self._num_items, self._num_beams),
            num_beams=self._num_beams,
            item_scores=known,
        )
        rows = [[(i, title.score) for title in own for i in title.indices] for own in found]
        return [self._recommended(pairs[: self._num_items]) for pairs in rows]

    def _by_retrieval(
        self, read: Sequence[Read], excluded: Sequence[np.ndarray], users: np.ndarray | None
    ) -> Sequence[Recommended | None]:
        index = self._index
        if users is None or index is None:
            return [None] * len(excluded)
        top = index.top_k(users, self._depth, excluded, self._batch_sizes)
        if self._reranker is not None:
            top = self._reranker.rerank(
                [own.past for own in read],
                excluded,
                top,
                lambda ids: index.similarities(users, ids),
            )
        rows = (
            [pair for pair in zip(ids, scores, strict=True) if pair[0] >= 0]
            for ids, scores in zip(top.ids.tolist(), top.scores.tolist(), strict=True)
        )
        return [self._recommended(row[: self._num_items]) for row in rows]

    def _recommended(self, pairs: Sequence[tuple[int, float]]) -> Recommended:
        return Recommended(
            [place for place, _ in pairs],
            [self.catalogue.titles[place] for place, _ in pairs],
            [float(score) for _, score in pairs],
        )


def _found(answer: Answer) -> list[Recommended]:
    return [found for found in (answer.written, answer.retrieved) if found is not None]
