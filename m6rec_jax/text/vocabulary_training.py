"""Trains a SentencePiece vocabulary on a data set's own text.

Whole phrases become single tokens (unless `split_by_whitespace=True`): "Star Wars (1977)" is one
token, and behaviours shrink to about half their length, which is most of the cost of a step on a
CPU.

Texts are first cut where no token may reach across: before punctuation, and around the words for
labels. Left to itself SentencePiece merges across everything that is frequent (", action, 5", with
the 5 torn off a 55), which is most of a template's text. Equal cuts are counted instead of stored,
so memory grows with the number of different phrases and not with the number of texts.

The model is a mixture of two unigram models, each trained by SentencePiece's EM:

- one of *phrases* (or words), on the text as it is. It makes frequent text short, but forgets how
  to spell: parts of words that only ever occur inside whole titles vanish from it.
- one of *parts of words*, on every distinct phrase (or word) once, from strings that at least two
  of them share. It spells what was never seen, such as the title of a new item.

Candidate tokens are proposed here rather than by SentencePiece, whose suffix array only finds
strings that are continued in two different ways: in templated text ("liked" is always followed by
a space) it misses most whole words, and across spaces it proposes tokens such as "s ago".
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import gin
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.text.vocabulary import BUILT_IN_SENTINEL

_NORMALIZATION = "nmt_nfkc"  # NFKC and whitespace folding; keeps case
_SPACE = "\u2581"  # how SentencePiece writes a space
_NUM_RESERVED = 3 + 256  # pad, eos, unk; bytes
_SPELLING_WEIGHT = 0.02  # of the mixture: enough for unseen words, too little to break up seen ones
_EXPECTED_OVERLAP = 0.8  # share of the parts of words that the phrase model holds, too
# Share of the tokens set aside for parts of words, so that unseen words are spelled sensibly.
_SPELLING_SHARE = 0.25
_MAX_PART_CHARS, _MAX_PHRASE_CHARS = 16, 80
# How often a phrase, word or part must occur to become a token.
_MIN_COUNT = 2
_MAX_SEEDS = 1_000_000
# Different cuts, and different proposals, that fit into memory; beyond, the rarest are forgotten.
_MAX_COUNTED = 4_000_000
_MAX_CUT_CHARS = 1000  # SentencePiece skips longer sentences
# SentencePiece silently skips sentences that hold its own mark for rare characters (U+2585) or
# NUL, and cannot read lone surrogates.
_UNREADABLE = re.compile("[\ud800-\udfff\x00\u2585]")
# A full stop after fewer than three letters ("Mr.", "L.A.") ends no phrase.
_BEFORE_PUNCTUATION = re.compile(
    r"(?=(?:[,;:!?\"\u201d]+|(?<=\w{3})\.|(?<=[^\w ])\.|(?<=\d)\.)(?= |$))"
)
_WORD = re.compile(r" ?[^ ]+")
_RUN = re.compile(r"\d+|[^\W\d_]+|(?:[^\w\s]|_)+")

_ModelProto: TypeAlias = sentencepiece_model_pb2.ModelProto
_NORMAL = _ModelProto.SentencePiece.NORMAL


@gin.configurable
def train_vocabulary(
    texts: Iterable[str],
    output: str | os.PathLike[str],
    size: int = 8000,
    *,
    prose: Iterable[str] = (),
    split_by_whitespace: bool = False,
    keep_apart: Sequence[str] = (),
) -> None:
    """Trains a unigram model and writes it.

    The same texts and options always give the same file, byte for byte. The model has T5's ids (pad
    0, eos 1, unk 2, no bos) and 256 byte tokens, keeps case, and normalises with NFKC.

    Args:
      texts: the text to learn from, in the proportions in which the model will see it. Read once.
        Leave out items that the model is to meet as new ones: a token of its own that training
        never shows has an embedding that means nothing.
      output: where the model goes. Another one that is there is not overwritten: what was trained
        with it fits no other.
      size: tokens in the file, byte tokens included; fewer come out when the text has no more.
        With the control tokens, the default fits the 8,192 rows of `gin_configs/models/mini.gin`.
      prose: more text, read after `texts`; its words become tokens, but no phrases of several, of
        which free text has so many that they would fill the memory.
      split_by_whitespace: False lets phrases such as titles become single tokens; True only words.
      keep_apart: words or phrases that never share a token with their neighbours. Name a template's
        words for labels here, or they grow onto titles ("liked Fargo (1996)" as one token).

    Raises:
      ConfigError: an option out of range, or a size too small for the characters of the text.
      DataError: there is no text at all, or another vocabulary at the output.
    """
    max_length = _MAX_PART_CHARS if split_by_whitespace else _MAX_PHRASE_CHARS
    counts = _counted_cuts(texts, prose, keep_apart, words_alone=split_by_whitespace)
    if not counts:
        raise DataError("there is nothing to train a vocabulary on: no text, or all are empty")
    words: Counter[str] = Counter()
    distinct: Counter[str] = Counter()
    for cut, number in counts.items():
        for word in _WORD.findall(cut):
            words[word] += number
            distinct[word] += 1

    spelling_size = _NUM_RESERVED + len(set().union(*words))
    spelling_size += int(_SPELLING_SHARE * max(0, size - spelling_size))
    seeds = _seeds({}, distinct, max_length)
    spelling = _train(distinct, seeds, min(size, spelling_size), max_length)
    num_parts = sum(token.type == _NORMAL and len(token.piece) > 1 for token in spelling.pieces)
    size_left = size - int(num_parts * (1 - _EXPECTED_OVERLAP))
    phrases = {} if split_by_whitespace else _phrases(counts, max_length)
    seeds = _seeds(phrases, words, max_length)
    model = _train(counts, seeds, size_left, max_length)
    _mix(model, spelling, size)
    content: bytes = model.SerializeToString(deterministic=True)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists() and output.read_bytes() != content:
        raise DataError(
            f"{output} holds another vocabulary, which runs that begin with a model trained with "
            "it need. If there are none, remove it; or let this one go elsewhere "
            "(train_on_prepared.output, and vocabulary_file.path where it is used)"
        )
    write_atomically(output, content)


def _counted_cuts(
    texts: Iterable[str], prose: Iterable[str], keep_apart: Sequence[str], *, words_alone: bool
) -> Counter[str]:
    """How often each phrase of texts, and each word of prose, occurs.

    A phrase that starts a word carries the space before it.
    """
    cutter = PhraseCutter(keep_apart)
    # Behaviours stand in the history of many rows; prose does not repeat.
    cuts_of = functools.lru_cache(100_000)(cutter.cuts)
    counts: Counter[str] = Counter()
    for cuts, in_words in itertools.chain(
        ((cuts_of(text), words_alone) for text in texts),
        ((cutter.cuts(text), True) for text in prose),
    ):
        for cut in itertools.chain.from_iterable(map(_WORD.findall, cuts)) if in_words else cuts:
            for start in range(0, len(cut), _MAX_CUT_CHARS):
                counts[cut[start : start + _MAX_CUT_CHARS]] += 1
        if len(counts) > _MAX_COUNTED:
            counts = Counter(dict(counts.most_common(_MAX_COUNTED // 2)))
    return counts


class PhraseCutter:
    """Cuts texts into phrases: before punctuation, which begins the next one (", comedy"), and
    around the words of `keep_apart`.
    """

    def __init__(self, keep_apart: Sequence[str] = ()) -> None:
        # The text must be cut as the finished model will see it.
        self._normalizer = sentencepiece.SentencePieceNormalizer(
            rule_name=_NORMALIZATION,
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=True,
        )
        apart = sorted({*map(self._normalized, keep_apart)} - {""}, key=len, reverse=True)
        alone = [f" {re.escape(phrase)}(?!\\w)" for phrase in apart]
        # "(?!)" matches nothing.
        self._alone = re.compile(f"({'|'.join(alone) or '(?!)'})")

    def cuts(self, text: str) -> list[str]:
        """The phrases of a text; together they are " " and the text as it is normalised."""
        text = self._normalized(text)
        # Even places hold what lies between the words that stand alone.
        parts = self._alone.split(f" {text}") if text else []
        cuts = (
            _BEFORE_PUNCTUATION.split(part) if place % 2 == 0 else [part]
            for place, part in enumerate(parts)
        )
        return [cut for cut in itertools.chain.from_iterable(cuts) if cut]

    def _normalized(self, text: str) -> str:
        text = _UNREADABLE.sub("\ufffd", text).replace(_SPACE, " ")
        return " ".join(self._normalizer.normalize(text).split())


def _phrases(counts: Mapping[str, int], max_length: int) -> Counter[str]:
    """Counts the runs of two or more whole words inside a cut that occur `_MIN_COUNT` times.

    Longer runs are only looked for where both of their shorter ends were found often enough, or
    free text would fill the memory with runs that occur once.
    """
    phrases: Counter[str] = Counter()
    ends = {cut: [0, *(word.end() for word in _WORD.finditer(cut))] for cut in counts}
    # The first words of runs that may still grow.
    growing: dict[str, Iterable[int]] = {cut: range(len(ends[cut]) - 2) for cut in counts}
    for width in itertools.count(2):
        runs: Counter[str] = Counter()
        for cut, firsts in growing.items():
            for first in firsts:
                start, end = ends[cut][first], ends[cut][first + width]
                if end - start <= max_length:
                    runs[cut[start:end]] += counts[cut]
        often = {run: number for run, number in runs.items() if number >= _MIN_COUNT}
        if not often:
            break
        phrases.update(often)
        for cut, firsts in growing.items():
            bounds = ends[cut]
            live = {n for n in firsts if cut[bounds[n] : bounds[n + width]] in often}
            growing[cut] = {first for first in live if first + 1 in live}
    return phrases


def _seeds(
    phrases: Mapping[str, int], words: Mapping[str, int], max_length: int
) -> list[tuple[str, int]]:
    """Proposes tokens: phrases of whole words, words, and parts of words.

    Returns:
      (text, count) pairs seen at least `_MIN_COUNT` times, those that cover most text first.
    """
    seeds = Counter(phrases)
    for word, number in words.items():
        for part in dict.fromkeys([word, *_parts_of_word(word)]):
            if len(part) <= max_length:
                seeds[part] += number
        if len(seeds) > _MAX_COUNTED:
            seeds = Counter(dict(seeds.most_common(_MAX_COUNTED // 2)))
    often = [(s, number) for s, number in seeds.items() if len(s) > 1 and number >= _MIN_COUNT]
    return sorted(often, key=lambda seed: (-seed[1] * len(seed[0]), seed[0]))[:_MAX_SEEDS]


def _parts_of_word(word: str) -> Iterator[str]:
    """Gives every run of letters, of digits or of punctuation, with the space before it."""
    for match in _RUN.finditer(word):
        start, end = match.span()
        start -= start == 1 and word[0] == " "
        for first in range(start, end):
            for last in range(first + 2, min(end, first + _MAX_PART_CHARS) + 1):
                yield word[first:last]


def _train(
    counts: Mapping[str, int], seeds: Iterable[tuple[str, int]], size: int, max_length: int
) -> _ModelProto:
    """Runs SentencePiece's EM on counted cuts."""
    # Sorted: the order of sentences decides how sums are rounded.
    sentences = (f"{cut.replace(' ', _SPACE)}\t{n}" for cut, n in sorted(counts.items()))
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        seed_file = Path(folder, "seeds.tsv")
        lines = (f"{text.replace(' ', _SPACE)}\t{number}\n" for text, number in seeds)
        seed_file.write_text("".join(lines), "utf-8", newline="")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences,
                model_writer=content,
                input_format="tsv",
                seed_sentencepieces_file=str(seed_file),
                model_type="unigram",
                vocab_size=size,
                hard_vocab_limit=False,
                byte_fallback=True,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                normalization_rule_name=_NORMALIZATION,
                # Cuts carry their own leading space.
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                max_sentence_length=4 * _MAX_CUT_CHARS + 4,  # bytes; UTF-8 takes at most 4
                # What a token may span was decided when the text was cut.
                split_by_whitespace=False,
                split_by_unicode_script=False,
                split_by_number=False,
                shuffle_input_sentence=False,
                minloglevel=2,
                split_digits=False,
                max_sentencepiece_length=max_length,
                character_coverage=0.9999,  # the rest is spelled in bytes
                # Fixed: sums over another number of threads are rounded differently.
                num_threads=4,
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigError(
                f"SentencePiece cannot train {size} tokens on this text: {error}"
            ) from error
    model = _ModelProto.FromString(content.getvalue())
    # The finished model reads whole texts, and must not depend on a temporary path.
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    for field in ("seed_sentencepieces_file", "input_format"):
        model.trainer_spec.ClearField(field)
    return model


