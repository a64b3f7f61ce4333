"""`m6rec compress vocabulary`: fewer pieces, each with the embedding that it had.

Pieces of a unigram model can be left out one by one: texts are then cut into those that are left,
down to single bytes. What goes is what the run's training rows have least of; when a piece goes,
its occurrences count for the pieces that it is cut into.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from flax import linen as nn
from sentencepiece import sentencepiece_model_pb2

from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.compression.run_folder import training_batches_of, write_run
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.model_folder import (
    ASSETS_FOLDER,
    VOCABULARY_FILE,
    read_vocabulary,
    restore_model,
)
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.atomic import check_new
from m6rec_jax.model import ModelConfig
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.pipeline.run_vocabulary import own_vocabulary
from m6rec_jax.text.vocabulary import BUILT_IN_SENTINEL, Vocabulary

_Model = sentencepiece_model_pb2.ModelProto
_NORMAL, _BYTE = _Model.SentencePiece.NORMAL, _Model.SentencePiece.BYTE
_SPACE = "\u2581"
_BATCH_SIZE = 64
# Of the pieces that are left, a round keeps this share; then they are counted anew.
_ROUND = 0.8


def compress_vocabulary(
    run: Path,
    output: Path,
    size: int,
    *,
    rows: int = 20_000,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
) -> Vocabulary:
    """Writes a run folder of the same model with a smaller vocabulary.

    Args:
      run: MODEL_DIR of a training run; its newest checkpoint.
      output: a new folder, which `load_model` opens. Training takes it as INITIAL_CHECKPOINT_PATH,
        with `vocabulary_file.path` its `inference/vocabulary.model`, as its config.gin says.
      size: rows of the embedding, control tokens and sentinels included; a multiple of 128.
      rows: of the run's training data, in which pieces are counted.
      gin_files, bindings: settings beside the run's own, such as `data_dir.path`.

    Returns:
      The new vocabulary.

    Raises:
      ConfigError: a size that is no smaller, too small or no multiple of 128; no rows; a
        vocabulary that is no unigram model; or a run without `config.gin`.
      CheckpointError: no run, or something in `output`.
      DataError: the run's data are not on this machine.
    """
    if rows < 1:
        raise ConfigError(f"rows = {rows} must be at least 1")
    check_new(output)
    open_checkpoint(run)  # raises for a packed file, which can be restored, too
    old, restored = read_vocabulary(run), restore_model(run)
    num_pieces = size - (old.blank_id + 1 - old.num_pieces)
    if size % 128 or size >= old.size:
        raise ConfigError(
            f"size = {size} must be a multiple of 128 below the {old.size} rows of {run}"
        )
    proto = _Model.FromString(Path(old.model_file).read_bytes())
    with own_vocabulary(run):
        counts = _counts(run, old, rows, gin_files, bindings)
    kept = kept_pieces(proto, counts, num_pieces)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / VOCABULARY_FILE
        file.write_bytes(_with_pieces(proto, kept).SerializeToString())
        new = Vocabulary(file)
        config, variables = with_vocabulary(
            restored.model.config, restored.variables, old, new, kept
        )
        written = output.absolute() / ASSETS_FOLDER / VOCABULARY_FILE
        special = config.prompts.special_token_ids
        settings = _with_settings((run / CONFIG_FILE).read_text(), size, written, special)
        write_run(output, run, restored.step, config, variables, new, settings)
    return Vocabulary(output / ASSETS_FOLDER / VOCABULARY_FILE)


def kept_pieces(proto: Any, counts: np.ndarray, num_pieces: int) -> list[int]:
    """Numbers of the pieces that stay, ascending.

    Special pieces, bytes and the space stay; without bytes single characters do, too.

    Args:
      proto: a SentencePiece unigram model.
      counts: `[pieces]`, how often each occurs.
      num_pieces: how many stay.

    Raises:
      ConfigError: another type of model, or more pieces have to stay.
    """
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        raise ConfigError("only a unigram model can lose pieces; others are built of them")
    has_bytes = any(piece.type == _BYTE for piece in proto.pieces)

    def may_go(piece: Any) -> bool:
        text = piece.piece
        if piece.type != _NORMAL or text == _SPACE or BUILT_IN_SENTINEL.fullmatch(text):
            return False
        return has_bytes or len(text) > 1

    kept, counts = list(range(len(proto.pieces))), np.array(counts, np.float64)
    least = sum(not may_go(piece) for piece in proto.pieces)
    if num_pieces < least:
        raise ConfigError(
            f"{least} pieces have to stay (bytes and special ones), but there is room for "
            f"{num_pieces}: ask for a larger size"
        )
    while len(kept) > num_pieces:
        goes = sorted(
            (number for number in kept if may_go(proto.pieces[number])),
            key=lambda number: (counts[number], proto.pieces[number].score),
        )[: len(kept) - max(num_pieces, int(len(kept) * _ROUND))]
        kept = sorted(set(kept) - set(goes))
        model = _with_pieces(proto, kept)
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        for number in goes:
            text = proto.pieces[number].piece.replace(_SPACE, " ")
            for part in processor.encode(text) if counts[number] else ():
                counts[kept[part]] += counts[number]
    return kept


def with_vocabulary(
    config: ModelConfig,
    variables: Any,
    old: Vocabulary,
    new: Vocabulary,
    kept: Sequence[int],
) -> tuple[ModelConfig, dict[str, Any]]:
    """The model with the rows of a vocabulary whose pieces are `kept` of the old one's.

    Whatever has an axis of tokens is cut: embeddings, logits, updates of the embedding.
    """
    rows = np.full(new.size, config.vocab_size - 1)  # spare ones are like a spare one
    rows[: len(kept)] = kept
    rows[_control_ids(new)] = _control_ids(old)
    boxed = abstract_variables(config)

    def cut(box: nn.LogicallyPartitioned, leaf: jax.Array) -> jax.Array:
        if "vocab" not in box.names:
            return leaf
        return jnp.take(leaf, rows, axis=box.names.index("vocab"))

    found = jax.tree.map(
        cut,
        {name: boxed[name] for name in variables},
        dict(variables),
        is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
    )
    new_ids = {id_: place for place, id_ in reversed([*enumerate(rows.tolist())])}
    special = config.prompts.special_token_ids
    if missing := [id_ for id_ in special if id_ not in new_ids]:
        raise ConfigError(
            f"PromptConfig.special_token_ids has {missing[0]}, {old.pieces(missing)[0]!r}, which "
            "the smaller vocabulary lacks"
        )
    ids = tuple(new_ids[id_] for id_ in special)
    prompts = dataclasses.replace(config.prompts, special_token_ids=ids)
    return config.replace(vocab_size=new.size, prompts=prompts), found


def _control_ids(vocabulary: Vocabulary) -> list[int]:
    names = vocabulary.user_id, vocabulary.system_id, vocabulary.blank_id
    return [*vocabulary.special_ids, *names, *vocabulary.sentinel_ids]


def _with_pieces(proto: Any, kept: Sequence[int]) -> Any:
    """The SentencePiece model with some of its pieces."""
    model = _Model()
    model.CopyFrom(proto)
    del model.pieces[:]
    model.pieces.extend(proto.pieces[number] for number in kept)
    model.trainer_spec.vocab_size = len(kept)
    return model


def _with_settings(text: str, size: int, vocabulary_file: Path, special: Sequence[int]) -> str:
    """A run's gin settings with another vocabulary, in whatever scope they stand."""
    names = r"VOCAB_SIZE|ModelConfig\.vocab_size|vocabulary_file\.(?:path|shared)"
    names += r"|PromptConfig\.special_token_ids"
    statement = rf"^(?:\w+/)*(?:{names}) = .*\n(?:[ \t]+.*\n)*"
    return (
        re.sub(statement, "", text, flags=re.MULTILINE)
        + f"\nVOCAB_SIZE = {size}\nModelConfig.vocab_size = %VOCAB_SIZE\n"
        + f"PromptConfig.special_token_ids = {tuple(special)}\n"
        + f"import m6rec_jax.pipeline.locations\nvocabulary_file.path = {str(vocabulary_file)!r}\n"
    )


def _counts(
    run: Path,
    vocabulary: Vocabulary,
    rows: int,
    gin_files: Sequence[str],
    bindings: Sequence[str],
) -> np.ndarray:
    """How often the run's training data have each piece, `[pieces]`."""
    source = training_batches_of(run, _BATCH_SIZE, gin_files, bindings)
    counts = np.zeros(vocabulary.size, np.int64)
    for _ in range(-(-rows // _BATCH_SIZE)):
        batch = next(source)
        for tower in ("encoder", "decoder"):
            tokens = batch[f"{tower}_input_tokens"][batch[f"{tower}_block_ids"] != 0]
            counts += np.bincount(tokens, minlength=vocabulary.size)
    return counts[: vocabulary.num_pieces]
