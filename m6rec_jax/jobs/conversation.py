"""One dialogue with one user: replies, and items recommended by their titles and by the two towers.

    conversation = open_conversation(resources)  # of `serving.conversations`
    answer = conversation.answer("I liked Fargo. Something newer?")
    other = conversation.resumed([("USER", "Hello"), ("SYSTEM", "What would you like?")])
    other.hear("A comedy")
    (answer,) = conversation.recommend([other])

What is wished for (`dialogue.reading`) is a filter that everything recommended obeys, and what was
named is not recommended again. Replies are put together by a grammar (`dialogue.replies`) whose
every sentence is true, as the model chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import gin
import numpy as np

from m6rec_jax.data.store.prepared import Catalogue
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
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.resources import Resources


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

    @property
    def places(self) -> list[int]:
        """Of the items that are recommended, by titles first."""
        ways = filter(None, (self.written, self.retrieved))
        return [place for way in ways for place in way.places]


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


class UserRead(NamedTuple):
    """What is read of a user.

    Attributes:
      history: segments.
      past: places of the items that they tell of, oldest first.
      repeats_count: whether these may come again where nothing new is wished for.
    """

    history: Sequence[str] = ()
    past: Sequence[int] = ()
    repeats_count: bool = False


@gin.configurable(allowlist=["num_items", "num_beams"])
class Conversation:
    """What recommends in dialogues, and a dialogue with one user.

    Args:
      resources: with the engines of the tasks.
      tasks: of 'replies', 'titles' and 'retrieval' the model's task for it, as far as there is one.
      catalogue: what may be recommended.
      titles: of its items, as the model writes them.
      index: the items as the retriever embeds them, for a task of retrieval.
      reranker: adds to what retrieval finds, and orders it; None: the towers alone recommend.
      known: what is known of the user, with places of items that were liked in the dialogue: new to
        the user is none of the past's items, nor of those that the history names.
      reads_liked: the retriever reads that; otherwise it reads dialogues.
      num_items: recommended at a time, by each of the two ways.
      num_beams: of titles, at least `num_items`.

    Attributes:
      catalogue, titles: see above.
      dialogue: that `answer` goes on with.

    Raises:
      ConfigError: numbers that are impossible, or what is known of named items is to be read and
        `DialogueWords` names no attributes.
    """

    def __init__(
        self,
        resources: Resources,
        tasks: Mapping[str, str],
        catalogue: Catalogue,
        titles: Sequence[str],
        index: CatalogueIndex | None = None,
        reranker: Reranker | None = None,
        *,
        known: Callable[[Sequence[int]], UserRead] | None = None,
        reads_liked: bool = False,
        num_items: int = 3,
        num_beams: int = 10,
    ) -> None:
        if not 1 <= num_items <= num_beams:
            raise ConfigError(
                f"Conversation.num_items = {num_items} must be at least 1, and num_beams = "
                f"{num_beams} at least num_items"
            )
        self.catalogue, self.titles, self._tasks = catalogue, titles, tasks
        self._index, self._reranker = index, reranker
        self._batch_sizes, self._decoding = resources.batch_sizes, Decoding()
        self._read_liked = known if reads_liked else None

        # As much is read as in training.
        settings = list(map(resources.settings, () if reads_liked else tasks.values()))
        turns = [task.max_events for task in settings if task.max_events is not None]
        self._max_turns = min(turns, default=None)
        self._named_items = min((task.named_items for task in settings), default=0)

        self._replies = resources.generator(tasks["replies"]) if "replies" in tasks else None
        self._retriever = resources.retriever() if "retrieval" in tasks else None
        self._writer: tuple[Generator, TitleTrie] | None = None
        if "titles" in tasks:
            generator = resources.generator(tasks["titles"])
            trie = TitleTrie(generator.vocabulary, titles, generator.max_tokens)
            self._writer, num_beams = (generator, trie), min(num_beams, len(trie))
        self._num_items, self._num_beams = min(num_items, len(titles)), num_beams
        depth = max(num_items, reranker.depth if reranker else 0)
        self._depth = min(depth, len(titles))

        words = words_of(catalogue.items[0].attributes)
        if self._named_items and not words.attributes:
            raise ConfigError(
                "the model was trained to read attributes of items in dialogues, and "
                f"DialogueWords.attributes names none; --gin_file {FILMS} has those of films"
            )
        # Names such as titles without a year.
        names = [
            str(item.attributes.get("title") or title)
            for item, title in zip(catalogue.items, titles, strict=True)
        ]
        spoken = DialogueCatalogue(catalogue.items, names, words, titles)
        self._reader, self._grammar = DialogueReader(spoken), ReplyGrammar(spoken)
        # Of items with one title the one that occurs most often is recommended.
        order = np.argsort(catalogue.train_counts, kind="stable").tolist()
        first = {titles[place]: place for place in order}
        self._doubles = frozenset(order).difference(first.values())
        user = UserRead() if known is None else known([])
        had = frozenset(() if user.repeats_count else user.past)
        self._user = tuple(user.history), had, self._named_in(user.history).union(user.past)
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
        state.latest = answer.places or state.latest
        dialogue.hear(answer.reply, SYSTEM)
        state.named.update(dict.fromkeys(answer.places))
        return answer

    @property
    def greeting(self) -> str:
        """What may be said first, before the user says anything."""
        return self._grammar.ask(first=True)[0]

    @property
    def shapes(self) -> tuple[object, ...]:
        """What programs depend on, beside engines: equal ones compile nothing more."""
        trie = () if self._writer is None else self._writer[1].shapes
        index = 0 if self._index is None else self._index.num_items
        return "conversation", trie, self._num_beams, index

    def warm_up(self) -> None:
        """Compiles every program that `recommend` may run."""
        dialogue = self.resumed([(USER, "a")])
        for size in self._batch_sizes:
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
        searches = [(dialogues[n], np.flatnonzero(~filtered[n].allowed)) for n in searched]
        written = dict(zip(searched, self._by_title(searches), strict=False))
        retrieved = dict(zip(searched, self._by_retrieval(searches), strict=False))
        answers = [
            Answer(
                "",
                written.get(number),
                retrieved.get(number),
                self._grammar.wished(allowed.kept) if allowed.kept else "",
            )
            for number, allowed in enumerate(filtered)
        ]
        texts = list(map(self._may_be_said, dialogues, acts, filtered, answers))
        replies = self._chosen(dialogues, texts)
        return [a._replace(reply=reply) for a, reply in zip(answers, replies, strict=True)]

    def _named_in(self, lines: Iterable[str]) -> frozenset[int]:
        return frozenset(place for line in lines for place in self._reader.read(line).named)

    def _by_title(self, searches: Sequence[tuple[Dialogue, np.ndarray]]) -> list[Recommended]:
        """Titles that the model writes in dialogues, without some places in each."""
        if self._writer is None or not searches:
            return []
        task, (generator, trie) = self._tasks["titles"], self._writer
        requests = [
            TextRequest([*self.source(one), RECOMMENDS], task=task, seen=excluded.tolist())
            for one, excluded in searches
        ]
        k = min(self._num_items, self._num_beams)
        best = generator.recommend(requests, trie, k, num_beams=self._num_beams)
        rows = ([(place, title.score) for title in row for place in title.indices] for row in best)
        return list(map(self._recommended, rows))

    def _by_retrieval(self, searches: Sequence[tuple[Dialogue, np.ndarray]]) -> list[Recommended]:
        """What the two towers and the reranker find; see `_by_title`."""
        index, reranker = self._index, self._reranker
        if self._retriever is None or index is None or not searches:
            return []
        excluded = [places for _, places in searches]
        if (read_liked := self._read_liked) is not None:
            read = [read_liked(one.state.liked) for one, _ in searches]
        else:
            read = [
                UserRead([*self.source(one), RECOMMENDS], [*one.state.mentioned])
                for one, _ in searches
            ]
        tasks = [self._tasks["retrieval"]] * len(read)
        users = self._retriever.embed_users([user.history for user in read], tasks)
        top = index.top_k(users, self._depth, excluded, self._batch_sizes)
        if reranker is not None:
            past = [user.past for user in read]
            top = reranker.rerank(past, excluded, top, lambda ids: index.similarities(users, ids))
        rows = (
            [pair for pair in zip(places, scores, strict=True) if pair[0] >= 0]
            for places, scores in zip(top.ids.tolist(), top.scores.tolist(), strict=True)
        )
        return list(map(self._recommended, rows))

    def _recommended(self, pairs: Sequence[tuple[int, float]]) -> Recommended:
        best = pairs[: self._num_items]
        places = [place for place, _ in best]
        titles = [self.titles[place] for place in places]
        return Recommended(places, titles, [float(score) for _, score in best])

    def _may_be_said(
        self, dialogue: Dialogue, act: str, filtered: Obeying, answer: Answer
    ) -> list[str]:
        """An act in all its words."""
        grammar, state, popularity = self._grammar, dialogue.state, self.catalogue.train_counts
        match act:
            case "why":
                return grammar.explain(state.latest[-1], state.wishes)
            case "answer":
                return grammar.answer(state.latest[-1], state.reading.asked or "")
            case "about":
                return grammar.describe(state.latest[-1])
            case "good":
                before = popularity > popularity[state.latest[-1]]
                return grammar.rate(state.latest[-1], 1 + int(before.sum()))
            case "ask":
                return grammar.ask(first=len(state.turns) == 1)
            case "recommend":
                places = list(dict.fromkeys(answer.places))
                if answer.written is answer.retrieved is None:
                    # Those that occur most often.
                    allowed = np.flatnonzero(filtered.allowed)
                    places = allowed[np.argsort(-popularity[allowed], kind="stable")].tolist()
                return grammar.recommend(places[: self._num_items], filtered)
        return grammar.say(act)

    def _chosen(self, dialogues: Sequence[Dialogue], texts: Sequence[Sequence[str]]) -> list[str]:
        """Of all that may be said in each dialogue, what the model chooses."""
        replies = [may_be_said[0] for may_be_said in texts]
        if self._replies is None:
            return replies
        vocabulary = self._replies.vocabulary
        room = self._replies.max_tokens - len(vocabulary.encode(REPLY_PREFIX))
        choices = [
            [tokens for text in may_be_said if len(tokens := vocabulary.encode(text)) < room]
            for may_be_said in texts
        ]
        several = [number for number, one in enumerate(choices) if len(one) > 1]
        written = self._written(
            [dialogues[number] for number in several],
            [TextChoices([choices[number]]) for number in several],
        )
        for number, reply in zip(several, written, strict=True):
            # As they were put together: a vocabulary may write some signs in another way.
            decoded = {vocabulary.decode(vocabulary.encode(t)).strip(): t for t in texts[number]}
            replies[number] = decoded.get(reply, replies[number])
        return replies

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
        return [text.text for text in self._replies.write(requests)]
