"""Trains a SentencePiece vocabulary on a data set's own text.

Whole phrases become single pieces (unless `split_by_whitespace=True`): "Star Wars (1977)" is one
token, and behaviours shrink to about half their length, which is most of the cost of a step on a
CPU.

The model is a mixture of two unigram models, each trained by SentencePiece's EM:

- one of *phrases* (or words), on the text as it is. It makes frequent text short, but forgets how
  to spell: parts of words that only ever occur inside whole titles vanish from it.
- one of *parts of words*, on every distinct phrase (or word) once, from strings that at least two
  of them share. It spells what was never seen, such as the title of a new item.

Candidate pieces are proposed here rather than by SentencePiece, whose suffix array only finds
strings that are continued in two different ways: in templated text ("liked" is always followed by
a space) it misses most whole words, and across spaces it proposes pieces such as "s ago".
"""

from __future__ import annotations

import collections
import io
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gin
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.hashing import sha256
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.text.phrase_cuts import (
    MAX_CUT_CHARS,
    NORMALIZATION,
    SPACE,
    PhraseCuts,
    keep_most_common,
    words_of,
)
from m6rec_jax.text.vocabulary import BUILT_IN_SENTINEL

_NUM_RESERVED = 3 + 256  # pad, eos, unk; bytes
_SPELLING_WEIGHT = 0.02  # of the mixture: enough for unseen words, too little to break up seen ones
_EXPECTED_OVERLAP = 0.8  # share of the parts of words that the phrase model holds, too
# Share of the pieces set aside for parts of words, so that unseen words are spelled sensibly.
_SPELLING_SHARE = 0.25
_MAX_PART_CHARS, _MAX_PHRASE_CHARS = 16, 80
# How often a phrase, word or part must occur to become a piece.
_MIN_COUNT = 2
_MAX_SEEDS = 1_000_000
_MAX_COUNTED = 4_000_000
_RUN = re.compile(r"\d+|[^\W\d_]+|(?:[^\w\s]|_)+")

_ModelProto: TypeAlias = sentencepiece_model_pb2.ModelProto
_NORMAL = _ModelProto.SentencePiece.NORMAL


@dataclass(frozen=True)
class TrainedVocabulary:
    """What training made; also written as JSON beside the model.

    Attributes:
      model_file, sha256: the SentencePiece file and its hash.
      num_pieces: in the file, byte and control pieces included; at most the size asked for.
      num_texts, num_empty_texts: texts read, and those without anything to learn from.
      num_sanitised_texts, num_long_cuts, num_forgotten: see `PhraseCuts`.
    """

    model_file: str
    sha256: str
    num_pieces: int
    num_texts: int
    num_empty_texts: int
    num_sanitised_texts: int
    num_long_cuts: int
    num_forgotten: int
    options: dict[str, Any]
    sentencepiece_version: str


