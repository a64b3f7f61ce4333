"""An Orbax item of named byte strings, each written by the process that owns it.

Used for data iterators: their states are opaque bytes, and a process only has those of its shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from m6rec_jax.errors import CheckpointError

_SUFFIX = ".bin"
_DIGEST_SIZE = hashlib.sha256().digest_size


class BytesHandler(ocp.CheckpointHandler):
    """One file per name: SHA-256 of the content, then the content."""

    def save(self, directory: epath.Path, *_: Any, args: BytesSave, **__: Any) -> None:
        """Called on every process; each writes its own names."""
        for name, content in args.item.items():
            path = directory / f"{name}{_SUFFIX}"
            path.write_bytes(hashlib.sha256(content).digest() + content)

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
    """`{name: content}` of a saved item; raises CheckpointError for a truncated or altered file."""
    contents = {}
    for path in sorted(directory.iterdir()):
        if not path.name.endswith(_SUFFIX):
            continue
        raw = path.read_bytes()
        digest, content = raw[:_DIGEST_SIZE], raw[_DIGEST_SIZE:]
        if hashlib.sha256(content).digest() != digest:
            raise CheckpointError(f"{path} is truncated or altered")
        contents[path.name.removesuffix(_SUFFIX)] = content
    return contents
