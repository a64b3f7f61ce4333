"""The manifest of a checkpoint: what it holds, for which model and vocabulary, written by what."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import numpy as np
from flax.traverse_util import flatten_dict

from m6rec_jax import __version__
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.config import ModelConfig, PromptConfig, default_settings

_LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Global shape (whatever the mesh), type and checksum (see `fingerprint.checksums`)."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What a training run knows about the trees it saves.

    Attributes:
      model_config: of the model.
      vocabulary_fingerprint: `text.Vocabulary.fingerprint`.
      trainable: 'prompts' or 'all'.
      num_data_shards: fixed at the first launch of a run.
      extra: anything else that JSON can hold.
    """

    model_config: ModelConfig | None = None
    vocabulary_fingerprint: str | None = None
    trainable: str | None = None
    num_data_shards: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """JSON item `manifest` of a step.

    Attributes:
      step: optimizer steps taken.
      date: UTC, ISO 8601.
      versions: of the libraries and of m6rec_jax.
      model_config: `ModelConfig` as a dict, or None.
      vocabulary_fingerprint, trainable, num_data_shards, extra: see `RunDescription`.
      tensors: item → name → spec.
      locations: item → folder relative to the step's folder.
    """

    step: int
    date: str
    versions: Mapping[str, str]
    model_config: Mapping[str, Any] | None
    vocabulary_fingerprint: str | None
    trainable: str | None
    num_data_shards: int | None
    tensors: Mapping[str, Mapping[str, TensorSpec]]
    locations: Mapping[str, str]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        step: int,
        run: RunDescription,
        tensors: Mapping[str, Mapping[str, TensorSpec]],
        locations: Mapping[str, str],
    ) -> Self:
        """With the date and the versions of now."""
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        described = {"tensors": tensors, "locations": locations, **dataclasses.asdict(run)}
        return cls(step=step, date=date, versions=library_versions(), **described)

    @classmethod
    def parse(cls, text: bytes, where: str) -> Self:
        """Reads a manifest's JSON; raises CheckpointError if it is damaged."""
        try:
            return msgspec.json.decode(text, type=cls)
        except ValueError as error:
            raise CheckpointError(f"{where} is damaged: {error}") from error

    def build_model_config(self) -> ModelConfig:
        """The `ModelConfig` the checkpoint was trained with.

        Raises CheckpointError if the checkpoint does not say, or was written by another version.
        """
        if self.model_config is None:
            raise CheckpointError(f"the checkpoint of step {self.step} records no model config")
        return read_model_config(self.model_config, str(self.versions.get("m6rec_jax")))


def read_model_config(values: Mapping[str, Any], version: str) -> ModelConfig:
    """The `ModelConfig` that a manifest, written by a version of m6rec_jax, has as a dict.

    Raises CheckpointError if it does not fit this version.
    """
    values = dict(values)
    try:
        # What an older manifest lacks has its default, not what gin happens to bind.
        own = _tuples(values.pop("prompts"))
        prompts = PromptConfig(**(default_settings(PromptConfig) | own))
        settings = default_settings(ModelConfig) | _tuples(values)
        return ModelConfig(**(settings | {"prompts": prompts}))
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the model config of the checkpoint (m6rec_jax {version}) does not fit this version "
            f"({__version__}): {error}"
        ) from error


def library_versions() -> dict[str, str]:
    """Versions of m6rec_jax and of the libraries that checkpoints depend on."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"m6rec_jax": __version__, **versions}


def tensor_specs(
    flat: Mapping[str, Any], checksums: Mapping[str, int] | None = None
) -> dict[str, TensorSpec]:
    """Specs of `{name: array or ShapeDtypeStruct}`."""
    return {
        name: TensorSpec(
            tuple(leaf.shape), np.dtype(leaf.dtype).name, checksums[name] if checksums else None
        )
        for name, leaf in flat.items()
    }


def check_tensors(
    manifest: Manifest,
    item: str,
    wanted: Mapping[str, TensorSpec],
    where: str,
    model_config: ModelConfig | None = None,
) -> None:
    """The saved tensors must have the wanted names and shapes (types are converted).

    Raises CheckpointError, naming the first tensor that differs, and the likely cause.
    """
    saved = manifest.tensors[item]
    unlike = [
        f"tensor '{item}/{name}' is {saved.get(name, 'missing')} in the checkpoint and "
        f"{wanted.get(name, 'missing')} in the model"
        for name in sorted(saved.keys() | wanted.keys())
        if name not in saved or name not in wanted or saved[name].shape != wanted[name].shape
    ]
    if not unlike:
        return
    more = f" ({len(unlike) - 1} more differ)" if len(unlike) > 1 else ""
    changed = [] if model_config is None else differences(manifest, model_config)
    cause = (
        f"Settings that differ (checkpoint -> model): {'; '.join(changed)}"
        if changed
        else "Has it another model size, another optimizer or another choice of what trains?"
    )
    raise CheckpointError(f"{where}: {unlike[0]}{more}. {cause}")


def same_task_sizes(manifest: Manifest, config: ModelConfig) -> bool:
    """Whether every task of a bank has the size that it was saved with (True where nobody knows).

    Tensors may have equal shapes all the same: those of the largest task.
    """
    try:
        saved = manifest.build_model_config().prompts
    except CheckpointError:  # it says nothing, or in another version's words
        return True
    return saved.task_sizes == config.prompts.task_sizes


def differences(manifest: Manifest, config: ModelConfig) -> list[str]:
    """Settings in which the saved and the present model differ, as 'name: saved -> present'."""
    now = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples as the manifest has them
    saved, present = (flatten_dict(both, sep=".") for both in (manifest.model_config or {}, now))
    return [
        f"{name}: {saved[name]} -> {present[name]}"
        for name in saved
        if name in present and saved[name] != present[name]
    ]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
