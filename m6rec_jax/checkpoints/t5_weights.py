"""Weights of T5 models on their way from one format to another: names, layouts, values bit by bit.

Ours are stacked over layers and keep heads apart (`encoder/layers/self_attention/query/kernel` is
`[layers, embed, heads, kv]`). Elsewhere:

    Hugging Face           one tensor per layer, matrices `[out, in]`
    t5x/examples/t5        one tensor per layer, matrices `[in, out]`
    t5x's scalable_t5      heads apart as in ours; one tensor per layer, or one for all of them with
                           the layers as axis 1, `[embed, layers, heads, kv]`; a relative bias in
                           every layer
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model.config import ModelConfig, PromptConfig, default_settings
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.sharding import unboxed_shapes

EMBEDDING, HEAD = "token_embedder/embedding", "logits_head/kernel"
# Every value of these is a float32, so nothing is lost.
_FLOAT_TYPES = ("float32", "bfloat16", "float16")
_MOST_NAMED = 12

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """A backbone.

    Attributes:
      config: its sizes and arithmetic; no prompts.
      leaves: `{name: float32 array}`, names as `trees.flatten` gives them.
      notes: what the user should know of how they were read.
      model_type: what Hugging Face calls such a model ('mt5'), where it is known. The arithmetic
        does not tell mT5 from T5 1.1.
    """

    config: ModelConfig
    leaves: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()
    model_type: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A foreign tensor, as one of our leaves or one layer of it.

    Attributes:
      name: its name there.
      leaf: the name of our leaf.
      layer: which layer of the leaf's stack; None: the whole leaf.
      flat: our shape, heads and their width joined if they are there.
      axes: of `flat`, in the order that they have there.
    """

    name: str
    leaf: str
    layer: int | None
    flat: Shape
    axes: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """Of the foreign tensor."""
        return tuple(self.flat[axis] for axis in self.axes)

    @property
    def place(self) -> str:
        """Our leaf, and the layer of it."""
        return self.leaf if self.layer is None else f"{self.leaf}[{self.layer}]"

    def outward(self, leaf: np.ndarray) -> np.ndarray:
        """The foreign tensor of our leaf."""
        values = leaf if self.layer is None else leaf[self.layer]
        return values.reshape(self.flat).transpose(self.axes)

    def inward(self, values: np.ndarray, shape: Shape) -> np.ndarray:
        """What the foreign tensor is in a leaf of this shape: all of it, or one layer."""
        ours = values.transpose(np.argsort(self.axes))
        return ours.reshape(shape if self.layer is None else shape[1:])


# --- names ------------------------------------------------------------------------------------

# Our leaf: Hugging Face's tensor without '.weight', t5x's tensor.
_SHARED = {
    EMBEDDING: ("shared", "token_embedder.embedding"),
    HEAD: ("lm_head", "decoder.logits_dense.kernel"),
    "encoder/final_norm/scale": ("encoder.final_layer_norm", "encoder.encoder_norm.scale"),
    "decoder/final_norm/scale": ("decoder.final_layer_norm", "decoder.decoder_norm.scale"),
}
# Our module of a layer: Hugging Face's sublayer and module, t5x's module, t5x's name of its norm.
_MODULES = {
    "encoder/self_attention": ("0", "SelfAttention", "attention", "attention"),
    "encoder/mlp": ("1", "DenseReluDense", "mlp", "mlp"),
    "decoder/self_attention": ("0", "SelfAttention", "self_attention", "self_attention"),
    "decoder/cross_attention": (
        *("1", "EncDecAttention"),
        *("encoder_decoder_attention", "cross_attention"),
    ),
    "decoder/mlp": ("2", "DenseReluDense", "mlp", "mlp"),
}
# Of those that Hugging Face calls otherwise.
_MATRICES = {"query": "q", "key": "k", "value": "v", "out": "o"}


