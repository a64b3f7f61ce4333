"""Weights on their way from one format to another: matched by name and shape, moved bit by bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.manifest import TensorSpec
from m6rec_jax.checkpoints.t5_names import EMBEDDING, HEAD, Entry, Shape
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.config import ModelConfig, PromptConfig, default_settings
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.sharding import unboxed_shapes

# Every value of these is a float32, so nothing is lost.
_FLOAT_TYPES = ("float32", "bfloat16", "float16")
_MOST_NAMED = 12


@dataclass(frozen=True, slots=True)
class Weights:
    """A backbone.

    Attributes:
      config: its sizes and arithmetic; no prompts.
      leaves: `{name: float32 array}`, names as `trees.flatten` gives them; empty where only the
        mapping was asked for.
      notes: what the user should know of how they were read.
      model_type: what Hugging Face calls such a model ('mt5'), where it is known. The arithmetic
        does not tell mT5 from T5 1.1.
      mapping: foreign tensors and our leaves as text, of weights that were read.
    """

    config: ModelConfig
    leaves: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()
    model_type: str | None = None
    mapping: str = ""


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


def check_match(entries: Sequence[Entry], found: Mapping[str, TensorSpec], where: str) -> None:
    """Every tensor must be asked for, be there, and have its shape and a float type.

    Raises CheckpointError, naming every tensor that does not fit, with both shapes.
    """
    wanted = {entry.name: entry for entry in entries}
    problems = [
        *(
            f"no tensor '{entry.name}', wanted as {list(entry.shape)} for {_place(entry)}"
            for name, entry in wanted.items()
            if name not in found
        ),
        *(
            f"tensor '{name}' is {list(found[name].shape)}, wanted {list(entry.shape)} for "
            f"{_place(entry)}"
            for name, entry in wanted.items()
            if name in found and found[name].shape != entry.shape
        ),
        *(
            f"tensor '{name}' {list(spec.shape)} has no place in the model"
            for name, spec in found.items()
            if name not in wanted
        ),
        *(
            f"tensor '{name}' is {spec.dtype}, not one of {', '.join(_FLOAT_TYPES)}"
            for name, spec in found.items()
            if name in wanted and spec.dtype not in _FLOAT_TYPES
        ),
    ]
    if problems:
        named, rest = problems[:_MOST_NAMED], problems[_MOST_NAMED:]
        more = f"\n  … and {len(rest)} more" if rest else ""
        raise CheckpointError(f"{where} does not fit:\n  " + "\n  ".join(named) + more)


def gather(
    entries: Iterable[Entry], shapes: Mapping[str, Shape], read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """Our leaves, read one foreign tensor at a time by `read` (foreign name → values)."""
    leaves: dict[str, np.ndarray] = {}
    for entry in entries:
        shape = shapes[entry.leaf]
        if entry.leaf not in leaves:
            leaves[entry.leaf] = np.empty(shape, np.float32)
        place = ... if entry.layer is None else entry.layer
        leaves[entry.leaf][place] = entry.inward(read(entry.name), shape)
    return leaves


def with_rows(weights: Weights, rows: int, num_text: int) -> Weights:
    """The same model with more rows in its vocabulary, of which the first `num_text` are text.

    New rows start as the mean of the text's: a control token then begins as an average word, in the
    head too, where a row of zeros would make it likelier than most words.
    """
    old = weights.config.vocab_size
    if rows == old:
        return weights
    leaves = dict(weights.leaves)
    if EMBEDDING in leaves:  # none where only the mapping was asked for
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


def mapping_table(
    entries: Iterable[Entry], found: Mapping[str, TensorSpec], shapes: Mapping[str, Shape]
) -> str:
    """One line per tensor: its name and shape there, our leaf (and layer), the leaf's shape."""
    lines = [("tensor", "shape", "leaf", "shape")]
    for entry in entries:
        there = found[entry.name].shape if entry.name in found else entry.shape
        leaf = shapes[entry.leaf]
        lines.append((entry.name, str(list(there)), _place(entry), str(list(leaf))))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _extended(table: np.ndarray, rows: int, num_text: int) -> np.ndarray:
    mean = table[:num_text].mean(axis=0, dtype=np.float64).astype(table.dtype)
    return np.concatenate([table, np.broadcast_to(mean, (rows - len(table), len(mean)))])


def _place(entry: Entry) -> str:
    return entry.leaf if entry.layer is None else f"{entry.leaf}[{entry.layer}]"
