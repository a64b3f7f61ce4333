"""An Orbax item of named byte strings, each written by the process that owns it.

Used for data iterators: their states are opaque bytes, and a process only has those of its shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

_SUFFIX = ".bin"


class BytesHandler(ocp.CheckpointHandler):
    """One file per name."""

    def save(self, directory: epath.Path, *_: Any, args: BytesItem, **__: Any) -> None:
        """Called on every process; each writes its own names."""
        for name, content in args.item.items():
            (directory / f"{name}{_SUFFIX}").write_bytes(content)

    def restore(self, directory: epath.Path, *_: Any, **__: Any) -> Any:
        """Reads what all processes wrote."""
        return read_bytes_item(directory)


@ocp.args.register_with_handler(BytesHandler, for_save=True, for_restore=True)
@dataclass
class BytesItem(ocp.args.CheckpointArgs):
    """`item`: name → content, of this process."""

    item: Mapping[str, bytes]


def read_bytes_item(directory: epath.Path) -> dict[str, bytes]:
    """`{name: content}` of a saved item."""
    return {
        path.name.removesuffix(_SUFFIX): path.read_bytes()
        for path in sorted(directory.glob(f"*{_SUFFIX}"))
    }
