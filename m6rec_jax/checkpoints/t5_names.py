"""The names and layouts of T5's tensors elsewhere: Hugging Face's and t5x's, against our leaves.

Ours are stacked over layers and keep heads apart (`encoder/layers/self_attention/query/kernel` is
`[layers, embed, heads, kv]`). Elsewhere:

    Hugging Face           one tensor per layer, matrices `[out, in]`
    t5x/examples/t5        one tensor per layer, matrices `[in, out]`
    t5x's scalable_t5      heads apart as in ours; one tensor per layer, or one for all of them with
                           the layers as axis 1, `[embed, layers, heads, kv]`; a relative bias in
                           every layer

Tables here are pure: nothing reads a file. An `Entry` says for one foreign tensor which leaf, or
which layer of it, it is, and converts values either way without changing any of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig

EMBEDDING, HEAD = "token_embedder/embedding", "logits_head/kernel"

# t5x scans over this axis of every parameter (scalable_t5's param_scan_axis).
_SCAN_AXIS = 1

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One foreign tensor.

    Attributes:
      name: its name there.
      leaf: the name of our leaf.
      layer: which layer of the leaf's stack; None: the whole leaf.
      flat: shape of one layer, heads and their width joined if they are there.
      transposed: axes are the other way round there.
      layers: layers that the foreign tensor holds along axis 1; 0: no such axis.
    """

    name: str
    leaf: str
    layer: int | None
    flat: Shape
    transposed: bool = False
    layers: int = 0

    @property
    def shape(self) -> Shape:
        """Of the foreign tensor."""
        one = self.flat[::-1] if self.transposed else self.flat
        if not self.layers:
            return one
        return (*one[:_SCAN_AXIS], self.layers, *one[_SCAN_AXIS:])

    def outward(self, leaf: np.ndarray) -> np.ndarray:
        """The foreign tensor of our leaf, `[layers, ...]` where the leaf is stacked."""
        if self.layers:
            values = leaf.reshape(self.layers, *self.flat)
            return np.moveaxis(self._turned(values), 0, _SCAN_AXIS)
        values = leaf if self.layer is None else leaf[self.layer]
        return self._turned(values.reshape(self.flat))

    def inward(self, values: np.ndarray, shape: Shape) -> np.ndarray:
        """What the foreign tensor is in ours: a leaf of this shape, or one layer of it."""
        if self.layers:
            values = np.moveaxis(values, _SCAN_AXIS, 0)
        return self._turned(values).reshape(shape if self.layer is None else shape[1:])

    def _turned(self, values: np.ndarray) -> np.ndarray:
        return values.swapaxes(-1, -2) if self.transposed else values


def huggingface_entries(config: ModelConfig, shapes: Mapping[str, Shape]) -> list[Entry]:
    """What Hugging Face's `T5ForConditionalGeneration` (mT5, UMT5 too) has for a model of ours."""
    return [_huggingface_entry(slot, shapes[slot.leaf]) for slot in _slots(config, shapes)]


def t5x_entries(
    config: ModelConfig, shapes: Mapping[str, Shape], *, scanned: bool, joined: bool
) -> list[Entry]:
    """What t5x has for a model of ours; names begin with 'target.'.

    Args:
      config: of the model.
      shapes: of all its leaves.
      scanned: all layers of a tower in one tensor, as scalable_t5 may have them.
      joined: heads and their width are one axis, as in t5x/examples/t5.

    Raises:
      ConfigError: scanned, but one relative bias serves a tower: there it is one per layer.
    """
    if scanned and not config.per_layer_relative_bias:
        raise ConfigError(
            "scalable_t5 has a relative position bias in every layer, this model has one per tower "
            "(ModelConfig.per_layer_relative_bias = False); use t5x's layout of one tensor per "
            "layer"
        )
    entries = [
        _t5x_entry(slot, shapes[slot.leaf], scanned, joined) for slot in _slots(config, shapes)
    ]
    # Scanned, every layer of a leaf gives the same entry.
    return list(dict.fromkeys(entries))


@dataclass(frozen=True, slots=True)
class _Slot:
    """A leaf of ours, or one layer of it.

    Attributes:
      leaf: name.
      tower: 'encoder', 'decoder', or '' of what both share.
      part: the rest of the name, inside a layer for a stacked leaf.
      layer: which layer; None for what is not stacked.
      gated: the feed-forward layer has several input matrices.
    """

    leaf: str
    tower: str
    part: str
    layer: int | None
    gated: bool


def _slots(config: ModelConfig, shapes: Mapping[str, Shape]) -> Iterator[_Slot]:
    if config.share_layers:
        raise ConfigError(
            "ModelConfig.share_layers = True: one layer's parameters serve a whole tower, which "
            "T5's other implementations have no notion of"
        )
    if config.embedding_rank is not None:
        raise ConfigError(
            f"ModelConfig.embedding_rank = {config.embedding_rank}: T5's other implementations "
            "have no factorised embeddings"
        )
    if len(config.mlp_activations) > 2:
        raise ConfigError(
            f"ModelConfig.mlp_activations has {len(config.mlp_activations)} factors; T5 has one "
            "or two"
        )
    gated = len(config.mlp_activations) == 2
    for leaf, shape in shapes.items():
        tower, _, part = leaf.partition("/")
        if tower not in ("encoder", "decoder"):
            yield _Slot(leaf, "", leaf, None, gated)
        elif part.startswith("layers/"):
            for layer in range(shape[0]):
                yield _Slot(leaf, tower, part.removeprefix("layers/"), layer, gated)
        else:
            yield _Slot(leaf, tower, part, None, gated)