def _names(path: list[str], layer: int | None, scanned: bool = False) -> tuple[str, str]:
    """What Hugging Face and t5x call a leaf, or one layer of it."""
    if names := _SHARED.get("/".join(path)):
        return names
    tower, module, *matrix = path
    # A bias that serves a whole tower lies in its first layer.
    block = f"{tower}.block.{layer or 0}.layer"
    # The scan is a module of its own, named like the tower around it.
    inner = "" if layer is None else f"{tower}." if scanned else f"layers_{layer}."
    t5x = f"{tower}.{inner}"
    if module == "relative_bias":
        bias = f"{block}.0.SelfAttention.relative_attention_bias"
        return bias, f"{t5x}relpos_bias.rel_embedding"
    number, theirs, own, norm = _MODULES[f"{tower}/{module.removesuffix('_norm')}"]
    if module.endswith("_norm"):
        return f"{block}.{number}.layer_norm", f"{t5x}pre_{norm}_layer_norm.scale"
    name = _MATRICES.get(matrix[0], matrix[0])
    return f"{block}.{number}.{theirs}.{name}", f"{t5x}{own}.{'.'.join(matrix)}"


def foreign_entries(
    config: ModelConfig, *, huggingface: bool = False, scanned: bool = False, joined: bool = True
) -> list[Entry]:
    """What another implementation has for a model of ours.

    Args:
      config: of the model.
      huggingface: `T5ForConditionalGeneration` (mT5's, UMT5's too), whose linear maps are
        `[out, in]`; else t5x, whose names begin with 'target.'.
      scanned: all layers of a tower in one tensor, as t5x's scalable_t5 may have them.
      joined: heads and their width are one axis, as in t5x/examples/t5.

    Raises:
      ConfigError: the model has something that T5 has not, or it is scanned, but one relative bias
        serves a tower: there it is one per layer.
    """
    if scanned and not config.per_layer_relative_bias:
        raise ConfigError(
            "scalable_t5 has a relative position bias in every layer, this model has one per tower "
            "(ModelConfig.per_layer_relative_bias = False); use t5x's layout of one tensor per "
            "layer"
        )
    entries = []
    for leaf, path, layer, shape in _slots(config):
        if scanned and layer:
            continue  # its tensor has all layers
        flat = _joined(leaf, shape) if joined else shape
        # t5x has [heads, buckets] where we have [buckets, heads].
        turned = leaf.endswith("/kernel") if huggingface else path[-2] == "relative_bias"
        axes = tuple(range(len(flat)))[:: -1 if turned else 1]
        theirs, t5x = _names(path, layer, scanned)
        name = f"{theirs}.weight" if huggingface else f"target.{t5x}"
        if scanned and layer is not None:
            num_layers = leaf_shapes(config)[leaf][0]
            flat, axes = (num_layers, *flat), (axes[0] + 1, 0, *(axis + 1 for axis in axes[1:]))
            layer = None
        entries.append(Entry(name, leaf, layer, flat, axes))
    return entries


def _slots(config: ModelConfig) -> Iterator[tuple[str, list[str], int | None, Shape]]:
    """Our leaf, its name's parts as T5 has them, the layer (None: not stacked), a layer's shape."""
    for name, present in (
        ("share_layers", config.share_layers),
        ("embedding_rank", config.embedding_rank is not None),
        ("mlp_activations", len(config.mlp_activations) > 2),
    ):
        if present:
            raise ConfigError(
                f"ModelConfig.{name} = {getattr(config, name)}: T5's other implementations have no "
                "such thing"
            )
    gated = len(config.mlp_activations) == 2
    for leaf, shape in leaf_shapes(config).items():
        # T5 1.0 has one input matrix, without a number.
        path = (leaf if gated else leaf.replace("/wi_0/", "/wi/")).split("/")
        if path[1] == "layers":
            del path[1]
            yield from ((leaf, path, layer, shape[1:]) for layer in range(shape[0]))
        else:
            yield leaf, path, None, shape


def _joined(leaf: str, shape: Shape) -> Shape:
    """Shape of one layer with heads and their width joined."""
    if len(shape) < 3:
        return shape
    # Into heads [embed, heads, kv], or out of them [heads, kv, embed].
    num_in = 2 if "/out/" in leaf else 1
    return math.prod(shape[:num_in]), math.prod(shape[num_in:])


