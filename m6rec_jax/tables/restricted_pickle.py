"""Pickles of strangers, read without running what they say.

A pickle is a program: it may import any function and call it. Here it may build containers and
scalars of Python's own (dict, list, tuple, set, frozenset, str, bytes, int, float, bool, None) and
nothing else; any other name that it asks for is refused before it is looked up. (Bytes in protocols
before 3 are among the refused: they call a function.) A hostile file can still take much memory or
time, but it can run nothing.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

from m6rec_jax.errors import DataError

# What builtin containers need by name: in older protocols sets are called for, and Python 2's name
# of the module stands in them. All else (dict, list, str, int, ...) has operations of its own.
_ALLOWED = {
    (module, name): kind
    for module in ("builtins", "__builtin__")
    for name, kind in (("set", set), ("frozenset", frozenset))
}


class _Refused(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        # UTF-8 for the byte strings that Python 2 pickled as text.
        super().__init__(file, encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a persistent object")


def load(path: str | Path) -> Any:
    """Reads the first object of a pickle file, builtin containers and scalars only.

    Raises:
      DataError: the file does not exist, asks for anything else (the message names it), or is not a
        whole pickle.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except _Refused as error:
        raise DataError(
            f"{path} asks for {error}. A pickle may run any program, so only lists, dictionaries, "
            "texts and numbers are read; write the rows as JSON lines if you trust this file"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # Nonsense for bytes makes the unpickler raise nearly anything.
        raise DataError(f"{path} is not a whole pickle: {error or type(error).__name__}") from error
