"""An Orbax item of named byte strings, each written by the process that owns it.

Used for data iterators: their states are opaque bytes, and a process only has those of its shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

_SUFFIX = ".bin"


class BytesHandler(ocp.CheckpointHandler):
    """One file per name."""

    def save(self, directory: epath.Path, *_: Any, args: BytesSave, **__: Any) -> None:
        """Called on every process; each writes its own names."""
        for name, content in args.item.items():
            (directory / f"{name}{_SUFFIX}").write_bytes(content)

    def restore(self, directory: epath.Path, *_: Any, args: BytesRestore, **__: Any) -> Any:
        """Reads what all processes wrote."""
        del args
        return read_bytes_item(directory)


@ocp.args.register_with_handler(BytesHandler, for_save=True)
@dataclass
class BytesSave(ocp.args.CheckpointArgs):
    """`item`: name → content, of this process."""

    item: Mapping[str, bytes] = field(default_factory=dict)


@ocp.args.register_with_handler(BytesHandler, for_restore=True)
@dataclass
class BytesRestore(ocp.args.CheckpointArgs):
    """Nothing to say: everything is read."""


def read_bytes_item(directory: epath.Path) -> dict[str, bytes]:
    """`{name: content}` of a saved item."""
    return {
        path.name.removesuffix(_SUFFIX): path.read_bytes()
        for path in sorted(directory.iterdir())
        if path.name.endswith(_SUFFIX)
    }
