"""The forward pass of BERT-like sentence encoders (Devlin et al., 2019), which teach."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.model.attention import mask_bias

Array = jax.Array
ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes, by the names of Hugging Face's config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"


def sentence_vectors(
    config: BertConfig, weights: Mapping[str, Array], tokens: Array, mask: Array
) -> Array:
    """Means of the last states over a sentence's tokens, of unit length.

    Args:
      config: of the encoder.
      weights: by the names of Hugging Face's `BertModel`, matrices `[out, in]`.
      tokens: int32 `[batch, length]`.
      mask: bool `[batch, length]`, False at padding.

    Returns:
      `[batch, hidden]`, float32.
    """

    def linear(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(variance + config.layer_norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return x.reshape(*x.shape[:2], config.num_attention_heads, -1)

    bias = mask_bias(mask)[:, None, None]
    x = weights["embeddings.word_embeddings.weight"][tokens]
    x += weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        query, key, value = (
            heads(linear(f"{layer}.attention.self.{name}", x)) for name in ("query", "key", "value")
        )
        products = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        shares = jax.nn.softmax(products + bias, axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(x.shape)
        attended = linear(f"{layer}.attention.output.dense", mixed)
        x = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        hidden = ACTIVATIONS[config.hidden_act](linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", hidden))
    return unit(jnp.sum(jnp.where(mask[..., None], x, 0.0), axis=1))


def unit(x: Any) -> Array:
    """x `[..., n]` divided by its length; zeros stay."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def weight_shapes(
    config: BertConfig, vocab_size: int, num_positions: int, num_types: int, mlp_dim: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that `sentence_vectors` reads."""
    width = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocab_size, width),
        "embeddings.position_embeddings.weight": (num_positions, width),
        "embeddings.token_type_embeddings.weight": (num_types, width),
    }
    square = ("attention.self.query", "attention.self.key", "attention.self.value")
    maps = {
        **dict.fromkeys((*square, "attention.output.dense"), (width, width)),
        "intermediate.dense": (mlp_dim, width),
        "output.dense": (width, mlp_dim),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        for name, shape in maps.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes
