"""A model whose programs are those of an export: opened by `load_model`, served as any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.decoding.generation import GeneratedBatch
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.loaded_model import TrainedModel
from m6rec_jax.engine.programs.exported_programs import (
    CONSTANTS,
    NOTHING,
    Exported,
    ExportError,
    Program,
)
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.text.vocabulary import EOS_ID


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ExportedModel(TrainedModel):
    """The model of an export; runs on one device.

    Attributes:
      exported: the export.
    """

    exported: Exported

    def fingerprint(self, task: str = "", exits: bool = True) -> str:
        """That of the model which was exported: its indexes fit. It has no other without exits."""
        del exits
        return str(self.exported.manifest["fingerprints"][task_name(self.settings.tasks, task)])

    @property
    def segments(self) -> None:
        """None: programs of an export compute them."""
        return None

    def use_segments(self, folder: str | Path) -> None:
        """Raises ConfigError."""
        raise ConfigError(f"{folder} holds cached segments, which an export has no use for")

    def options(self, task: str = "", **changes: Any) -> EngineOptions:
        fixed = {
            "programs": self._program,
            "source_buckets": (self.settings.source_length,),
            "target_buckets": (changes.get("target_length", self.settings.target_length),),
        }
        return super().options(task, **(changes | fixed))

    def _program(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        program = self.exported.programs.get(name)
        if program is None:
            known = ", ".join(self.exported.programs)

            def missing(*_: Any) -> Any:
                raise ConfigError(
                    f"{self.exported.folder} has no program '{name}', but {known}: export the "
                    "model with a task that needs it"
                )

            return missing
        try:
            run = self.exported.function(program)
        except ExportError as error:  # of another platform
            raise ConfigError(str(error)) from error

        @jax.jit
        def call(variables: Any, features: Mapping[str, Any], *others: Any) -> Any:
            # The engine's own, such as a trie of today's catalogue; those of the export are for
            # who runs it without one.
            constants = {
                f"{CONSTANTS}/{name}/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(others))
            }
            if unlike := features.keys() ^ program.inputs.keys():
                raise ConfigError(
                    f"'{name}' of {self.exported.folder} is another engine's, which differs in "
                    f"{', '.join(sorted(unlike))}: ask as the model was exported, or export it anew"
                )
            found = run(
                flatten(variables) | constants,
                {key: _as_exported(program, key, features) for key in program.inputs},
            )
            if "prefix_ids" in features:
                found = _shortened(found, features["prefix_ids"].shape[1])
            return found["values"] if "values" in found else GeneratedBatch(**found)

        return call


def _shortened(found: dict[str, Any], length: int) -> dict[str, Any]:
    """Texts of at most so many tokens: a task's may be shorter than a bank's programs write."""
    tokens = found["tokens"][..., :length]
    ended = found["ended"] & (tokens == EOS_ID).any(axis=-1)
    return found | {"tokens": tokens, "ended": ended}


def _as_exported(program: Program, name: str, features: Mapping[str, Any]) -> Any:
    """A feature as long as the program takes it."""
    value, filler = features[name], NOTHING.get(name, 0)
    try:
        missing = program.missing(name, value.shape)
    except ExportError as error:
        raise ConfigError(f"{error}: the catalogue has grown; export the model anew") from error
    if name == "prefix_ids" and program.name.startswith("greedy"):
        filler = EOS_ID  # nothing is written beyond the task's room, nor added to the probability
    return jnp.pad(value, missing, constant_values=filler)


def open_export(folder: str | Path) -> Exported:
    """As `Exported`; raises CheckpointError where it is damaged."""
    try:
        return Exported(folder)
    except ExportError as error:
        raise CheckpointError(str(error)) from error
