"""Hugging Face folders of T5 models: `config.json` and safetensors, without torch.

Reads T5 1.0, T5 1.1, Flan-T5, mT5 and UMT5, in one file or several; writes what
`T5ForConditionalGeneration.from_pretrained` (or mT5's, or UMT5's) reads.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m6rec_jax.checkpoints.failures import write_failure
from m6rec_jax.checkpoints.manifest import TensorSpec
from m6rec_jax.checkpoints.t5_names import HEAD, Entry, huggingface_entries
from m6rec_jax.checkpoints.t5_tensors import (
    Weights,
    check_match,
    gather,
    leaf_shapes,
    mapping_table,
    plain_config,
)
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.atomic import new_folder
from m6rec_jax.model.config import ModelConfig

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
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{where}: model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}"
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
            per_layer_relative_bias=MODEL_TYPES[model_type][1],
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
        "architectures": [MODEL_TYPES[model_type][0]],
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
    if model_type not in MODEL_TYPES:
        return f"model type {model_type!r} is not one of {', '.join(MODEL_TYPES)}"
    if MODEL_TYPES[model_type][1] != config.per_layer_relative_bias:
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

    `tie_word_embeddings` decides, or, where it is not set, whether there is a head that differs
    from the embedding. Transformers 5 sets it for every T5 that it saves, and keeps what it was in
    `scale_decoder_outputs`. Raises CheckpointError if the two say different things, or nothing says
    it.
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


CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
# T5's SentencePiece file.
SPIECE_FILE = "spiece.model"

_EMBEDDING, _HEAD = "shared.weight", "lm_head.weight"
# Written beside the embedding by some versions: always the same values.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Left in old checkpoints by the first T5 library; no implementation reads it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_SHARD_BYTES = 5 * 10**9


class SafetensorsFolder:
    """The tensors of a folder, read one at a time; a context that keeps its files open.

    `found` is name → shape and type of every tensor.
    """

    def __init__(self, folder: Path) -> None:
        """Opens all files and reads their headers.

        Raises:
          CheckpointError: no such file, one is truncated, or the index names what is not there.
        """
        self.found: dict[str, TensorSpec] = {}
        self.folder = folder
        self._files: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            for path, names in _files_of(folder).items():
                self._open(stack, path, names)
            self._stack = stack.pop_all()

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, in the type of the file."""
        try:
            values: np.ndarray = self._files[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder}: '{name}' cannot be read: {error}") from error
        return values

    def is_embedding(self, name: str) -> bool:
        """Whether a tensor is there and has the embedding's shape and values."""
        both = name in self.found and _EMBEDDING in self.found
        return both and np.array_equal(self.read(name), self.read(_EMBEDDING))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, stack: contextlib.ExitStack, path: Path, names: set[str]) -> None:
        try:
            file = stack.enter_context(safe_open(path, framework="numpy"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing: {INDEX_FILE} names it") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
        there = set(file.keys())
        if names and names != there:
            name = min(names ^ there)
            raise CheckpointError(
                f"{path} and {INDEX_FILE} disagree about '{name}'"
                + (": the file does not have it" if name in names else "")
            )
        for name in sorted(there):
            view = file.get_slice(name)
            kind = view.get_dtype()
            self.found[name] = TensorSpec(tuple(view.get_shape()), _TYPES.get(kind, kind))
            self._files[name] = file


def read_huggingface(folder: Path, *, with_values: bool = True) -> Weights:
    """A backbone from a folder with `config.json` and `model.safetensors` (or its parts).

    Args:
      folder: of one model.
      with_values: False: only what would be read, its mapping included.

    Raises:
      CheckpointError: a file is missing or damaged, another kind of model, or a tensor that has no
        place, is missing or has another shape; named.
    """
    values = read_json(folder / CONFIG_FILE)
    where = str(folder / CONFIG_FILE)
    with SafetensorsFolder(folder) as files:
        found, notes = _without_copies(files)
        if may_be_tied(values) and files.is_embedding(_HEAD):
            notes.append(f"'{_HEAD}' is a copy of '{_EMBEDDING}'")
            del found[_HEAD]
        head = head_kind(values, where, has_head=_HEAD in found)
        config = to_model_config(values, where, tied=head == TIED)
        shapes = leaf_shapes(config)
        entries = huggingface_entries(config, shapes)
        if head == UNSCALED:
            entries = [replace(e, name=_EMBEDDING) if e.leaf == HEAD else e for e in entries]
            notes.append(
                "the output head is the embedding without T5 1.0's scale: it becomes a matrix of "
                "its own, with the embedding's values"
            )
        check_match(entries, found, str(folder))
        table = mapping_table(entries, found, shapes)
        leaves = gather(entries, shapes, files.read) if with_values else {}
    if head == OWN_HEAD:
        notes.append("the model has an output head of its own (T5 1.1)")
    return Weights(config, leaves, tuple(notes), values["model_type"], table)


def write_huggingface(
    weights: Weights,
    folder: Path,
    *,
    vocabulary_file: Path | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a folder for Hugging Face, float32.

    Args:
      weights: the backbone.
      folder: new or empty.
      vocabulary_file: SentencePiece file to go with it, if any.
      shard_bytes: most bytes of one file; larger models are written in parts with an index.

    Raises:
      ConfigError: the model has something that T5 has not, or is not of its `model_type`.
      CheckpointError: the folder is not empty or cannot be written to.
    """
    values = from_model_config(weights.config, weights.model_type)
    entries = _entries(weights)
    shards = _shards(entries, shard_bytes)
    with new_folder(folder) as unfinished:
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = WEIGHTS_FILE
            if len(shards) > 1:
                name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {
                entry.name: np.ascontiguousarray(entry.outward(weights.leaves[entry.leaf]))
                for entry in shard
            }
            # Transformers refuses files that do not say for which library they are.
            try:
                save_file(tensors, unfinished / name, metadata={"format": "pt"})
            except SafetensorError as error:  # a full disk, too
                raise write_failure(f"{folder} could not be written", error) from error
            weight_map |= dict.fromkeys(tensors, name)
        if len(shards) > 1:
            total = sum(map(_num_bytes, entries))
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (unfinished / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
        (unfinished / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")
        if vocabulary_file is not None:
            (unfinished / SPIECE_FILE).write_bytes(vocabulary_file.read_bytes())


def huggingface_mapping(weights: Weights) -> str:
    """The mapping that `write_huggingface` uses, as text."""
    return mapping_table(_entries(weights), {}, leaf_shapes(weights.config))


def _without_copies(files: SafetensorsFolder) -> tuple[dict[str, TensorSpec], list[str]]:
    """The tensors that count, and a note about every one that does not.

    Raises CheckpointError if what should be a copy of the embedding is none.
    """
    found, notes = dict(files.found), []
    for name in _COPIES:
        if name in found and _EMBEDDING in found:
            if not files.is_embedding(name):
                raise CheckpointError(
                    f"{files.folder}: '{name}' differs from '{_EMBEDDING}'; both towers of a T5 "
                    "have one embedding"
                )
            notes.append(f"'{name}' is a copy of '{_EMBEDDING}'")
            del found[name]
    if _UNUSED in found:
        notes.append(f"'{_UNUSED}' is left out: T5's cross attention has no position bias")
        del found[_UNUSED]
    return found, notes


def _entries(weights: Weights) -> list[Entry]:
    return huggingface_entries(weights.config, leaf_shapes(weights.config))


def _shards(entries: Iterable[Entry], shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + _num_bytes(entry) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += _num_bytes(entry)
    return shards


def _num_bytes(entry: Entry) -> int:
    return 4 * int(np.prod(entry.shape))


def _files_of(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files, and the names that the index says each holds (empty: no index)."""
    if (folder / INDEX_FILE).exists():
        index = read_json(folder / INDEX_FILE)
        files: dict[Path, set[str]] = {}
        try:
            for name, file in index["weight_map"].items():
                files.setdefault(folder / file, set()).add(name)
        except (KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map") from error
        return files
    if not (folder / WEIGHTS_FILE).exists():
        raise CheckpointError(
            f"no {WEIGHTS_FILE} in {folder}. Pickled weights (pytorch_model.bin) are not read: "
            "save them with transformers' save_pretrained, which writes safetensors"
        )
    return {folder / WEIGHTS_FILE: set()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError where it cannot be read."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return values