def _one(slot: _Slot, shape: Shape) -> Shape:
    """Shape of one layer."""
    return shape if slot.layer is None else shape[1:]


def _joined(slot: _Slot, shape: Shape) -> Shape:
    """Shape of one layer with heads and their width joined."""
    one = _one(slot, shape)
    if len(one) < 3:
        return one
    # Into heads [embed, heads, kv], or out of them [heads, kv, embed].
    num_in = 2 if "/out/" in slot.part else 1
    return math.prod(one[:num_in]), math.prod(one[num_in:])


# --- Hugging Face ------------------------------------------------------------------------------

_HF_SHARED = {EMBEDDING: "shared.weight", HEAD: "lm_head.weight"}
_HF_SUBLAYERS = {
    "encoder": {"self_attention": "0", "mlp": "1"},
    "decoder": {"self_attention": "0", "cross_attention": "1", "mlp": "2"},
}
_HF_MODULES = {
    "self_attention": "SelfAttention",
    "cross_attention": "EncDecAttention",
    "mlp": "DenseReluDense",
}
_HF_MATRICES = {"query": "q", "key": "k", "value": "v", "out": "o"}
_HF_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def _huggingface_entry(slot: _Slot, shape: Shape) -> Entry:
    flat = _joined(slot, shape)
    if not slot.tower:
        # The embedding is a table there too; the head is a linear map, [out, in].
        return Entry(_HF_SHARED[slot.part], slot.leaf, None, flat, slot.part == HEAD)
    name = f"{slot.tower}.{_huggingface_part(slot)}"
    return Entry(name, slot.leaf, slot.layer, flat, slot.part.endswith("/kernel"))


def _huggingface_part(slot: _Slot) -> str:
    if slot.part == "final_norm/scale":
        return "final_layer_norm.weight"
    # A bias that serves a whole tower lies in its first layer.
    block = f"block.{slot.layer or 0}"
    if slot.part == "relative_bias/embedding":
        return f"{block}.{_HF_BIAS}"
    module, *matrix = slot.part.split("/")
    sublayers = _HF_SUBLAYERS[slot.tower]
    if module.endswith("_norm"):
        return f"{block}.layer.{sublayers[module.removesuffix('_norm')]}.layer_norm.weight"
    name = _feed_forward_name(matrix[0], slot.gated)
    return (
        f"{block}.layer.{sublayers[module]}.{_HF_MODULES[module]}."
        f"{_HF_MATRICES.get(name, name)}.weight"
    )


# --- t5x ---------------------------------------------------------------------------------------

_T5X_SHARED = {EMBEDDING: "token_embedder.embedding", HEAD: "decoder.logits_dense.kernel"}
_T5X_MODULES = {
    "encoder": {
        "self_attention": "attention",
        "self_attention_norm": "pre_attention_layer_norm",
        "mlp_norm": "pre_mlp_layer_norm",
    },
    "decoder": {
        "self_attention": "self_attention",
        "self_attention_norm": "pre_self_attention_layer_norm",
        "cross_attention": "encoder_decoder_attention",
        "cross_attention_norm": "pre_cross_attention_layer_norm",
        "mlp_norm": "pre_mlp_layer_norm",
    },
}


def _t5x_entry(slot: _Slot, shape: Shape, scanned: bool, joined: bool) -> Entry:
    flat = _joined(slot, shape) if joined else _one(slot, shape)
    if not slot.tower:
        return Entry(f"target.{_T5X_SHARED[slot.part]}", slot.leaf, None, flat)
    module, *matrix = slot.part.split("/")
    if module == "final_norm":
        return Entry(f"target.{slot.tower}.{slot.tower}_norm.scale", slot.leaf, None, flat)
    if module == "relative_bias":
        part = "relpos_bias.rel_embedding"
    else:
        matrix[0] = _feed_forward_name(matrix[0], slot.gated)
        part = ".".join([_T5X_MODULES[slot.tower].get(module, module), *matrix])
    # [buckets, heads] of ours is [heads, buckets] there.
    turned = module == "relative_bias"
    if slot.layer is None:
        return Entry(f"target.{slot.tower}.{part}", slot.leaf, None, flat, turned)
    if scanned:
        # The scan is a module of its own, named like the tower around it.
        name = f"target.{slot.tower}.{slot.tower}.{part}"
        return Entry(name, slot.leaf, None, flat, turned, layers=shape[0])
    name = f"target.{slot.tower}.layers_{slot.layer}.{part}"
    return Entry(name, slot.leaf, slot.layer, flat, turned)


def _feed_forward_name(name: str, gated: bool) -> str:
    # T5 1.0 has one input matrix, without a number.
    return "wi" if name == "wi_0" and not gated else name
