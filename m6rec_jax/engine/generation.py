"""Writes text for users: explanations, titles, answers (paper section 2: generation).

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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from m6rec_jax.engine.constraints import AfterGiven, Constraint, any_text
from m6rec_jax.engine.decoding import FREE
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables
from m6rec_jax.engine.generated_texts import GeneratedText, RecommendedTitle, WrittenTexts
from m6rec_jax.engine.generation_program import WrittenBatch, write
from m6rec_jax.engine.prefixes import beginnings
from m6rec_jax.engine.runtime import in_buckets, length_buckets, smallest_that_fits
from m6rec_jax.engine.sampling import SamplingOptions
from m6rec_jax.engine.title_trie import ItemScores, TitleTrie
from m6rec_jax.engine.unseen_trie import NO_RANK, UnseenTrie, excluded_ranks
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.model import M6Rec
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

Array = jax.Array


class Generator(Engine):
    """Text for histories given as text segments.

    Every verb takes `histories` (per request, segments as `DatasetTemplate.history_segments` gives
    them), `prefixes` (per request, how its text must begin; a prefix is cut into tokens by itself,
    so end it where a word ends), `trie` (write only titles of it) and `tasks` (per request, the
    name of its task; None: the default one). All raise

      DataError: another number of prefixes or tasks than of histories, or a prefix that leaves no
        room or that no title of the trie has.
      ConfigError: a number out of range, no such task, or a trie with titles too long for the
        model.

    Args:
      model, variables, vocabulary, options: as `Engine`. A text has up to T - 2 tokens and `[EOS]`.
      also_allowed: control ids and sentinels that may be written beside text.

    Raises:
      ConfigError: no room for a word, or buckets that do not end with S.
    """

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        options: EngineOptions,
        *,
        also_allowed: Sequence[int] = (),
    ) -> None:
        if options.target_length < 3:
            raise ConfigError(
                f"target_length = {options.target_length} has no room for [BOS], a word and [EOS]"
            )
        super().__init__(model, variables, vocabulary, options)
        self.max_tokens = options.target_length - 1  # [EOS] is the last token, never an input
        self._any_text = any_text(vocabulary, model.config.vocab_size, also_allowed)
        self._programs: dict[tuple[str, int], Callable[..., Any]] = {}

    def greedy(
        self,
        histories: Sequence[Sequence[str]],
        prefixes: Sequence[str] | None = None,
        *,
        trie: TitleTrie | None = None,
        tasks: Sequence[str] | None = None,
    ) -> list[GeneratedText]:
        """The text whose every token is the likeliest one, per history."""
        written = self._write("greedy", 1, histories, prefixes, trie, tasks, {})
        return [one.texts(self.vocabulary, trie is not None)[0] for one in written]

    def sample(
        self,
        histories: Sequence[Sequence[str]],
        prefixes: Sequence[str] | None = None,
        *,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        trie: TitleTrie | None = None,
        tasks: Sequence[str] | None = None,
    ) -> list[list[GeneratedText]]:
        """Texts drawn from the model, `num_samples` per history, in no order.

        Args:
          histories, prefixes, trie, tasks: see the class.
          num_samples: texts per history, drawn independently.
          temperature, top_k, top_p: see `SamplingOptions`.
          seed: of each request, or one for all. Equal requests with equal seeds give equal texts,
            whatever else is asked for in the same call.
        """
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
            raise ConfigError(
                f"temperature = {temperature} and top_k = {top_k} must be at least 0, top_p = "
                f"{top_p} above 0 and at most 1"
            )
        options = SamplingOptions(np.float32(temperature), np.int32(top_k), np.float32(top_p))
        written = self._write(
            "sample", num_samples, histories, prefixes, trie, tasks, options, seed
        )
        return [one.texts(self.vocabulary, trie is not None) for one in written]

    def beam_search(
        self,
        histories: Sequence[Sequence[str]],
        prefixes: Sequence[str] | None = None,
        *,
        num_beams: int = 4,
        length_penalty: float = 0.6,
        trie: TitleTrie | None = None,
        tasks: Sequence[str] | None = None,
        seen: Sequence[Sequence[int]] | None = None,
        lead_ins: Sequence[str] | None = None,
    ) -> list[list[GeneratedText]]:
        """Up to `num_beams` of the likeliest texts per history, best first.

        Args:
          histories, prefixes, trie, tasks: see the class.
          num_beams: see `beam_search.beam_search`.
          length_penalty: see there; at least 0.
          seen: per history, places in the trie's catalogue that must not be recommended: no beam is
            spent on titles all of whose items are among them.
          lead_ins: per history, what stands before a title of the trie without being part of it,
            such as "title:"; it is given to the model, as a prefix is.
        """
        if length_penalty < 0:
            raise ConfigError(f"length_penalty = {length_penalty} must be at least 0")
        if trie is None and (seen is not None or lead_ins is not None):
            raise ConfigError("seen items and lead-ins are for titles of a trie only")
        options = np.float32(length_penalty)
        written = self._write(
            "beam_search",
            num_beams,
            histories,
            prefixes,
            trie,
            tasks,
            options,
            seen=seen,
            lead_ins=lead_ins,
        )
        return [one.texts(self.vocabulary, trie is not None) for one in written]

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        trie: TitleTrie,
        k: int,
        prefixes: Sequence[str] | None = None,
        *,
        num_beams: int | None = None,
        length_penalty: float = 0.0,
        item_scores: Sequence[ItemScores] | None = None,
        tasks: Sequence[str] | None = None,
        seen: Sequence[Sequence[int]] | None = None,
        lead_ins: Sequence[str] | None = None,
    ) -> list[list[RecommendedTitle]]:
        """The k likeliest titles of a catalogue per history; fewer where the trie has fewer.

        Args:
          histories, trie, prefixes, tasks: see the class.
          k: how many titles.
          num_beams: at least k; more miss fewer titles. None: k.
          length_penalty: 0, and titles are ranked by their probability.
          item_scores: per history, what orders items that share a title, such as the retriever's
            similarities; None: the catalogue's order.
          seen: per history, places in the catalogue that must not be recommended.
          lead_ins: see `beam_search`.
        """
        if item_scores is not None and len(item_scores) != len(histories):
            raise DataError(f"{len(item_scores)} item scores for {len(histories)} histories")
        if k < 1 or (num_beams is not None and num_beams < k):
            raise ConfigError(f"k = {k} must be at least 1 and at most num_beams = {num_beams}")
        found = self.beam_search(
            histories,
            prefixes,
            num_beams=num_beams or k,
            length_penalty=length_penalty,
            trie=trie,
            tasks=tasks,
            seen=seen,
            lead_ins=lead_ins,
        )
        results = []
        for request, texts in enumerate(found):
            scores = None if item_scores is None else item_scores[request]
            excluded = frozenset(() if seen is None else map(int, seen[request]))
            titles = []
            for text in texts[:k]:
                if text.entry is not None:
                    places = trie.places(text.entry, scores)
                    left = [place for place in places if place not in excluded]
                    titles.append(RecommendedTitle(trie.titles[text.entry], text.score, left))
            results.append(titles)
        return results

    def _write(
        self,
        verb: str,
        num_texts: int,
        histories: Sequence[Sequence[str]],
        prefixes: Sequence[str] | None,
        trie: TitleTrie | None,
        tasks: Sequence[str] | None,
        options: Any,
        seed: int | Sequence[int] = 0,
        seen: Sequence[Sequence[int]] | None = None,
        lead_ins: Sequence[str] | None = None,
    ) -> list[WrittenTexts]:
        if num_texts < 1:
            raise ConfigError(f"{num_texts} texts per history were asked for")
        seeds = [seed] * len(histories) if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != len(histories):
            raise DataError(f"{len(seeds)} seeds for {len(histories)} histories")
        # One length for lead-ins of all lengths: few shapes are compiled.
        length = self.max_tokens if lead_ins is not None else self._length(trie)
        begun = beginnings(self.vocabulary, len(histories), length, prefixes, trie, lead_ins)
        anything: Constraint = self._any_text if trie is None else trie.arrays
        excluded = None
        if trie is not None and seen is not None:
            excluded = excluded_ranks(trie, seen, len(histories))
        run = self._program(verb, num_texts)
        variables, settings = self._tasks.with_variables(self.variables, tasks, len(histories))
        sources = list(map(self._source_row, histories, settings))
        lengths = [len(row["encoder_input_tokens"]) for row in sources]
        pending = []
        for bucket, size, members in in_buckets(lengths, self._source_buckets, self._batch_sizes):
            task_ids = [settings[i].task_id for i in members]
            batch = self._source_batch([sources[i] for i in members], task_ids, bucket, size)
            batch["forced"] = np.full((size, length), FREE, np.int32)
            batch["forced"][:, 0] = EOS_ID  # rows of padding have nothing to write
            batch["seeds"] = np.zeros((size, 1), np.uint32)
            for k, i in enumerate(members):
                batch["forced"][k] = begun.forced[i]
                batch["seeds"][k] = seeds[i] % 2**32
            if excluded is not None:
                # Rows of padding have seen nothing.
                batch["seen"] = np.full((size, excluded.shape[1]), NO_RANK, np.int32)
                batch["seen"][: len(members)] = excluded[members]
            if lead_ins is not None:
                batch["num_before"] = np.zeros((size, 1), np.int32)
                batch["num_before"][: len(members), 0] = begun.num_before[members]
            placed = self._runtime.place_shared(batch)
            constraint = anything
            if trie is not None and excluded is not None:
                constraint = UnseenTrie(trie.arrays, placed.pop("seen"))
            if lead_ins is not None:
                constraint = AfterGiven(constraint, placed.pop("num_before")[:, 0])
            # Not read back here: the devices go on while Python prepares the next batch.
            pending.append((members, run(variables, placed, constraint, options)))
        results: dict[int, WrittenTexts] = {}
        for members, written in pending:
            values = [np.asarray(value) for value in written]
            for k, i in enumerate(members):
                given = int((begun.forced[i] != FREE).sum())
                tokens, scores, log_probability, ended, entries = (value[k] for value in values)
                results[i] = WrittenTexts(tokens, scores, log_probability, ended, entries, given)
        return [results[i] for i in range(len(histories))]

    def _length(self, trie: TitleTrie | None) -> int:
        """Tokens to make room for, `[EOS]` included."""
        if trie is None:
            return self.max_tokens
        if trie.length > self.max_tokens:
            raise ConfigError(
                f"the longest title has {trie.length} tokens with [EOS], more than the "
                f"{self.max_tokens} that the model writes; TitleTrie(max_tokens={self.max_tokens}) "
                "cuts it"
            )
        return smallest_that_fits(trie.length, length_buckets(self.max_tokens))

    def _program(self, verb: str, num_texts: int) -> Callable[..., Any]:
        """A compiled function of variables, features, constraint and options."""
        if (verb, num_texts) not in self._programs:

            def run(
                variables: Variables,
                features: Mapping[str, Array],
                constraint: Constraint,
                options: Any,
            ) -> WrittenBatch:
                return write(
                    self.model,
                    variables,
                    features,
                    constraint,
                    options,
                    verb=verb,
                    num_texts=num_texts,
                )

            self._programs[verb, num_texts] = self._jit(run)
        return self._programs[verb, num_texts]
