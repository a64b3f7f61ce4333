"""Generates text for users: explanations, titles, answers (paper section 2: generation).

    generator = Generator(model, variables, vocabulary, EngineOptions(256, 64))
    generator.greedy(histories)                                  # one text per history
    generator.sample(histories, num_samples=4, top_p=0.9)        # several
    generator.beam_search(histories, prefixes, num_beams=4)      # that go on from a prefix
    generator.recommend(histories, TitleTrie(vocabulary, titles), 10)   # that name an item

A history is encoded once, however many texts it gets. Shapes come from a few buckets, and settings
such as temperature are arguments of the compiled program, so a new request compiles nothing once
each bucket has been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.automaton import NO_ENTRY, NO_RANK, Automaton, any_text
from m6rec_jax.engine.decoding.beam_search import beam_search
from m6rec_jax.engine.decoding.sampling import SamplingOptions, check_sampling
from m6rec_jax.engine.decoding.slots import FREE, Slots, advance, model_step
from m6rec_jax.engine.decoding.text_choices import TextChoices, stacked_graphs
from m6rec_jax.engine.decoding.title_trie import ItemScores, TitleTrie
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables, encoded_source
from m6rec_jax.engine.programs.runtime import in_buckets, length_buckets, smallest_that_fits
from m6rec_jax.engine.task_settings import check_number
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model import M6Rec
from m6rec_jax.text.rows import Text
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

Array = jax.Array


class GeneratedBatch(NamedTuple):
    """Texts of each source, best first where that has a meaning.

    Attributes:
      tokens: int32 `[sources, texts, length]`.
      scores: float32 `[sources, texts]`, what texts are ordered by: of beam search the
        length-normalised log probability, else the log probability.
      log_probability: float32 `[sources, texts]`, of the tokens after the prefix.
      ended: bool `[sources, texts]`.
      entries: int32 `[sources, texts]`, of titles; `NO_ENTRY` without any.
    """

    tokens: Array
    scores: Array
    log_probability: Array
    ended: Array
    entries: Array


def generate(
    model: M6Rec,
    verb: str,
    num_texts: int,
    variables: Variables,
    features: Mapping[str, Array],
    automaton: Automaton,
    options: Any,
) -> GeneratedBatch:
    """Encodes and decodes a batch; for use inside jit.

    Args:
      model: the model.
      verb: 'greedy', 'sample' or 'beam_search'.
      num_texts: per source.
      variables: of the model.
      features: those of `encoded_source`, `task_ids` `[sources, 1]`, `prefix_ids` `[sources,
        length]`; 'sample' reads `seeds` uint32 `[sources, 1]`; `num_before` and `seen` may be what
        the automaton calls before `[sources]` and excluded `[sources, width]`.
      automaton: what may be written.
      options: `SamplingOptions` of 'sample', the length penalty of 'beam_search'.
    """
    prefix_ids, task_ids = features["prefix_ids"], features["task_ids"]
    automaton = automaton._replace(before=features.get("num_before"), excluded=features.get("seen"))
    cache: Any = model.apply(
        variables,
        encoded_source(model, variables, features),
        task_ids,
        max_length=prefix_ids.shape[1],
        rows_per_source=num_texts,
        method=model.start_decoding,
    )
    step = model_step(model, variables, task_ids)
    shape = (prefix_ids.shape[0], num_texts)
    if verb == "beam_search":
        beams = beam_search(
            step, cache, prefix_ids, automaton, num_beams=num_texts, length_penalty=options
        )
        return GeneratedBatch(
            beams.tokens,
            beams.scores,
            beams.log_probability,
            beams.ended,
            automaton.entries(beams.state),
        )
    seeds = features["seeds"][:, 0] if verb == "sample" else None
    slots = Slots.of(cache, automaton, prefix_ids, num_texts, seeds, options)
    active = jnp.ones(slots.given.shape[:1], bool)
    slots, written = advance(step, slots, automaton, active, prefix_ids.shape[1])
    scores = written.gained.sum(axis=1).reshape(shape)
    return GeneratedBatch(
        written.tokens.reshape(*shape, -1),
        scores,
        scores,
        (written.tokens == EOS_ID).any(axis=1).reshape(shape),
        automaton.entries(slots.place).reshape(shape),
    )


class GeneratedText(NamedTuple):
    """A text that the model generated.

    Attributes:
      text: with its prefix.
      score: what texts are ordered by: of beam search the log probability normalised by the length
        (`beam_search`), else the log probability.
      log_probability: of what comes after the prefix.
      ended: False where the text was cut off at the longest length.
      entry: which title of the trie it is, where there was one.
      continuation: the text without its prefix.
      tokens: all of it, with [EOS] where the text has ended.
    """

    text: str
    score: float
    log_probability: float
    ended: bool
    entry: int | None = None
    continuation: str = ""
    tokens: tuple[int, ...] = ()


class RecommendedTitle(NamedTuple):
    """A title of the catalogue.

    Attributes:
      title: as the catalogue has it.
      score: log probability of the title, normalised by its length where there is a length penalty.
      indices: into the catalogue, of all items that have the title and were not seen, best first.
    """

    title: str
    score: float
    indices: list[int]


class Asked(TypedDict, total=False):
    """What else every verb may be asked for.

    Attributes:
      trie: after the prefix come its titles, and nothing else.
      choices: per request, what its text may say after the prefix, without a trie; None: anything.
      tasks: per request, the name of its task; None: the default one.
    """

    trie: TitleTrie | None
    choices: Sequence[TextChoices | None] | None
    tasks: Sequence[str] | None


class Generator(Engine):
    """Text for histories given as text segments.

    Every method takes `histories` (per request, segments as of `DatasetTemplate.history_segments`,
    or their token ids),
    `prefixes` (per request, how its text begins, such as "title:" before a title of a trie; a
    prefix is cut into tokens by itself, so end it where a word ends) and what `Asked` says. All
    raise

      DataError: another number of prefixes or tasks than of histories, or a prefix that leaves no
        room.
      ConfigError: a number out of range, no such task, or a trie with titles too long for the
        model.

    A text has up to T - 2 tokens and `[EOS]`.

    Raises:
      ConfigError: no room for a word, or buckets that do not end with S.
    """

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        if options.target_length < 3:
            raise ConfigError(
                f"target_length = {options.target_length} has no room for [BOS], a word and [EOS]"
            )
        super().__init__(model, variables, vocabulary, options)
        self.max_tokens = options.target_length - 1  # [EOS] is the last token, never an input
        self._any_text = any_text(vocabulary, model.config.vocab_size)

    def greedy(
        self,
        histories: Sequence[Sequence[Text]],
        prefixes: Sequence[str] | None = None,
        **asked: Unpack[Asked],
    ) -> list[GeneratedText]:
        """The text whose every token is the likeliest one, per history."""
        found = self._generate("greedy", 1, None, histories, prefixes, **asked)
        return [texts[0] for texts in found]

    def sample(
        self,
        histories: Sequence[Sequence[Text]],
        prefixes: Sequence[str] | None = None,
        *,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        **asked: Unpack[Asked],
    ) -> list[list[GeneratedText]]:
        """Texts drawn from the model, `num_samples` per history, in no order.

        Args:
          histories, prefixes, asked: see the class.
          num_samples: texts per history, drawn independently.
          temperature, top_k, top_p: see `SamplingOptions`.
          seed: of each request, or one for all. Equal requests with equal seeds give equal texts,
            whatever else is asked for in the same call.
        """
        check_sampling(temperature, top_k, top_p)
        options = SamplingOptions(np.float32(temperature), np.int32(top_k), np.float32(top_p))
        return self._generate(
            "sample", num_samples, options, histories, prefixes, seed=seed, **asked
        )

    def beam_search(
        self,
        histories: Sequence[Sequence[Text]],
        prefixes: Sequence[str] | None = None,
        *,
        num_beams: int = 4,
        length_penalty: float = 0.6,
        seen: Sequence[Sequence[int]] | None = None,
        **asked: Unpack[Asked],
    ) -> list[list[GeneratedText]]:
        """Up to `num_beams` of the likeliest texts per history, best first.

        Args:
          histories, prefixes, asked: see the class.
          num_beams: see `beam_search.beam_search`.
          length_penalty: see there; at least 0.
          seen: per history, indices into the trie's catalogue that must not be recommended: no beam
            is spent on titles all of whose items are among them.
        """
        if length_penalty < 0:
            raise ConfigError(f"length_penalty = {length_penalty} must be at least 0")
        if seen is not None and asked.get("trie") is None:
            raise ConfigError("seen items are for titles of a trie only")
        penalty = np.float32(length_penalty)
        return self._generate(
            "beam_search", num_beams, penalty, histories, prefixes, seen=seen, **asked
        )

    def recommend(
        self,
        histories: Sequence[Sequence[Text]],
        trie: TitleTrie,
        k: int,
        prefixes: Sequence[str] | None = None,
        *,
        num_beams: int | None = None,
        item_scores: Sequence[ItemScores] | None = None,
        tasks: Sequence[str] | None = None,
        seen: Sequence[Sequence[int]] | None = None,
    ) -> list[list[RecommendedTitle]]:
        """The k likeliest titles of a catalogue per history; fewer where the trie has fewer.

        Args:
          histories, trie, prefixes, tasks: see the class.
          k: how many titles.
          num_beams: at least k; more miss fewer titles. None: k.
          item_scores: per history, what orders items that share a title, such as the retriever's
            similarities; None: the catalogue's order.
          seen: see `beam_search`.
        """
        check_number(len(histories), item_scores=item_scores)
        found = self.beam_search(
            histories,
            prefixes,
            num_beams=num_beams or k,
            length_penalty=0.0,  # titles are ranked by their probability
            trie=trie,
            tasks=tasks,
            seen=seen,
        )
        results = []
        for request, texts in enumerate(found):
            scores = None if item_scores is None else item_scores[request]
            excluded = np.asarray(() if seen is None else seen[request], np.int64)
            titles = []
            for text in texts[:k]:
                if text.entry is not None:
                    indices = trie.indices(text.entry, scores)
                    left = [index for index in indices if not (excluded == index).any()]
                    titles.append(RecommendedTitle(trie.titles[text.entry], text.score, left))
            results.append(titles)
        return results

    def _generate(
        self,
        verb: str,
        num_texts: int,
        options: Any,
        histories: Sequence[Sequence[Text]],
        prefixes: Sequence[str] | None,
        *,
        trie: TitleTrie | None = None,
        choices: Sequence[TextChoices | None] | None = None,
        tasks: Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        seen: Sequence[Sequence[int]] | None = None,
    ) -> list[list[GeneratedText]]:
        if num_texts < 1:
            raise ConfigError(f"{num_texts} texts per history were asked for")
        number = len(histories)
        seeds = [seed] * number if isinstance(seed, int | np.integer) else list(seed)
        check_number(number, seeds=seeds, choices=choices)
        if choices is not None and not any(choices):
            choices = None
        # Of an export there is one program for all.
        exported = self.options.programs is not None
        # One length for prefixes of all lengths: few shapes are compiled.
        whole = exported or choices is not None or (trie is not None and prefixes is not None)
        length = self.max_tokens if whole else self._length(trie)
        prefix_ids = self._prefix_ids(number, length, prefixes, trie)
        num_before = (prefix_ids != FREE).sum(axis=1).astype(np.int32)
        columns = {
            "prefix_ids": prefix_ids,
            "seeds": np.array([[one % 2**32] for one in seeds], np.uint32).reshape(-1, 1),
        }
        if trie is not None or choices is not None:
            columns["num_before"] = num_before
        if trie is not None and seen is not None:
            columns["seen"] = trie.excluded_ranks(seen, number, widest=exported)
        kind = "choices" if choices is not None else "" if trie is None else "titles"
        several = f"{num_texts}" if num_texts > 1 else ""
        name = "_".join(filter(None, (verb, several, kind)))
        run = self._program(name, generate, self.model, verb, num_texts)
        settings = self._tasks.each(tasks, number)
        variables = self._decoding_variables()
        sources = list(map(self._source_row, histories, settings))
        lengths = [len(row["encoder_input_tokens"]) for row in sources]
        pending = []
        for bucket, size, members in in_buckets(lengths, self._source_buckets, self._batch_sizes):
            batch = {name: _padded(values[members], name, size) for name, values in columns.items()}
            with self._segments_held():
                batch |= self._history_batch(
                    [sources[i] for i in members], [settings[i] for i in members], bucket, size
                )
                automaton = self._any_text
                if trie is not None:
                    automaton = Automaton(None, trie.graphs)
                elif choices is not None:
                    room = length - num_before[members]
                    automaton = _of_choices(
                        self._any_text, [choices[i] for i in members], room, size
                    )
                # Not read back here: the devices go on while Python prepares the next batch.
                pending.append((members, run(variables, self._placed(batch), automaton, options)))
        results: dict[int, list[GeneratedText]] = {}
        bar = progress_bar(
            pending,
            desc="writing texts",
            unit=" batches",
            delay=1.0,
            leave=False,
            disable=not self.options.progress,
        )
        for members, generated in bar:
            values = [np.asarray(value) for value in generated]
            for k, i in enumerate(members):
                batch_row = GeneratedBatch(*(value[k] for value in values))
                results[i] = self._texts(batch_row, int(num_before[i]))
        return [results[i] for i in range(number)]

    def _prefix_ids(
        self, number: int, length: int, prefixes: Sequence[str] | None, trie: TitleTrie | None
    ) -> np.ndarray:
        """The first tokens of each request and then `FREE`, int32 `[number, length]`."""
        prefixes = [""] * number if prefixes is None else prefixes
        if len(prefixes) != number:
            raise DataError(f"{len(prefixes)} prefixes for {number} histories")
        prefix_ids = np.full((number, length), FREE, np.int32)
        shortest = 1 if trie is None else trie.length
        for request, prefix in enumerate(prefixes):
            tokens = self.vocabulary.encode(prefix)
            if len(tokens) + shortest > length:
                what = "" if trie is None else f" for the longest title, of {shortest}"
                raise DataError(
                    f"prefix {request} has {len(tokens)} tokens and leaves no room in {length}"
                    f"{what}: {prefix!r}"
                )
            prefix_ids[request, : len(tokens)] = tokens
        return prefix_ids

    def _texts(self, batch: GeneratedBatch, num_given: int) -> list[GeneratedText]:
        """The texts of one request, without beams for which there was none."""
        texts = []
        for tokens, score, log_probability, ended, entry in zip(*batch, strict=True):
            if np.isneginf(score):
                continue
            text = after = self.vocabulary.decode(tokens)
            if num_given:
                after = self.vocabulary.decode(tokens[num_given:]).strip()
            texts.append(
                GeneratedText(
                    text,
                    float(score),
                    float(log_probability),
                    bool(ended),
                    int(entry) if entry != NO_ENTRY else None,
                    after,
                    tuple(tokens[: (tokens != EOS_ID).cumprod().sum() + 1].tolist()),
                )
            )
        return texts

    def _length(self, trie: TitleTrie | None) -> int:
        """Tokens to make room for, `[EOS]` included."""
        if trie is None:
            return self.max_tokens
        if trie.length > self.max_tokens:
            raise ConfigError(
                f"the longest title has {trie.length} tokens with [EOS], more than the "
                f"{self.max_tokens} that the model generates; "
                f"TitleTrie(max_tokens={self.max_tokens}) cuts it"
            )
        return smallest_that_fits(trie.length, length_buckets(self.max_tokens))


# What stands in rows of padding: they end at once, and exclude nothing.
_PADDING = {"prefix_ids": EOS_ID, "seen": NO_RANK}


def _padded(values: np.ndarray, name: str, size: int) -> np.ndarray:
    padding = ((0, size - len(values)), *((0, 0),) * (values.ndim - 1))
    return np.pad(values, padding, constant_values=_PADDING.get(name, 0))


def _of_choices(
    free: Automaton, choices: Sequence[TextChoices | None], room: np.ndarray, size: int
) -> Automaton:
    """What the sources of a batch may write, some of them freely."""
    graph = np.full(size, -1, np.int32)
    graph[: len(choices)] = [-1 if one is None else row for row, one in enumerate(choices)]
    rooms = np.zeros(size, np.int32)
    rooms[: len(choices)] = room
    values: Any = free._replace(graphs=stacked_graphs(choices, size), graph=graph, room=rooms)
    return values
