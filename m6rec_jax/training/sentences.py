"""A sentence encoder beside a run: what it makes of every block of a batch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from m6rec_jax.checkpoints.bert import read_bert
from m6rec_jax.checkpoints.huggingface import WEIGHTS_FILE
from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.data.store.manifest import fingerprint
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model.bert import sentence_vectors
from m6rec_jax.objectives.sentences import (
    SENTENCE_VECTORS,
    SentenceDistillation,
    sentence_numbers,
)
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.data_state import Batch

_VOCABULARY, _TOKENIZER = "vocab.txt", "tokenizer_config.json"
# Texts that are encoded together: few shapes, and no large one for a few texts.
_BATCHES, _LENGTH = (32, 256), 16
# Sentences whose vectors are kept.
_KEPT = 100_000


class SentenceEncoder:
    """A BERT-like model that makes vectors of texts.

    Args:
      folder: with config.json, model.safetensors and vocab.txt.
      max_tokens: of a text; longer ones are cut.

    Attributes:
      width: of the vectors.
      fingerprint: of its weights and vocabulary.

    Raises:
      CheckpointError: another kind of model, damage, or fewer positions than `max_tokens`.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        config, weights = read_bert(folder)
        most = weights["embeddings.position_embeddings.weight"].shape[0]
        if max_tokens > most:
            raise CheckpointError(
                f"the encoder in {folder} has {most} positions, fewer than the {max_tokens} tokens "
                "that are asked for (SentenceDistillation.max_tokens)"
            )
        self.width, self._most = config.hidden_size, most
        self.fingerprint = fingerprint(files=[folder / WEIGHTS_FILE, folder / _VOCABULARY])
        self._weights = jax.device_put(weights)
        self._tokens = sentence_tokenizer(folder, max_tokens)
        self._run = jax.jit(lambda weights, ids: sentence_vectors(config, weights, ids, ids > 0))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of unit length, float32 `[texts, width]`; zeros for a text without a token."""
        tokens = self._tokens(texts)
        found = np.zeros((len(texts), self.width), np.float32)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")  # alike lengths together
        order = order[[len(tokens[number]) > 0 for number in order]]
        size = _BATCHES[len(order) >= _BATCHES[1]]
        starts = range(0, len(order), size)
        for start in progress_bar(
            starts, desc="reading sentences", unit=" batches", delay=5.0, leave=False
        ):
            numbers = order[start : start + size]
            longest = -(-len(tokens[numbers[-1]]) // _LENGTH) * _LENGTH
            ids = np.zeros((size, min(longest, self._most)), np.int32)
            for row, number in enumerate(numbers):
                ids[row, : len(tokens[number])] = tokens[number]
            found[numbers] = np.asarray(self._run(self._weights, ids))[: len(numbers)]
        return found


def add_sentences(
    settings: SentenceDistillation, encoder: SentenceEncoder, vocabulary: Vocabulary
) -> Callable[[Batch], Batch]:
    """A function that adds the feature `SENTENCE_VECTORS` to batches.

    Each block of the source is turned back into text. Blocks of which spans are masked say less to
    the encoder than to the student, and are left out. Texts come again, and are encoded once. Any
    thread may call it: training batches are made on another one than those of validations.
    """
    sentinels = np.asarray(vocabulary.sentinel_ids)
    known: dict[bytes, np.ndarray] = {}
    lock = threading.Lock()

    def add(batch: Batch) -> Batch:
        with lock:
            return extended(batch)

    def extended(batch: Batch) -> Batch:
        tokens, sentences = batch["encoder_input_tokens"], sentence_numbers(batch)
        places: dict[bytes, list[tuple[int, int]]] = {}
        for row, (ids, numbers) in enumerate(zip(tokens, sentences, strict=True)):
            for place in range(min(int(numbers.max(initial=0)), settings.max_sentences)):
                block = ids[numbers == place + 1].astype(np.int32)
                if not np.isin(block, sentinels).any():
                    places.setdefault(block.tobytes(), []).append((row, place))
        new = [block for block in places if block not in known]
        texts = [vocabulary.decode(np.frombuffer(block, np.int32).tolist()) for block in new]
        known.update(zip(new, encoder(texts), strict=True))
        found = np.zeros((len(tokens), settings.max_sentences, encoder.width), np.float32)
        for block, of_block in places.items():
            rows, columns = zip(*of_block, strict=True)
            found[rows, columns] = known[block]
        while len(known) > _KEPT:
            del known[next(iter(known))]
        return {**batch, SENTENCE_VECTORS: found}

    return add


def encoder_folder(name: str) -> Path:
    """The folder of a sentence encoder: a path, or the name of a fetched one.

    Raises:
      CheckpointError: no encoder there.
    """
    places = (Path(name), *(folder / name for folder in (data_dir(), default_cache_dir())))
    found = [path for path in places if (path / _VOCABULARY).is_file()]
    if not found:
        raise CheckpointError(
            f"{name!r} is no sentence encoder: neither a folder with {_VOCABULARY} nor one that "
            "`m6rec data fetch sentence-encoder` made"
        )
    return found[0]


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
        if not texts:
            return []
        found = tokenizer.tokenize(list(texts)).merge_dims(1, 2)
        all_ids, bounds = found.flat_values.numpy(), found.row_splits.numpy()
        return [
            np.array([begin, *ids[: max_tokens - 2], end] if len(ids) else [], np.int32)
            for ids in np.split(all_ids, bounds[1:-1])
        ]

    return encode
