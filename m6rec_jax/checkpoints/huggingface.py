"""Hugging Face folders of T5 models: `config.json` and safetensors, without torch.

Reads T5 1.0, T5 1.1, Flan-T5, mT5 and UMT5, in one file or several; writes what
`T5ForConditionalGeneration.from_pretrained` (or mT5's, or UMT5's) reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from m6rec_jax.checkpoints.failures import failure
from m6rec_jax.checkpoints.t5_weights import (
    Weights,
    foreign_entries,
    gather,
    leaf_shapes,
    plain_config,
)
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.atomic import new_folder
from m6rec_jax.model.config import ModelConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
# T5's SentencePiece file.
SPIECE_FILE = "spiece.model"

# The head is a matrix of its own (T5 1.1), the embedding scaled by 1/sqrt(embed) (T5 1.0), or the
# embedding as it is (a T5 1.1 that transformers 5 has saved: it ties what it saves).
OWN_HEAD, TIED, UNSCALED = "own", "tied", "unscaled"

# Model type → class and whether every layer has its own relative position bias.
MODEL_TYPES = {
    "t5": ("T5ForConditionalGeneration", False),
    "mt5": ("MT5ForConditionalGeneration", False),
    "umt5": ("UMT5ForConditionalGeneration", True),
}
_SIZES = {
    "vocab_size": "vocab_size",
    "embed_dim": "d_model",
    "num_encoder_layers": "num_layers",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
}
# Not in all files; with T5's values where they are missing.
_OPTIONAL = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
}
# 'gated-gelu' means the tanh approximation there, whereas 'gelu' alone is the exact function.
_ACTIVATIONS = {
    "gated-gelu": ("gelu", "linear"),
    "gated-gelu_new": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
    "relu": ("relu",),
    "gelu_new": ("gelu",),
    "silu": ("silu",),
}
_EMBEDDING, _HEAD = "shared.weight", "lm_head.weight"
# Written beside the embedding by some versions: always the same values.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Left in old checkpoints by the first T5 library; no implementation reads it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def to_model_config(values: Mapping[str, Any], where: str, *, tied: bool) -> ModelConfig:
    """The `ModelConfig` of a `config.json`.

    Args:
      values: of the file.
      where: the file, for errors.
      tied: the output head is the embedding, scaled.

    Raises:
      CheckpointError: another kind of model, no size, an activation that we do not have.
    """
    model_type = values.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{where}: model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}"
        )
    projection = values.get("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
    if projection not in _ACTIVATIONS:
        raise CheckpointError(
            f"{where}: feed_forward_proj {projection!r} is not one of {', '.join(_ACTIVATIONS)}"
        )
    try:
        return plain_config(
            **{ours: values[theirs] for ours, theirs in _SIZES.items()},
            **{name: values.get(name, default) for name, default in _OPTIONAL.items()},
            num_decoder_layers=values.get("num_decoder_layers") or values["num_layers"],
            mlp_activations=_ACTIVATIONS[projection],
            per_layer_relative_bias=MODEL_TYPES[model_type][1],
            logits_via_embedding=tied,
        )
    except KeyError as error:
        raise CheckpointError(f"{where} does not say {error}") from error
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def from_model_config(config: ModelConfig, model_type: str | None = None) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
      config: of the model.
      model_type: one of `MODEL_TYPES`, by which transformers' Auto classes choose model and
        tokenizer; None: 'umt5' with a position bias in every layer, else 't5'.

    Raises:
      ConfigError: an activation that Hugging Face has no name for, or a type that computes
        something else.
    """
    names = [name for name, both in _ACTIVATIONS.items() if both == config.mlp_activations]
    if not names:
        raise ConfigError(
            f"ModelConfig.mlp_activations = {config.mlp_activations} is none of those that Hugging "
            f"Face's T5 has: {', '.join(_ACTIVATIONS)}"
        )
    fitting = [
        name
        for name, (_, biased) in MODEL_TYPES.items()
        # Scaled by the embedding's width, which transformers' mT5 never does.
        if biased == config.per_layer_relative_bias
        and not (name == "mt5" and config.logits_via_embedding)
    ]
    model_type = model_type or fitting[0]
    if model_type not in fitting:
        raise ConfigError(
            f"the model computes otherwise than {model_type!r} (per_layer_relative_bias, "
            f"logits_via_embedding): write it as {fitting[0]!r} (--model-type)"
        )
    return {
        "model_type": model_type,
        "architectures": [MODEL_TYPES[model_type][0]],
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        **{name: getattr(config, name) for name in _OPTIONAL},
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": names[0],
        "tie_word_embeddings": config.logits_via_embedding,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": "float32",
    }


