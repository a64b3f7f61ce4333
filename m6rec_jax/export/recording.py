"""Programs of engines, and the held-out batches that they were called with.

An engine that is given a `Recorder` runs as usual. Each program's function is then what an export
is made of, and each call is what the export is checked with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.programs.exported_programs import CONSTANTS

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Call:
    """One batch of a program, as an export sees it: `outputs` are the model's own."""

    program: str
    inputs: Arrays
    outputs: Arrays


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A program that engines ran.

    Attributes:
      name: of the program.
      function: of flat weights and flat inputs to flat outputs; to be traced.
      constants: what the engine gave besides variables and features, by name.
    """

    name: str
    function: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    constants: Arrays


class Recorder:
    """`EngineOptions.programs` that runs functions by `jax.jit` and keeps what they are.

    Attributes:
      programs: by name.
      calls: all of them, in order.
    """

    def __init__(self) -> None:
        self.programs: dict[str, Recorded] = {}
        self.calls: list[Call] = []

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = jax.jit(function)

        def call(variables: Any, features: Mapping[str, Any], *others: Any) -> Any:
            found = compiled(variables, features, *others)
            self._keep(name, function, features, others, found)
            return found

        return call

    def _keep(
        self,
        name: str,
        function: Callable[..., Any],
        features: Mapping[str, Any],
        others: tuple[Any, ...],
        found: Any,
    ) -> None:
        inputs = {key: np.asarray(value) for key, value in features.items()}
        outputs = {key: np.asarray(value) for key, value in flat_outputs(found).items()}
        self.calls.append(Call(name, inputs, outputs))
        if name in self.programs:
            return
        leaves, structure = jax.tree.flatten(others)
        constants = {f"{CONSTANTS}/{name}/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}

        def flat(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
            own = jax.tree.unflatten(structure, [weights[key] for key in constants])
            variables = nested({k: v for k, v in weights.items() if k not in constants})
            return flat_outputs(function(variables, inputs, *own))

        self.programs[name] = Recorded(name, flat, constants)


def flat_outputs(found: Any) -> dict[str, Any]:
    """Results by name: a tuple's own names, or 'values'."""
    return flatten(found) if isinstance(found, tuple) else {"values": found}