@gin.configurable
def train_vocabulary(
    texts: Iterable[str],
    output: str | os.PathLike[str],
    size: int = 8000,
    *,
    prose: Iterable[str] = (),
    split_by_whitespace: bool = False,
    keep_apart: Sequence[str] = (),
    progress: bool = False,
) -> TrainedVocabulary:
    """Trains a unigram model and writes it, with a JSON file of the same name beside it.

    The same texts and options always give the same file, byte for byte. The model has T5's ids (pad
    0, eos 1, unk 2, no bos) and 256 byte pieces, keeps case, and normalises with NFKC.

    Args:
      texts: the text to learn from, in the proportions in which the model will see it. Read once.
        Leave out items that the model is to meet as new ones: a piece of its own that training
        never shows has an embedding that means nothing.
      output: where the model goes. Another one that is there is not overwritten: what was trained
        with it fits no other.
      size: pieces in the file, byte pieces included; fewer come out when the text has no more.
        With the control tokens, the default fits the 8,192 rows of `gin_configs/models/mini.gin`.
      prose: more text, read after `texts`; its words become pieces, but no phrases of several, of
        which free text has so many that they would fill the memory.
      split_by_whitespace: False lets phrases such as titles become single pieces; True only words.
      keep_apart: words or phrases that never share a piece with their neighbours. Name a template's
        outcome words here, or they grow onto titles ("liked Fargo (1996)" as one piece).

    Raises:
      ConfigError: an option out of range, or a size too small for the characters of the text.
      DataError: there is no text at all, or another vocabulary at the output.
    """
    max_piece_length = _MAX_PART_CHARS if split_by_whitespace else _MAX_PHRASE_CHARS
    cuts = PhraseCuts(keep_apart, words=split_by_whitespace)
    for text in texts:
        cuts.add(text)
    for text in prose:
        cuts.add(text, words=True)
    if not cuts.counts:
        raise DataError(
            f"there is nothing to train a vocabulary on: {cuts.num_texts} texts, all empty"
        )
    words: collections.Counter[str] = collections.Counter()
    distinct: collections.Counter[str] = collections.Counter()
    for cut, number in cuts.counts.items():
        for word in words_of(cut):
            words[word] += number
            distinct[word] += 1

    bar = progress_bar(total=3, desc="parts of words", unit=" parts", disable=not progress)
    spelling_size = _NUM_RESERVED + len(set().union(*words))
    spelling_size += int(_SPELLING_SHARE * max(0, size - spelling_size))
    seeds = _seed_pieces({}, distinct, max_piece_length)
    spelling = _train(distinct, seeds, min(size, spelling_size), max_piece_length)
    bar.update()
    bar.set_description("phrases")
    num_parts = sum(p.type == _NORMAL and len(p.piece) > 1 for p in spelling.pieces)
    size_left = size - int(num_parts * (1 - _EXPECTED_OVERLAP))
    phrases = {} if split_by_whitespace else _phrases(cuts.counts, max_piece_length)
    seeds = _seed_pieces(phrases, words, max_piece_length)
    bar.update()
    model = _train(cuts.counts, seeds, size_left, max_piece_length)
    bar.update()
    bar.close()
    _mix(model, spelling, size)
    for place in reversed(range(len(model.pieces))):
        # Spelled so in some text, it would be taken for a sentinel that the file brings.
        if BUILT_IN_SENTINEL.fullmatch(model.pieces[place].piece):
            del model.pieces[place]
    content: bytes = model.SerializeToString(deterministic=True)

    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists() and output.read_bytes() != content:
        raise DataError(
            f"{output} holds another vocabulary, which runs that begin with a model trained with "
            "it need. If there are none, remove it; or let this one go elsewhere "
            "(train_on_prepared.output, and vocabulary_file.path where it is used)"
        )
    summary = TrainedVocabulary(
        model_file=str(output),
        sha256=sha256(content),
        num_pieces=len(model.pieces),
        num_texts=cuts.num_texts,
        num_empty_texts=cuts.num_empty,
        num_sanitised_texts=cuts.num_sanitised,
        num_long_cuts=cuts.num_long,
        num_forgotten=cuts.num_forgotten,
        options={
            "size": size,
            "split_by_whitespace": split_by_whitespace,
            "keep_apart": list(keep_apart),
        },
        sentencepiece_version=sentencepiece.__version__,
    )
    description = asdict(summary) | {"model_file": output.name}
    write_atomically(output, content)
    write_atomically(output.with_suffix(".json"), json.dumps(description, indent=2) + "\n")
    return summary


def _phrases(counts: Mapping[str, int], max_length: int) -> collections.Counter[str]:
    """Counts the runs of two or more whole words inside a cut that occur `_MIN_COUNT` times.

    Longer runs are only looked for where both of their shorter ends were found often enough, or
    free text would fill the memory with runs that occur once.
    """
    found: collections.Counter[str] = collections.Counter()
    ends = {cut: list(itertools.accumulate(map(len, words_of(cut)), initial=0)) for cut in counts}
    # The first words of runs that may still grow.
    growing: dict[str, Iterable[int]] = {cut: range(len(ends[cut]) - 2) for cut in counts}
    for width in itertools.count(2):
        runs: collections.Counter[str] = collections.Counter()
        for cut, firsts in growing.items():
            for first in firsts:
                start, end = ends[cut][first], ends[cut][first + width]
                if end - start <= max_length:
                    runs[cut[start:end]] += counts[cut]
        often = {run: number for run, number in runs.items() if number >= _MIN_COUNT}
        if not often:
            break
        found.update(often)
        for cut, firsts in growing.items():
            bounds = ends[cut]
            live = {n for n in firsts if cut[bounds[n] : bounds[n + width]] in often}
            growing[cut] = {first for first in live if first + 1 in live}
    return found


