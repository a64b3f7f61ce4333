"""Vectors for a vocabulary's pieces to start from, by a public sentence encoder.

Each piece, phrases and titles among them, is encoded as a sentence of its own. Half a word by
itself says little. Therefore the vectors of frequent pieces are moved until the mean over a
sentence is what the encoder makes of all of it, as nearly as a penalty on the way allows (ridge
regression), for sentences of the training data. All are put into as few dimensions as the model has
(principal components). That static vectors keep most of what an encoder knows of texts, and more
when they are fitted to it, was shown by Model2Vec (Tulkens and van Dongen, 2024).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from scipy import sparse

from m6rec_jax.checkpoints.bert import read_bert
from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model.bert import sentence_vectors
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.text.token_vectors import Rows

_VOCABULARY, _TOKENIZER = "vocab.txt", "tokenizer_config.json"
# Tokens of a sentence: longer ones are cut.
_MAX_TOKENS = 64
# Texts that are encoded together: few shapes, and no large one for a few texts.
_BATCHES, _LENGTH = (32, 256), 16
# Pieces of a sentence that is fitted to.
_LEAST = 4
# Of squared distances from the vectors of pieces alone, and how many pieces may move, the most
# frequent ones: memory is eight bytes of each pair.
_PENALTY, _MOVED = 0.03, 10_000


def encoder_folder(name: str) -> Path:
    """The folder of a sentence encoder: a path, or the name of a fetched one.

    Raises:
      CheckpointError: no encoder there.
    """
    for path in (Path(name), *(folder / name for folder in (data_dir(), default_cache_dir()))):
        if (path / _VOCABULARY).is_file():
            return path
    raise CheckpointError(
        f"{name!r} is no sentence encoder: neither a folder with {_VOCABULARY} nor one that "
        "`m6rec data fetch sentence-encoder` made"
    )


def sentence_encoder(folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """A BERT-like model, as a function from texts to vectors of unit length.

    Args:
      folder: with config.json, model.safetensors and vocab.txt.

    Returns:
      texts → float32 `[texts, width]`; zeros for a text without a token.

    Raises:
      CheckpointError: another kind of model, or damage.
    """
    config, weights = read_bert(folder)
    most = min(_MAX_TOKENS, weights["embeddings.position_embeddings.weight"].shape[0])
    tokens_of, weights = sentence_tokenizer(folder, most), jax.device_put(weights)
    run = jax.jit(lambda weights, ids: sentence_vectors(config, weights, ids, ids > 0))

    def encode(texts: Sequence[str]) -> np.ndarray:
        tokens = tokens_of(texts)
        vectors = np.zeros((len(texts), config.hidden_size), np.float32)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")  # alike lengths together
        order = order[[len(tokens[number]) > 0 for number in order]]
        size = _BATCHES[len(order) >= _BATCHES[1]]
        starts = range(0, len(order), size)
        for start in progress_bar(
            starts, desc="reading sentences", unit=" batches", delay=5.0, leave=False
        ):
            numbers = order[start : start + size]
            longest = -(-len(tokens[numbers[-1]]) // _LENGTH) * _LENGTH
            ids = np.zeros((size, min(longest, most)), np.int32)
            for row, number in enumerate(numbers):
                ids[row, : len(tokens[number])] = tokens[number]
            vectors[numbers] = np.asarray(run(weights, ids))[: len(numbers)]
        return vectors

    return encode


def sentence_tokenizer(
    folder: Path, max_tokens: int
) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """A function from texts to the encoder's tokens of each, int32; none of an empty text."""
    import tensorflow_text  # slow to import

    pieces = (folder / _VOCABULARY).read_text("utf-8").splitlines()
    begin, end = pieces.index("[CLS]"), pieces.index("[SEP]")
    options = folder / _TOKENIZER
    read = json.loads(options.read_text()) if options.is_file() else {}
    tokenizer = tensorflow_text.BertTokenizer(
        str(folder / _VOCABULARY), lower_case=read.get("do_lower_case", True)
    )

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        rows = tokenizer.tokenize(list(texts)).merge_dims(1, 2).to_list()
        return [
            np.array([begin, *ids[: max_tokens - 2], end] if ids else [], np.int32) for ids in rows
        ]

    return encode


