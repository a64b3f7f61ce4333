"""What all states of a model share: its parameters, and what is made of them once."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Mapping
from typing import Any

import jax

from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.trees import PyTree, flatten
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.model import M6Rec
from m6rec_jax.model.decoding_layout import for_decoding_on_cpu

Variables = Mapping[str, Any]
_lay_out = jax.jit(for_decoding_on_cpu, static_argnums=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """Tasks may come and go beside it; nothing in here depends on them.

    Attributes:
      model: with its configuration.
      params: on the devices.
      runtime: where programs run.
      source_length, target_length: S and T, most tokens of a history and a decoder row.
    """

    model: M6Rec
    params: PyTree
    runtime: Runtime
    source_length: int
    target_length: int
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False)

    @functools.cached_property
    def checksums(self) -> Any:
        """Of the parameters, by name."""
        return checksums(flatten(self.params))

    @functools.cached_property
    def segments(self) -> SegmentCache | None:
        """What early layers computed for any engine; None: late interaction is off."""
        if not self.model.config.late_layers_start:
            return None
        return SegmentCache(
            self.model,
            source_length=self.source_length,
            target_length=self.target_length,
            runtime=self.runtime,
        )

    def for_decoding(self, variables: Variables) -> Variables:
        """Variables with these parameters, as decoding step by step reads them fastest.

        On a CPU that is a copy of the decoder, made once. A decoder of bytes stays as it is, since
        its copy would take as much memory as floats.
        """
        if (
            "embedding_scale" in self.params["token_embedder"]
            or jax.default_backend() != "cpu"
            or self.runtime.mesh is not None
        ):
            return variables
        with self._lock:
            return {**variables, **self._decoder}

    @functools.cached_property
    def _decoder(self) -> Variables:
        return _lay_out(self.model.config, {"params": self.params})
