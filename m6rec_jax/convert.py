"""`m6rec convert`: backbones from and to Hugging Face's and t5x's formats.

    m6rec convert --from huggingface:flan-t5-base --to runs/flan
    m6rec convert --from runs/foundation --to t5x:exported

and whole runs, prompts included, to and from runs of the same model under t5x:

    m6rec convert --from runs/foundation --to t5x_bridge:t5x/foundation

Training takes the result as INITIAL_CHECKPOINT_PATH. With a vocabulary, which a Hugging Face folder
brings as `spiece.model`, `engine.model_folder.load_model` loads it, too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.checkpoints.checkpoint import (
    CHECKPOINTS_FOLDER,
    PARAMS,
    PROMPTS,
    list_steps,
    open_checkpoint,
)
from m6rec_jax.checkpoints.formats import (
    HUGGING_FACE,
    OURS,
    SCALABLE_T5,
    T5X_BRIDGE,
    Location,
)
from m6rec_jax.checkpoints.huggingface import (
    SPIECE_FILE,
    from_model_config,
    read_huggingface,
    write_huggingface,
)
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.t5_weights import Weights, plain_config, with_rows
from m6rec_jax.checkpoints.t5x import read_t5x, write_t5x
from m6rec_jax.checkpoints.t5x_files import checkpoint_folder
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.model_folder import (
    ASSETS_FOLDER,
    VOCABULARY_FILE,
    InferenceSettings,
    save_assets,
    variable_targets,
)
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.buckets import kept_copy
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.t5x_bridge.checkpoints import from_t5x, to_t5x
from m6rec_jax.text.vocabulary import Vocabulary

# In the manifest of a run that was converted from Hugging Face.
_MODEL_TYPE = "huggingface_model_type"
# What T5 was pretrained with; relative positions allow any other.
_LENGTHS = InferenceSettings(source_length=512, target_length=128)
_SIZES = (
    "embed_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_heads",
    "head_dim",
    "mlp_dim",
)
_LATE = ("late_layers_start", "decoder_late_start", "cross_attention_at")
_ELSEWHERE = ("vocab_size", "dropout_rate", *_LATE, "prompts")


def convert(
    source: str,
    target: str,
    *,
    vocabulary_file: Path | None = None,
    model_type: str | None = None,
) -> str:
    """Converts a backbone and returns a summary.

    Args:
      source: 'FORMAT:FOLDER', see `formats.FORMATS`; a folder alone is a run of ours, or its
        checkpoint.
      target: likewise; a new folder.
      vocabulary_file: SentencePiece file of the model; None: the one in the source, if any. A
        model of ours gets as many rows as it needs. Formats of t5x hold none, and a run under t5x
        brings its own.
      model_type: of a Hugging Face target: 't5', 'mt5' or 'umt5'; None: that of the source, if it
        came from Hugging Face, else by its arithmetic.

    Raises:
      ConfigError: an unknown format, twice the same, a model that the target cannot hold, or a
        vocabulary that would not be used.
      CheckpointError: the source is no such checkpoint, is damaged or does not fit; the target
        exists.
    """
    here, there = Location.parse(source), Location.parse(target)
    if here.format == there.format:
        raise ConfigError(f"{source} and {target} are both of the format {here.format}")
    if model_type is not None and there.format != HUGGING_FACE:
        raise ConfigError(f"--model-type {model_type} is for --to {HUGGING_FACE}:FOLDER alone")
    holds_vocabulary = there.format in (OURS, HUGGING_FACE) and here.format != T5X_BRIDGE
    if vocabulary_file is not None and not holds_vocabulary:
        raise ConfigError(
            f"--vocabulary {vocabulary_file} would not be used from {here.format} to "
            f"{there.format}; leave it out"
        )
    if T5X_BRIDGE in (here.format, there.format):
        return _exchanged(here, there)
    if there.format == OURS:
        _check_no_run(there.folder)
    vocabulary_file = vocabulary_file or _vocabulary_of(here)
    weights, step = _read(here)
    weights = replace(weights, model_type=model_type or weights.model_type)
    vocabulary = None
    if holds_vocabulary and vocabulary_file is not None:
        vocabulary = Vocabulary(vocabulary_file)
        weights = _for_vocabulary(weights, vocabulary, may_grow=there.format == OURS)
    notes = [*weights.notes]
    if there.format == OURS:
        _write_ours(weights, there.folder, vocabulary, source)
        if vocabulary is None:
            notes.append(
                "no vocabulary given (--vocabulary): good for INITIAL_CHECKPOINT_PATH, but not for "
                "load_model, and nothing checks that token ids mean the same"
            )
        elif spare := weights.config.vocab_size - vocabulary.size:
            notes.append(f"{spare} rows beyond the vocabulary's {vocabulary.size} are kept")
    elif there.format == HUGGING_FACE:
        write_huggingface(weights, there.folder, vocabulary_file=vocabulary_file)
        if vocabulary is None:
            notes.append("no vocabulary found or given (--vocabulary): it has no tokenizer")
        written = from_model_config(weights.config, weights.model_type)["model_type"]
        hint = "" if weights.model_type else " (--model-type says otherwise, of mT5 for instance)"
        notes.append(f"transformers' Auto classes take it for {written!r}{hint}")
    else:
        write_t5x(weights, there.folder, step=step, scanned=there.format == SCALABLE_T5)
    size = sum(leaf.size for leaf in weights.leaves.values())
    lines = [f"wrote {size:,} parameters to {there.folder}", *notes, "the model in gin:"]
    return "\n".join([*lines, *(f"  {line}" for line in gin_lines(weights.config))])


def _exchanged(here: Location, there: Location) -> str:
    """Moves a run to or from t5x."""
    if OURS not in (here.format, there.format):
        raise ConfigError(
            f"{here.format} to {there.format}: runs under t5x become runs of m6rec and back; "
            "convert to m6rec first"
        )
    # Converted in its own folder, a run has beside it what it needs.
    if there.format == OURS and there.folder != checkpoint_folder(here.folder).parent:
        _check_no_run(there.folder)
    step, size = (to_t5x if here.format == OURS else from_t5x)(here.folder, there.folder)
    return f"wrote {size:,} parameters of step {step}, prompts included, to {there.folder}"


def gin_lines(config: ModelConfig) -> list[str]:
    """A model's settings as in a model file in gin, below architecture.gin.

    Sizes, and what differs from `ModelConfig`'s defaults; no dropout or late interaction, which
    each run chooses.
    """
    lines = [f"VOCAB_SIZE = {config.vocab_size}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _SIZES or (field.name not in _ELSEWHERE and value != field.default):
            lines.append(f"ModelConfig.{field.name} = {value!r}")
    return lines


def _read(place: Location) -> tuple[Weights, int]:
    """A backbone and its step."""
    if place.format == OURS:
        return _read_ours(place.folder)
    # `read_t5x` recognises both layouts.
    return (read_huggingface if place.format == HUGGING_FACE else read_t5x)(place.folder), 0


def _read_ours(folder: Path) -> tuple[Weights, int]:
    checkpoint = open_checkpoint(folder)
    checkpoint.warn_of_a_better_step(folder)
    manifest, config = checkpoint.manifest, checkpoint.config
    notes = []
    if left := len(manifest.tensors.get(PROMPTS, {})):
        notes.append(f"{left} tensors of prompts stay behind: T5 has no place for them")
    none = plain_config()
    plain = config.replace(prompts=none.prompts, **{name: getattr(none, name) for name in _LATE})
    if late := [n for n in _LATE if getattr(config, n) != getattr(plain, n)]:
        notes.append(f"{', '.join(late)}: without what these set, outputs differ")
    shapes = variable_targets(M6Rec(plain))["params"]
    params = checkpoint.restore(PARAMS, shapes, config)
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    model_type = manifest.extra.get(_MODEL_TYPE)
    return Weights(plain, leaves, tuple(notes), model_type), checkpoint.step


def _check_no_run(folder: Path) -> None:
    """Raises CheckpointError where a run would be overwritten."""
    if steps := list_steps(folder / CHECKPOINTS_FOLDER):
        raise CheckpointError(f"{folder} has a checkpoint already (step {steps[-1]})")
    for name in (ASSETS_FOLDER, CONFIG_FILE):
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder} is a run already, though without a checkpoint: it has {name}; "
                "name a new folder"
            )


def _write_ours(weights: Weights, folder: Path, vocabulary: Vocabulary | None, source: str) -> None:
    run = RunDescription(
        model_config=weights.config,
        vocabulary_fingerprint=None if vocabulary is None else vocabulary.fingerprint,
        trainable="all",
        extra={"converted_from": source}
        | ({} if weights.model_type is None else {_MODEL_TYPE: weights.model_type}),
    )
    params = jax.tree.map(jnp.asarray, nested(weights.leaves))
    with CheckpointStore(folder / CHECKPOINTS_FOLDER, asynchronous=False) as store:
        store.save(0, {PARAMS: params}, data={}, run=run)
    if vocabulary is not None:
        save_assets(folder, vocabulary, _LENGTHS)


def _vocabulary_of(place: Location) -> Path | None:
    """The vocabulary in a source; for a step's folder, that of its run."""
    candidates = []
    if place.format == HUGGING_FACE:
        candidates = [place.folder / SPIECE_FILE]
    elif place.format == OURS:
        folders = (place.folder, place.folder.parent, place.folder.parent.parent)
        candidates = [folder / ASSETS_FOLDER / VOCABULARY_FILE for folder in folders]
    return next((kept_copy(path) for path in candidates if path.exists()), None)


def _for_vocabulary(weights: Weights, vocabulary: Vocabulary, *, may_grow: bool) -> Weights:
    """The same model, with a row for every id of the vocabulary if it may grow.

    Raises CheckpointError where it has fewer rows than the vocabulary has pieces of text.
    """
    rows = weights.config.vocab_size
    if rows < vocabulary.num_pieces:
        raise CheckpointError(
            f"the model has {rows} rows, but {vocabulary.model_file} has {vocabulary.num_pieces} "
            "pieces: it is not this model's vocabulary"
        )
    if not may_grow:
        return weights
    controls = sorted({*vocabulary.special_ids, vocabulary.user_id, vocabulary.blank_id})
    untrained = [id_ for id_ in controls if vocabulary.num_pieces <= id_ < rows]
    if untrained:
        note = (
            f"control tokens take rows {untrained[0]} to {untrained[-1]}, which T5 has as padding: "
            "kept as they are, and never trained"
        )
        weights = replace(weights, notes=(*weights.notes, note))
    return with_rows(weights, max(rows, vocabulary.size), vocabulary.num_pieces)