def head_kind(values: Mapping[str, Any], where: str, *, has_head: bool) -> str:
    """Where a model's logits come from: OWN_HEAD, TIED or UNSCALED.

    `tie_word_embeddings` decides, or, where it is not set, whether there is a head that differs
    from the embedding. Transformers 5 sets it for every T5 that it saves, and keeps what it was in
    `scale_decoder_outputs`. Raises CheckpointError if the two say different things, or nothing says
    it.
    """
    ties, scaled = values.get("tie_word_embeddings"), values.get("scale_decoder_outputs")
    # Transformers' mT5 never scales, and its version 5 says 'true' of every mT5 that it saves.
    if has_head and ties and scaled is not False and values.get("model_type") != "mt5":
        raise CheckpointError(
            f"{where} has tie_word_embeddings = true, but '{_HEAD}' differs from '{_EMBEDDING}'. "
            "Set it to false if the head is the model's own"
        )
    if has_head or ties is False:
        return OWN_HEAD
    if scaled is None and values.get("model_type") == "mt5":
        raise CheckpointError(
            f"{where}: an mT5 without '{_HEAD}'. Whether its logits are scaled depends on the "
            'version of transformers: add "scale_decoder_outputs": true (before 5) or false'
        )
    return UNSCALED if scaled is False else TIED


def read_huggingface(folder: Path) -> Weights:
    """A backbone from a folder with `config.json` and `model.safetensors` (or its parts).

    Raises:
      CheckpointError: a file is missing or damaged, another kind of model, or a tensor that has no
        place, is missing or has another shape; named.
    """
    values, where = read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE)
    tensors = _tensors(folder)
    may_be_tied = False not in map(values.get, ("tie_word_embeddings", "scale_decoder_outputs"))
    has_both = {_HEAD, _EMBEDDING} <= tensors.keys()
    is_copy = may_be_tied and has_both and np.array_equal(tensors[_HEAD], tensors[_EMBEDDING])
    left_out = [*_COPIES, _UNUSED] + [_HEAD] * is_copy
    notes = [f"'{name}' is left out" for name in left_out if tensors.pop(name, None) is not None]
    head = head_kind(values, where, has_head=_HEAD in tensors)
    config = to_model_config(values, where, tied=head == TIED)
    if head == UNSCALED and _EMBEDDING in tensors:
        tensors[_HEAD] = tensors[_EMBEDDING]
        notes.append(
            "the output head is the embedding without T5 1.0's scale: it becomes a matrix of its "
            "own, with the embedding's values"
        )
    leaves = gather(
        foreign_entries(config, huggingface=True), leaf_shapes(config), tensors, str(folder)
    )
    if head == OWN_HEAD:
        notes.append("the model has an output head of its own (T5 1.1)")
    return Weights(config, leaves, tuple(notes), values["model_type"])


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors, of one file or several."""
    paths, tensors = [folder / WEIGHTS_FILE], dict[str, np.ndarray]()
    if (folder / INDEX_FILE).exists():
        index = read_json(folder / INDEX_FILE)["weight_map"]
        paths = [folder / file for file in sorted(set(index.values()))]
    for path in paths:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is missing, truncated or damaged: {error}. (Pickled weights, "
                "pytorch_model.bin, are not read: save_pretrained writes safetensors)"
            ) from error
    return tensors


def write_huggingface(
    weights: Weights, folder: Path, *, vocabulary_file: Path | None = None
) -> None:
    """Writes a folder for Hugging Face, float32.

    Args:
      weights: the backbone.
      folder: new or empty.
      vocabulary_file: SentencePiece file to go with it, if any.

    Raises:
      ConfigError: the model has something that T5 has not, or is not of its `model_type`.
      CheckpointError: the folder is not empty or cannot be written to.
    """
    values = from_model_config(weights.config, weights.model_type)
    tensors = {
        entry.name: np.ascontiguousarray(entry.outward(weights.leaves[entry.leaf]))
        for entry in foreign_entries(weights.config, huggingface=True)
    }
    with new_folder(folder) as unfinished:
        try:
            # Transformers refuses files that do not say for which library they are.
            save_file(tensors, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, too
            raise failure(f"{folder} could not be written", error) from error
        (unfinished / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")
        if vocabulary_file is not None:
            (unfinished / SPIECE_FILE).write_bytes(vocabulary_file.read_bytes())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError where it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
