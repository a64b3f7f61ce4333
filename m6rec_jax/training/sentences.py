"""A sentence encoder beside a run: its weights, and its tokens of every block of a batch."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.checkpoints.bert import read_bert
from m6rec_jax.checkpoints.huggingface import WEIGHTS_FILE
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.hashing import hash_files
from m6rec_jax.objectives.sentences import (
    SENTENCE_ENCODER,
    SENTENCE_TOKENS,
    SentenceDistillation,
    SentenceLoss,
)
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.sharding import replicated
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.data_state import Batch
from m6rec_jax.training.train_step import LossFunction

logger = logging.getLogger(__name__)
_VOCABULARY, _TOKENIZER = "vocab.txt", "tokenizer_config.json"


def with_sentence_encoder(
    loss: LossFunction, settings: SentenceDistillation, run: RunDescription, mesh: Mesh
) -> tuple[LossFunction, dict[str, Any], RunDescription]:
    """What a run needs to learn from a sentence encoder; `with_teacher` says what that is.

    Raises:
      CheckpointError: no such encoder, another kind of model, or damage.
    """
    folder = encoder_folder(settings.encoder)
    config, weights = read_bert(folder)
    most = weights["embeddings.position_embeddings.weight"].shape[0]
    if settings.max_tokens > most:
        raise CheckpointError(
            f"SentenceDistillation.max_tokens = {settings.max_tokens}: the encoder in {folder} has "
            f"{most} positions"
        )
    fingerprint = hash_files([folder / WEIGHTS_FILE, folder / _VOCABULARY]).hexdigest()
    logger.info("sentence encoder: %s, fingerprint %s…", folder, fingerprint[:16])
    placed = jax.device_put(weights, replicated(mesh))
    described = dataclasses.replace(run, extra={**run.extra, SENTENCE_ENCODER: fingerprint})
    return SentenceLoss(settings, loss, config), {SENTENCE_ENCODER: placed}, described


def add_sentences(
    settings: SentenceDistillation, vocabulary: Vocabulary
) -> Callable[[Batch], Batch]:
    """A function that adds the feature `SENTENCE_TOKENS` to batches.

    Each block of the source is turned back into text; sentinels and control tokens are left out.
    """
    encode = sentence_tokenizer(encoder_folder(settings.encoder), settings.max_tokens)

    @functools.lru_cache(maxsize=65_536)  # behaviours repeat
    def encoded(block: bytes) -> np.ndarray:
        return encode(vocabulary.decode(np.frombuffer(block, np.int32).tolist()))

    def add(batch: Batch) -> Batch:
        tokens, blocks = batch["encoder_input_tokens"], batch["encoder_block_ids"]
        shape = (len(tokens), settings.max_sentences, settings.max_tokens)
        found = np.zeros(shape, np.int32)
        for row, (ids, numbers) in enumerate(zip(tokens, blocks, strict=True)):
            for place in range(min(int(numbers.max(initial=0)), settings.max_sentences)):
                own = encoded(ids[numbers == place + 1].astype(np.int32).tobytes())
                found[row, place, : len(own)] = own
        return {**batch, SENTENCE_TOKENS: found}

    return add


def encoder_folder(name: str) -> Path:
    """The folder of a sentence encoder: a path, or the name of a fetched one.

    Raises:
      CheckpointError: no encoder there.
    """
    found = [path for path in (Path(name), data_dir() / name) if (path / _VOCABULARY).is_file()]
    if not found:
        raise CheckpointError(
            f"{name!r} is no sentence encoder: neither a folder with {_VOCABULARY} nor one that "
            "`m6rec data fetch sentence-encoder` made"
        )
    return found[0]


def sentence_tokenizer(folder: Path, max_tokens: int) -> Callable[[str], np.ndarray]:
    """A function from a text to the encoder's tokens, int32 `[tokens]`; none for an empty text."""
    import tensorflow_text  # slow to import

    pieces = (folder / _VOCABULARY).read_text("utf-8").splitlines()
    begin, end = pieces.index("[CLS]"), pieces.index("[SEP]")
    options = folder / _TOKENIZER
    read = json.loads(options.read_text()) if options.is_file() else {}
    tokenizer = tensorflow_text.BertTokenizer(
        str(folder / _VOCABULARY), lower_case=read.get("do_lower_case", True)
    )

    def encode(text: str) -> np.ndarray:
        ids = tokenizer.tokenize([text]).flat_values.numpy()[: max_tokens - 2]
        return np.array([begin, *ids, end] if len(ids) else [], np.int32)

    return encode
