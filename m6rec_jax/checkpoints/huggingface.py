"""Hugging Face folders of T5 models: `config.json` and safetensors, without torch.

Reads T5 1.0, T5 1.1, Flan-T5, mT5 and UMT5, in one file or several; writes what
`T5ForConditionalGeneration.from_pretrained` (or mT5's, or UMT5's) reads.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m6rec_jax.checkpoints.failures import write_failure
from m6rec_jax.checkpoints.huggingface_config import (
    OWN_HEAD,
    TIED,
    UNSCALED,
    from_model_config,
    head_kind,
    may_be_tied,
    to_model_config,
)
from m6rec_jax.checkpoints.manifest import TensorSpec
from m6rec_jax.checkpoints.t5_names import HEAD, Entry, huggingface_entries
from m6rec_jax.checkpoints.t5_tensors import (
    Weights,
    check_match,
    gather,
    leaf_shapes,
    mapping_table,
)
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.atomic import new_folder

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

    Attributes:
      folder: where they lie.
      found: name → shape and type of every tensor.
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


def read_huggingface(folder: Path) -> Weights:
    """A backbone from a folder with `config.json` and `model.safetensors` (or its parts).

    Raises:
      CheckpointError: a file is missing or damaged, another kind of model, or a tensor that has no
        place, is missing or has another shape; named.
    """
    weights, _ = _read(folder, with_values=True)
    return weights


def plan_huggingface(folder: Path) -> tuple[Weights, str]:
    """What `read_huggingface` would do: the model without its tensors, and the mapping as text.

    Raises:
      CheckpointError: as `read_huggingface`.
    """
    return _read(folder, with_values=False)


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
      ConfigError: the model has something that T5 has not there, or is not of its `model_type`.
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


def _read(folder: Path, *, with_values: bool) -> tuple[Weights, str]:
    values = _read_json(folder / CONFIG_FILE)
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
    return Weights(config, leaves, tuple(notes), values["model_type"]), table


def _without_copies(files: SafetensorsFolder) -> tuple[dict[str, TensorSpec], list[str]]:
    """The tensors that count, and a note about every one that does not.

    Raises:
      CheckpointError: what should be a copy of the embedding is none.
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
        index = _read_json(folder / INDEX_FILE)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return values
