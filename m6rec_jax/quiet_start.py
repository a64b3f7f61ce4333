"""Keeps tensorflow's and libtpu's notes about themselves off the screen (`keep_quiet`)."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import absl.logging

# What tensorflow's native libraries write while the system loads them, before they look at any
# setting of logging: that oneDNN is on, that there is no GPU, what the processor could do.
_NOTES = (
    rb"All log messages before absl::InitializeLog|"
    rb"^I\d{4} .*(oneDNN custom operations|Could not find cuda drivers|cpu_feature_guard)|"
    rb"^To enable the following instructions"
)
_GOOGLE = "0x1ae0"
# Disks and network cards of Google's are no TPUs.
_STORAGE_AND_NETWORK = ("0x01", "0x02")
_PCI = Path("/sys/bus/pci/devices")
# A process of its own, so that what is written last is shown even if this one dies while loading.
_FILTER = f"""
import re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
notes = re.compile({_NOTES!r})
for line in sys.stdin.buffer:
    if not notes.search(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


def keep_quiet() -> None:
    """Silences tensorflow's notes: it only reads data here, and computes nothing.

    Errors while it loads are shown. A `TF_CPP_MIN_LOG_LEVEL` in the environment is kept, and 0
    shows everything.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        absl.logging.set_verbosity(absl.logging.ERROR)
    # `m6rec compile` uses libtpu as a compiler. Anything else would look for its TPU, in vain and
    # aloud.
    extra_platforms = importlib.util.find_spec("jax_plugins") is not None
    if importlib.util.find_spec("libtpu") and not (extra_platforms or has_tpu()):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    hooked = any(isinstance(finder, _TensorflowFinder) for finder in sys.meta_path)
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "0" and not hooked:
        sys.meta_path.insert(0, _TensorflowFinder())


def has_tpu(devices: Path = _PCI) -> bool:
    """Whether a TPU is among the PCI devices, which `devices` lists as Linux does."""
    return any(
        (device / "vendor").read_text().strip() == _GOOGLE
        and not (device / "class").read_text().startswith(_STORAGE_AND_NETWORK)
        for device in devices.glob("*")
    )


class _TensorflowFinder(importlib.abc.MetaPathFinder):
    """Lets the first import of tensorflow run with its notes held back."""

    def __init__(self) -> None:
        self._asks = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != "tensorflow" or self._asks:
            return None
        self._asks = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asks = False
        # Some libraries only ask for the spec, so this finder stays until the module is loaded.
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                sys.meta_path.remove(self)
                with _without_notes():
                    load(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Passes on what is written to descriptor 2, all but the notes."""
    sys.stderr.flush()
    reader = subprocess.Popen([sys.executable, "-S", "-E", "-c", _FILTER], stdin=subprocess.PIPE)
    assert reader.stdin is not None
    shown = os.dup(2)
    os.dup2(reader.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)
        os.close(shown)
        reader.stdin.close()
        reader.wait()