# --- weights ----------------------------------------------------------------------------------


def plain_config(**values: Any) -> ModelConfig:
    """A `ModelConfig` with these values and otherwise its defaults, whatever gin is set to."""
    prompts = PromptConfig(**default_settings(PromptConfig))
    return ModelConfig(**(default_settings(ModelConfig) | values | {"prompts": prompts}))


@functools.lru_cache(maxsize=4)
def leaf_shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """Names and shapes of a model's backbone, without computing any."""
    boxed = abstract_variables(config)
    flat = flatten(unboxed_shapes(boxed["params"]))
    return MappingProxyType({name: tuple(leaf.shape) for name, leaf in flat.items()})


def gather(
    entries: Sequence[Entry], shapes: Mapping[str, Shape], arrays: dict[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """Our leaves, float32. The foreign tensors are used up, so that each is in memory once.

    Args:
      entries: of all tensors that the model has.
      shapes: of our leaves.
      arrays: the foreign tensors by name.
      where: what is read, for errors.

    Raises:
      CheckpointError: a tensor is missing, has no place in the model, or another shape than it has
        there or no float type; every such tensor is named.
    """
    _check_match(entries, arrays, where)
    leaves: dict[str, np.ndarray] = {}
    for entry in entries:
        shape = shapes[entry.leaf]
        if entry.leaf not in leaves:
            leaves[entry.leaf] = np.empty(shape, np.float32)
        place = ... if entry.layer is None else entry.layer
        leaves[entry.leaf][place] = entry.inward(arrays.pop(entry.name), shape)
    return leaves


def _check_match(entries: Sequence[Entry], arrays: Mapping[str, np.ndarray], where: str) -> None:
    problems = []
    for entry in entries:
        there, wanted = arrays.get(entry.name), f"wanted {list(entry.shape)} for {entry.place}"
        if there is None:
            problems.append(f"no tensor '{entry.name}', {wanted}")
        elif there.shape != entry.shape:
            problems.append(f"tensor '{entry.name}' is {list(there.shape)}, {wanted}")
        elif there.dtype.name not in _FLOAT_TYPES:
            types = ", ".join(_FLOAT_TYPES)
            problems.append(f"tensor '{entry.name}' is {there.dtype.name}, not one of {types}")
    for name in sorted(arrays.keys() - {entry.name for entry in entries}):
        problems.append(f"tensor '{name}' {list(arrays[name].shape)} has no place in the model")
    if problems:
        more = [f"… and {len(problems) - _MOST_NAMED} more"] * (len(problems) > _MOST_NAMED)
        lines = "\n  ".join([*problems[:_MOST_NAMED], *more])
        raise CheckpointError(f"{where} does not fit:\n  {lines}")


def with_rows(weights: Weights, rows: int, num_text: int) -> Weights:
    """The same model with more rows in its vocabulary, of which the first `num_text` are text.

    New rows start as the mean of the text's: a control token then begins as an average word, in the
    head too, where a row of zeros would make it likelier than most words.
    """
    old = weights.config.vocab_size
    if rows == old:
        return weights
    leaves = dict(weights.leaves)
    leaves[EMBEDDING] = _extended(leaves[EMBEDDING], rows, num_text)
    if HEAD in leaves:
        leaves[HEAD] = _extended(leaves[HEAD].T, rows, num_text).T
    note = f"rows {old} to {rows - 1} are new: each is the mean of the {num_text} rows of text"
    return replace(
        weights,
        config=weights.config.replace(vocab_size=rows),
        leaves=leaves,
        notes=(*weights.notes, note),
    )


def _extended(table: np.ndarray, rows: int, num_text: int) -> np.ndarray:
    mean = table[:num_text].mean(axis=0, dtype=np.float64).astype(table.dtype)
    return np.concatenate([table, np.broadcast_to(mean, (rows - len(table), len(mean)))])