def encoder_vectors(
    folder: Path,
    pieces: Sequence[str],
    batches: Iterable[Rows],
    width: int,
    sentences: int,
    seed: int,
) -> np.ndarray:
    """Vectors of pieces, of a mean square of one over all: float32 `[pieces, width]`.

    Args:
      folder: of the encoder, as for `sentence_encoder`, whose errors it raises.
      pieces: as the vocabulary writes them ("▁" for a space).
      batches: rows of the training data.
      width: of the vectors; columns beyond the encoder's own are zero.
      sentences: how many blocks of the rows the encoder reads at most.
      seed: of which they are.
    """
    encode = sentence_encoder(folder)
    vectors = _centred(encode(_texts(pieces, np.arange(len(pieces))[:, None])))
    says = vectors.any(axis=1)
    blocks = _sentences(batches, len(pieces))
    drawn = np.random.default_rng(seed).permutation(len(blocks))[:sentences]
    read = [blocks[number] for number in drawn]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *read]), minlength=len(pieces))
    if read:
        vectors = _fitted(vectors, counts, read, _centred(encode(_texts(pieces, read))))
    weights = 1.0 + counts
    around = vectors - np.average(vectors, axis=0, weights=weights)
    _, axes = np.linalg.eigh((around * weights[:, None]).T @ around)
    projected = vectors @ axes[:, ::-1][:, :width]
    wide = np.pad(projected, ((0, 0), (0, width - projected.shape[1])))
    return (wide / np.sqrt(np.mean(wide[says] ** 2))).astype(np.float32)


def _texts(pieces: Sequence[str], sentences: Iterable[np.ndarray]) -> list[str]:
    joined = ("".join(pieces[number] for number in sentence) for sentence in sentences)
    return [text.replace("▁", " ").strip() for text in joined]


def _centred(vectors: np.ndarray) -> np.ndarray:
    """Less their mean, float64; those of empty texts stay zero."""
    says = vectors.any(axis=1, keepdims=True)
    return np.where(says, vectors - vectors.mean(axis=0, where=says, dtype=np.float64), 0.0)


def _sentences(batches: Iterable[Rows], num_pieces: int) -> list[np.ndarray]:
    """Distinct blocks of pieces alone, without masks and marks, in the order they come."""
    distinct: dict[bytes, np.ndarray] = {}
    for tokens, blocks, documents in batches:
        marks = blocks[..., None] if documents is None else np.stack([blocks, documents], axis=-1)
        changes = np.asarray((marks[:, 1:] != marks[:, :-1]).any(axis=-1))
        for row, changed in zip(tokens, changes, strict=True):
            for block in np.split(row, np.flatnonzero(changed) + 1):
                if len(block) >= _LEAST and block.min() > 0 and block.max() < num_pieces:
                    distinct.setdefault(block.tobytes(), block)
    return list(distinct.values())


def _fitted(
    vectors: np.ndarray, counts: np.ndarray, sentences: Sequence[np.ndarray], wanted: np.ndarray
) -> np.ndarray:
    """Vectors whose means over sentences are nearer to what is wanted `[sentences, width]`."""
    from sklearn.linear_model import Ridge

    lengths = [len(sentence) for sentence in sentences]
    places = (np.repeat(np.arange(len(lengths)), lengths), np.concatenate(sentences))
    shares = sparse.csr_matrix(
        (np.repeat(1.0 / np.array(lengths), lengths), places), (len(lengths), len(vectors))
    )
    moved = np.argsort(-counts, kind="stable")[:_MOVED]
    ridge = Ridge(alpha=_PENALTY, fit_intercept=False, solver="cholesky")
    ridge.fit(shares[:, moved], wanted - shares @ vectors)
    vectors = vectors.copy()
    vectors[moved] += ridge.coef_.T
    return vectors
