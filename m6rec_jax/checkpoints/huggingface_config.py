"""Hugging Face's `config.json` of T5, mT5 and UMT5 models, to and from `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m6rec_jax.checkpoints.t5_tensors import plain_config
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model.config import ModelConfig

# The head is a matrix of its own (T5 1.1), the embedding scaled by 1/sqrt(embed) (T5 1.0), or the
# embedding as it is (a T5 1.1 that transformers 5 has saved: it ties what it saves).
OWN_HEAD, TIED, UNSCALED = "own", "tied", "unscaled"

MODEL_TYPES = ("t5", "mt5", "umt5")
# Model type → class and whether every layer has its own relative position bias.
_MODEL_TYPES = {
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
    "relative_attention_num_buckets": ("relative_attention_num_buckets", 32),
    "relative_attention_max_distance": ("relative_attention_max_distance", 128),
    "layer_norm_epsilon": ("layer_norm_epsilon", 1e-6),
    "dropout_rate": ("dropout_rate", 0.1),
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


def to_model_config(values: Mapping[str, Any], where: str, *, tied: bool) -> ModelConfig:
    """The `ModelConfig` of a `config.json`.

    Args:
      values: of the file.
      where: the file, for errors.
      tied: the output head is the embedding, scaled (see `head_kind`).

    Raises:
      CheckpointError: another kind of model, no size, an activation that we do not have.
    """
    model_type = values.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise CheckpointError(
            f"{where}: model_type {model_type!r} is not one of {', '.join(_MODEL_TYPES)}"
        )
    missing = [name for name in _SIZES.values() if name not in values]
    if missing:
        raise CheckpointError(f"{where} does not say {', '.join(missing)}")
    default = "relu" if model_type == "t5" else "gated-gelu"
    projection = values.get("feed_forward_proj", default)
    if projection not in _ACTIVATIONS:
        raise CheckpointError(
            f"{where}: feed_forward_proj {projection!r} is not one of {', '.join(_ACTIVATIONS)}"
        )
    sizes = {ours: values[theirs] for ours, theirs in _SIZES.items()}
    options = {ours: values.get(theirs, default) for ours, (theirs, default) in _OPTIONAL.items()}
    num_decoder_layers = values.get("num_decoder_layers")
    try:
        return plain_config(
            **sizes,
            **options,
            num_decoder_layers=(
                values["num_layers"] if num_decoder_layers is None else num_decoder_layers
            ),
            mlp_activations=_ACTIVATIONS[projection],
            per_layer_relative_bias=_MODEL_TYPES[model_type][1],
            logits_via_embedding=tied,
        )
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
    projections = [name for name, both in _ACTIVATIONS.items() if both == config.mlp_activations]
    if not projections:
        raise ConfigError(
            f"ModelConfig.mlp_activations = {config.mlp_activations} has no name in Hugging Face's "
            "T5; it has " + ", ".join(map(str, dict.fromkeys(_ACTIVATIONS.values())))
        )
    by_arithmetic = "umt5" if config.per_layer_relative_bias else "t5"
    model_type = by_arithmetic if model_type is None else model_type
    if objection := _objection(config, model_type):
        raise ConfigError(f"{objection}; write it as {by_arithmetic!r} (--model-type)")
    return {
        "model_type": model_type,
        "architectures": [_MODEL_TYPES[model_type][0]],
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _OPTIONAL.items()},
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": projections[0],
        "tie_word_embeddings": config.logits_via_embedding,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": "float32",
    }


def _objection(config: ModelConfig, model_type: str) -> str:
    """Why a model is not of a type; empty if it is."""
    if model_type not in _MODEL_TYPES:
        return f"model type {model_type!r} is not one of {', '.join(MODEL_TYPES)}"
    if _MODEL_TYPES[model_type][1] != config.per_layer_relative_bias:
        has = "its own in every layer" if config.per_layer_relative_bias else "one for all layers"
        return f"a model whose position bias is {has} is no {model_type!r}"
    if model_type == "mt5" and config.logits_via_embedding:
        return (
            "a model whose head is its embedding, scaled, is no 'mt5': transformers' never scales"
        )
    return ""


def may_be_tied(values: Mapping[str, Any]) -> bool:
    """Whether a head that equals the embedding is nothing but the embedding, scaled."""
    return (
        values.get("tie_word_embeddings") is not False
        and values.get("scale_decoder_outputs") is not False
    )


def head_kind(values: Mapping[str, Any], where: str, *, has_head: bool) -> str:
    """Where a model's logits come from: OWN_HEAD, TIED or UNSCALED.

    `tie_word_embeddings` decides, or, where it is not set, whether there is a head. Transformers 5
    sets it for every T5 that it saves, and keeps what it was in `scale_decoder_outputs`.

    Args:
      values: of `config.json`.
      where: the file, for errors.
      has_head: the files hold a head that differs from the embedding.

    Raises:
      CheckpointError: the two say different things, or nothing says it.
    """
    says = values.get("tie_word_embeddings")
    scaled = values.get("scale_decoder_outputs")
    # Transformers' mT5 never scales, and its version 5 says 'true' of every mT5 that it saves.
    if has_head and says and scaled is not False and values.get("model_type") != "mt5":
        raise CheckpointError(
            f"{where} has tie_word_embeddings = true, but 'lm_head.weight' differs from "
            "'shared.weight'. Set it to false if the head is the model's own"
        )
    if has_head or says is False:
        return OWN_HEAD
    if scaled is None and values.get("model_type") == "mt5":
        raise CheckpointError(
            f"{where}: an mT5 without 'lm_head.weight'. Whether its logits are scaled depends on "
            'the version of transformers: add "scale_decoder_outputs": true (before 5) or false'
        )
    return UNSCALED if scaled is False else TIED