def _seed_pieces(
    phrases: Mapping[str, int], words: Mapping[str, int], max_length: int
) -> list[tuple[str, int]]:
    """Proposes pieces: phrases of whole words, words, and parts of words.

    Returns:
      (piece, count) pairs seen at least `_MIN_COUNT` times, those that cover most text first.
    """
    seeds = collections.Counter(phrases)
    for word, number in words.items():
        for part in {word, *_parts_of_word(word)}:
            if len(part) <= max_length:
                seeds[part] += number
        if len(seeds) > _MAX_COUNTED:
            keep_most_common(seeds, _MAX_COUNTED // 2)
    often = [(s, number) for s, number in seeds.items() if len(s) > 1 and number >= _MIN_COUNT]
    return sorted(often, key=lambda seed: (-seed[1] * len(seed[0]), seed[0]))[:_MAX_SEEDS]


def _parts_of_word(word: str) -> Iterator[str]:
    """Gives every stretch of letters, of digits or of punctuation, with the space before it."""
    for match in _RUN.finditer(word):
        start, end = match.span()
        start -= start == 1 and word[0] == " "
        for first in range(start, end):
            for last in range(first + 2, min(end, first + _MAX_PART_CHARS) + 1):
                yield word[first:last]


def _train(
    counts: Mapping[str, int], seeds: Iterable[tuple[str, int]], size: int, max_piece_length: int
) -> _ModelProto:
    """Runs SentencePiece's EM on counted cuts."""
    # Sorted: the order of sentences decides how sums are rounded.
    sentences = (f"{cut.replace(' ', SPACE)}\t{n}" for cut, n in sorted(counts.items()))
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        seed_file = Path(folder, "seeds.tsv")
        lines = (f"{piece.replace(' ', SPACE)}\t{number}\n" for piece, number in seeds)
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
                normalization_rule_name=NORMALIZATION,
                # Cuts carry their own leading space.
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                max_sentence_length=4 * MAX_CUT_CHARS + 4,  # bytes; UTF-8 takes at most 4
                # What a piece may span was decided when the text was cut.
                split_by_whitespace=False,
                split_by_unicode_script=False,
                split_by_number=False,
                shuffle_input_sentence=False,
                minloglevel=2,
                split_digits=False,
                max_sentencepiece_length=max_piece_length,
                character_coverage=0.9999,  # the rest is spelled in bytes
                # Fixed: sums over another number of threads are rounded differently.
                num_threads=4,
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigError(
                f"SentencePiece cannot train {size} pieces on this text: {error}"
            ) from error
    model = _ModelProto.FromString(content.getvalue())
    # The finished model reads whole texts, and must not depend on a temporary path.
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    for field in ("seed_sentencepieces_file", "input_format"):
        model.trainer_spec.ClearField(field)
    return model


def _mix(model: _ModelProto, spelling: _ModelProto, size: int) -> None:
    """Turns `model` into a mixture: p = (1 - w) p_model + w p_spelling, at most `size` pieces."""
    probabilities: dict[str, float] = collections.defaultdict(float)
    parts = {piece.piece for piece in spelling.pieces}
    for part, weight in ((model, 1 - _SPELLING_WEIGHT), (spelling, _SPELLING_WEIGHT)):
        for piece in part.pieces:
            if piece.type == _NORMAL:
                probabilities[piece.piece] += weight * math.exp(piece.score)
    kept = [piece for piece in model.pieces if piece.type != _NORMAL]
    # Should there be too many, the alphabet stays, and the parts: they are meant to be rare.
    ranked = sorted(
        probabilities.items(), key=lambda p: (len(p[0]) > 1, p[0] not in parts, -p[1], p[0])
    )
    ranked = sorted(ranked[: max(0, size - len(kept))], key=lambda p: (-p[1], p[0]))
    del model.pieces[:]
    model.pieces.extend(kept)
    for text, probability in ranked:
        model.pieces.add(piece=text, score=math.log(probability), type=_NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
