"""Generates text for users: explanations, titles, answers (paper section 2: generation).

    generator = Generator(model, variables, vocabulary, EngineOptions(256, 64))
    generator.write([TextRequest(history), ...])                       # the likeliest tokens
    generator.write([TextRequest(history, sampling=SamplingOptions(top_p=0.9), seed=3)])
    generator.beam_search([TextRequest(history, prefix)], num_beams=4)
    generator.recommend([TextRequest(history)], TitleTrie(vocabulary, titles), 10)

A history is encoded once, however many texts it gets. Shapes come from a few buckets, and settings
such as temperature are arguments of the compiled program, so a new request compiles nothing once
each bucket has been seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.automaton import NO_ENTRY, Automaton, any_text
from m6rec_jax.engine.decoding.beam_search import beam_search
from m6rec_jax.engine.decoding.graphs import TextChoices, graphs_of_choices
from m6rec_jax.engine.decoding.sampling import GREEDY, SamplingOptions, check_sampling
from m6rec_jax.engine.decoding.slots import FREE, GeneratedBatch, Slots, advance, model_step
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables, encoded_source
from m6rec_jax.engine.programs.runtime import in_buckets, read_back
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import DataError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model import M6Rec
from m6rec_jax.text.layout import Row
from m6rec_jax.text.rows import Text
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

Array = jax.Array


class TextRequest(NamedTuple):
    """What a text is written for.

    Attributes:
      source: segments as of `DatasetTemplate.history_segments`, or their token ids.
      prefix: how the text begins, such as "title:" before a title; it is cut into tokens by itself,
        so it must end where a word ends.
      task: its name; empty: the engine's default one.
      sampling: how tokens are drawn; beam search does not read it.
      seed: equal requests with equal seeds give equal texts, whatever else shares a call.
      choices: what the text may say after the prefix; None: anything.
      seen: indices into a trie's catalogue that must not be recommended; beam search spends no beam
        on titles all of whose items are among them.
      max_tokens: of a text that grows one by one, most tokens after the prefix, `[EOS]` included;
        None: what there is room for, as much as the task was trained to write.
      stop: texts that end such a text and are no part of it, none of them empty.
    """

    source: Sequence[Text]
    prefix: str = ""
    task: str = ""
    sampling: SamplingOptions = GREEDY
    seed: int = 0
    choices: TextChoices | None = None
    seen: Sequence[int] = ()
    max_tokens: int | None = None
    stop: Sequence[str] = ()


class PreparedText(NamedTuple):
    """A request in tokens: `given` those of its prefix."""

    request: TextRequest
    settings: TaskSettings
    source: Row
    given: list[int]


class GeneratedText(NamedTuple):
    """A text that the model generated.

    Attributes:
      text: without its prefix.
      log_probability: of the text.
      ended: False where it was cut off at the longest length.
      entry: which title of the trie it is, where there was one.
      tokens: the prefix's, then its own, with [EOS] where it has ended.
    """

    text: str
    log_probability: float
    ended: bool
    entry: int | None = None
    tokens: tuple[int, ...] = ()


class RecommendedTitle(NamedTuple):
    """A title of the catalogue.

    Attributes:
      title: as the catalogue has it.
      score: log probability of the title.
      indices: into the catalogue, of all items that have the title and were not seen.
    """

    title: str
    score: float
    indices: list[int]


def generate(
    model: M6Rec,
    verb: str,
    num_texts: int,
    variables: Variables,
    features: Mapping[str, Array],
    automaton: Automaton,
    length_penalty: Any = None,
) -> GeneratedBatch:
    """Encodes and decodes a batch; for use inside jit.

    Args:
      model: the model.
      verb: 'greedy', 'sample' or 'beam_search'.
      num_texts: per source; more than one of beam search alone.
      variables: of the model.
      features: those of `encoded_source`, `task_ids` `[sources, 1]`, `prefix_ids` `[sources,
        length]`, and of 'sample' the others of `Slots.of`, `[sources]`; `seen` may be the titles
        that must not come, bool `[sources, titles]`.
      automaton: what may be written.
      length_penalty: of beam search.
    """
    prefix_ids, task_ids = features["prefix_ids"], features["task_ids"]
    if "seen" in features:
        automaton = automaton.without(features["seen"])
    cache: Any = model.apply(
        variables,
        encoded_source(model, variables, features),
        task_ids,
        max_length=prefix_ids.shape[1],
        rows_per_source=num_texts,
        method=model.start_decoding,
    )
    step = model_step(model, variables, task_ids)
    if verb == "beam_search":
        return beam_search(
            step, cache, prefix_ids, automaton, num_beams=num_texts, length_penalty=length_penalty
        )[0]
    slots = Slots.of(cache, automaton, features)
    active = jnp.ones(prefix_ids.shape[:1], bool)
    slots, written = advance(step, slots, automaton, active, prefix_ids.shape[1])
    scores = written.gained.sum(axis=1)[:, None]
    ended = (written.tokens == EOS_ID).any(axis=1)[:, None]
    entries = automaton.entries(slots.node)[:, None]
    return GeneratedBatch(written.tokens[:, None], scores, scores, ended, entries)


class Generator(Engine):
    """Whole texts, in batches; `continuous` has those that grow one by one.

    A text has up to `max_tokens` tokens, `[EOS]` and the prefix included. Where a `trie` is given,
    its titles come after the prefix, and nothing else. Errors of requests are those of `prepared`.

    Raises:
      ConfigError: buckets that do not end with S.
    """

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        super().__init__(model, variables, vocabulary, options)
        self.max_tokens = options.target_length - 1  # [EOS] is the last token, never an input
        self._any_text = any_text(vocabulary, model.config.vocab_size)

    def prepared(self, request: TextRequest, shortest: int = 1) -> PreparedText:
        """A request in tokens; on the host.

        Raises:
          DataError: as `prefix_tokens`.
          ConfigError: no such task, or sampling that is out of range.
        """
        check_sampling(request.sampling)
        settings = self.settings(request.task)
        given = self.prefix_tokens(request.prefix, shortest)
        return PreparedText(request, settings, self._source_row(request.source, settings), given)

    def prefix_tokens(self, prefix: str, shortest: int = 1) -> list[int]:
        """The tokens of a prefix.

        Raises:
          DataError: it leaves no room for the `shortest` text, `[EOS]` included.
        """
        given = self.vocabulary.encode(prefix)
        if len(given) + shortest > self.max_tokens:
            raise DataError(
                f"the prefix {prefix!r} has {len(given)} tokens, which leaves no room for "
                f"{shortest} more in {self.max_tokens}"
            )
        return given

    def _columns(self, texts: Sequence[PreparedText], size: int) -> dict[str, np.ndarray]:
        """What texts begin with, and how they are drawn, `[size, ...]`; rows of padding end."""
        prefix_ids = np.full((size, self.max_tokens), FREE, np.int32)
        prefix_ids[len(texts) :, 0] = EOS_ID
        for row, text in zip(prefix_ids, texts, strict=False):
            row[: len(text.given)] = text.given
        columns = {"prefix_ids": prefix_ids, "seed": np.zeros(size, np.uint32)}
        columns["seed"][: len(texts)] = [text.request.seed % 2**32 for text in texts]
        rows = [text.request.sampling for text in texts] + [GREEDY] * (size - len(texts))
        return columns | SamplingOptions(*np.array(rows, np.float32).T)._asdict()

    def write(
        self, requests: Sequence[TextRequest], *, trie: TitleTrie | None = None
    ) -> list[GeneratedText]:
        """One text for each request: its likeliest tokens, or drawn as it says."""
        is_sampled = any(request.sampling.temperature for request in requests)
        texts = self._generate("sample" if is_sampled else "greedy", 1, requests, trie)
        return [of_request[0] for of_request in texts]

    def beam_search(
        self,
        requests: Sequence[TextRequest],
        *,
        num_beams: int = 4,
        length_penalty: float = 0.6,
        trie: TitleTrie | None = None,
    ) -> list[list[GeneratedText]]:
        """Up to `num_beams` of the likeliest texts per request, best first.

        Args:
          requests, trie: see the class.
          num_beams: see `beam_search.beam_search`.
          length_penalty: see there; at least 0.
        """
        penalty = np.float32(length_penalty)
        return self._generate("beam_search", num_beams, requests, trie, penalty)

    def recommend(
        self,
        requests: Sequence[TextRequest],
        trie: TitleTrie,
        k: int,
        *,
        num_beams: int | None = None,
    ) -> list[list[RecommendedTitle]]:
        """The k likeliest titles of a catalogue per request; fewer where the trie has fewer.

        Args:
          requests, trie: see the class.
          k: how many titles.
          num_beams: at least k; more miss fewer titles. None: k.
        """
        # Titles are ranked by their probability.
        beams = self.beam_search(requests, num_beams=num_beams or k, length_penalty=0.0, trie=trie)
        return [
            [
                RecommendedTitle(
                    trie.titles[text.entry],
                    text.log_probability,
                    [item for item in trie.indices(text.entry) if item not in request.seen],
                )
                for text in texts[:k]
                if text.entry is not None
            ]
            for request, texts in zip(requests, beams, strict=True)
        ]

    def _generate(
        self,
        verb: str,
        num_texts: int,
        requests: Sequence[TextRequest],
        trie: TitleTrie | None,
        length_penalty: Any = None,
    ) -> list[list[GeneratedText]]:
        texts = [self.prepared(request, trie.length if trie else 1) for request in requests]
        has_choices = any(request.choices for request in requests)
        kind = "_choices" if has_choices else "_titles" if trie else ""
        name = f"{verb}_{num_texts}{kind}" if num_texts > 1 else f"{verb}{kind}"
        run = self._program(name, generate, self.model, verb, num_texts)
        variables = self._decoding_variables()
        lengths = [len(text.source["encoder_input_tokens"]) for text in texts]
        batches = in_buckets(lengths, self._source_buckets, self._batch_sizes)

        def started(bucket: int, size: int, members: Sequence[int]) -> GeneratedBatch:
            chosen = [texts[i] for i in members]
            batch = self._columns(chosen, size)
            if verb != "sample":
                batch = {"prefix_ids": batch["prefix_ids"]}
            if trie is not None and verb == "beam_search":
                seen = [*(text.request.seen for text in chosen), *[()] * (size - len(chosen))]
                batch["seen"] = trie.excluded(seen)
            automaton = self._any_text if trie is None else trie.automaton
            if has_choices:
                graphs = graphs_of_choices([text.request.choices for text in chosen], range(size))
                automaton = graphs._replace(free=automaton.free)
            with self._segments_held():
                sources, settings = zip(*((t.source, t.settings) for t in chosen), strict=True)
                placed = self._placed(batch | self._history_batch(sources, settings, bucket, size))
                generated: GeneratedBatch = run(variables, placed, automaton, length_penalty)
            return generated

        results: dict[int, list[GeneratedText]] = {}
        bar = progress_bar(
            batches,
            desc="writing texts",
            unit=" batches",
            delay=1.0,
            leave=False,
            disable=not self.options.progress,
        )
        generated = read_back(itertools.starmap(started, batches))
        for (_, _, members), values in zip(bar, generated, strict=True):
            for row, i in enumerate(members):
                of_request = GeneratedBatch(*(value[row] for value in values))
                results[i] = self._texts(of_request, len(texts[i].given))
        return [results[i] for i in range(len(texts))]

    def _texts(self, batch: GeneratedBatch, num_given: int) -> list[GeneratedText]:
        """The texts of one request, without beams for which there was none."""
        texts = []
        for tokens, score, log_probability, ended, entry in zip(*batch, strict=True):
            if np.isneginf(score):
                continue
            text = self.vocabulary.decode(tokens[num_given:])
            texts.append(
                GeneratedText(
                    text.strip() if num_given else text,
                    float(log_probability),
                    bool(ended),
                    int(entry) if entry != NO_ENTRY else None,
                    tuple(tokens[: (tokens != EOS_ID).cumprod().sum() + 1].tolist()),
                )
            )
        return texts
