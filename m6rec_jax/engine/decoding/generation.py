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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import numpy as np

from m6rec_jax.engine.decoding.constraints import AfterPrefix, Constraint, any_text
from m6rec_jax.engine.decoding.generation_program import GeneratedBatch, generate
from m6rec_jax.engine.decoding.loop import FREE
from m6rec_jax.engine.decoding.sampling import SamplingOptions, check_sampling
from m6rec_jax.engine.decoding.text_choices import RowChoices, TextChoices
from m6rec_jax.engine.decoding.title_trie import ItemScores, TitleTrie
from m6rec_jax.engine.decoding.token_trie import NO_ENTRY, NO_RANK, TokenTrie, UnseenTrie
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables
from m6rec_jax.engine.programs.runtime import in_buckets, length_buckets, smallest_that_fits
from m6rec_jax.engine.task_settings import check_number
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model import M6Rec
from m6rec_jax.text.rows import Text
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

Array = jax.Array


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
        self._programs: dict[str, Callable[..., Any]] = {}

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
        # What comes after a prefix is constrained, and the prefix is not.
        after_prefix = choices is not None or (trie is not None and prefixes is not None)
        # One length for prefixes of all lengths: few shapes are compiled.
        length = self.max_tokens if exported or after_prefix else self._length(trie)
        prefix_ids = self._prefix_ids(number, length, prefixes, trie)
        num_given = (prefix_ids != FREE).sum(axis=1)
        excluded = None
        if trie is not None and seen is not None:
            excluded = trie.excluded_ranks(seen, number, widest=exported)
        kind = "" if trie is None else "titles"
        run = self._compiled(verb, num_texts, kind if choices is None else "choices")
        taken, settings = self._tasks.with_variables(self.variables, tasks, number)
        variables = self._for_decoding(taken)
        sources = list(map(self._source_row, histories, settings))
        lengths = [len(row["encoder_input_tokens"]) for row in sources]
        pending = []
        for bucket, size, members in in_buckets(lengths, self._source_buckets, self._batch_sizes):
            filled = slice(len(members))
            given = np.full((size, length), FREE, np.int32)
            given[:, 0] = EOS_ID  # rows of padding end at once
            given[filled] = prefix_ids[members]
            own_seeds = np.zeros((size, 1), np.uint32)
            own_seeds[filled, 0] = [seeds[i] % 2**32 for i in members]
            batch: dict[str, np.ndarray] = {"prefix_ids": given, "seeds": own_seeds}
            if excluded is not None:
                # Rows of padding have seen nothing.
                batch["seen"] = np.full((size, excluded.shape[1]), NO_RANK, np.int32)
                batch["seen"][filled] = excluded[members]
            if after_prefix:
                batch["num_before"] = np.zeros(size, np.int32)
                batch["num_before"][filled] = num_given[members]
            part, own = [sources[i] for i in members], [settings[i] for i in members]
            with self._segments_held():
                batch |= self._history_batch(taken, part, own, bucket, size)
                placed = self._placed(batch)
                constraint: Constraint = self._any_text if trie is None else trie.arrays
                if choices is not None:
                    constraint = RowChoices.of(
                        dict(enumerate(choices[i] for i in members)),
                        {place: length - num_given[i] for place, i in enumerate(members)},
                        size,
                        self._any_text,
                    )
                # Not read back here: the devices go on while Python prepares the next batch.
                pending.append((members, run(variables, placed, constraint, options)))
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
                found = GeneratedBatch(*(value[k] for value in values))
                results[i] = self._texts(found, int(num_given[i]), trie is not None)
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

    def _texts(self, found: GeneratedBatch, num_given: int, of_trie: bool) -> list[GeneratedText]:
        """The texts of one request, without beams for which there was none."""
        texts = []
        for tokens, score, log_probability, ended, entry in zip(*found, strict=True):
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
                    int(entry) if of_trie and entry != NO_ENTRY else None,
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

    def _compiled(self, verb: str, num_texts: int, constrained_to: str) -> Callable[..., Any]:
        """A compiled function of variables, features, constraint and options."""
        name = verb if num_texts == 1 else f"{verb}_{num_texts}"
        name += f"_{constrained_to}" if constrained_to else ""
        if name not in self._programs:

            def run(
                variables: Variables,
                features: Mapping[str, Array],
                constraint: Constraint,
                options: Any,
            ) -> GeneratedBatch:
                return generate(
                    self.model,
                    variables,
                    features,
                    _of_each_source(constraint, features),
                    options,
                    verb=verb,
                    num_texts=num_texts,
                    encoded=self._encoded(variables, features),
                )

            self._programs[name] = self._program(name, run)
        return self._programs[name]


def _of_each_source(constraint: Constraint, features: Mapping[str, Array]) -> Constraint:
    """A trie without what each source has seen, and for what comes after the text before it."""
    if isinstance(constraint, TokenTrie) and "seen" in features:
        constraint = UnseenTrie(constraint, features["seen"])
    if "num_before" in features:
        constraint = AfterPrefix(constraint, features["num_before"])
    return constraint