def _mix(model: _ModelProto, spelling: _ModelProto, size: int) -> None:
    """Turns `model` into a mixture: p = (1 - w) p_model + w p_spelling, at most `size` tokens."""
    probabilities: dict[str, float] = defaultdict(float)
    for part, weight in ((model, 1 - _SPELLING_WEIGHT), (spelling, _SPELLING_WEIGHT)):
        for token in part.pieces:
            if token.type == _NORMAL:
                probabilities[token.piece] += weight * math.exp(token.score)
    parts = {token.piece for token in spelling.pieces}
    kept = [token for token in model.pieces if token.type != _NORMAL]
    # Should there be too many, the alphabet stays, and the parts: they are meant to be rare.
    ranked = sorted(
        probabilities.items(), key=lambda p: (len(p[0]) > 1, p[0] not in parts, -p[1], p[0])
    )
    ranked = sorted(ranked[: max(0, size - len(kept))], key=lambda p: (-p[1], p[0]))
    del model.pieces[:]
    model.pieces.extend(kept)
    model.trainer_spec.vocab_size = len(kept) + len(ranked)
    for text, probability in ranked:
        # Spelled so in some text, it would be taken for a sentinel that the file brings.
        if not BUILT_IN_SENTINEL.fullmatch(text):
            model.pieces.add(piece=text, score=math.log(probability), type=_NORMAL)
