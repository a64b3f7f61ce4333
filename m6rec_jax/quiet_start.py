"""Keeps tensorflow's and libtpu's notes about themselves off the screen (`keep_quiet`)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import absl.logging

_GOOGLE = "0x1ae0"
# Disks and network cards of Google's are no TPUs.
_STORAGE_AND_NETWORK = ("0x01", "0x02")
_PCI = Path("/sys/bus/pci/devices")


def keep_quiet() -> None:
    """Silences tensorflow's notes: it only reads data here, and computes nothing.

    Two lines that its libraries write while the system loads them stay. A `TF_CPP_MIN_LOG_LEVEL` in
    the environment is kept, and 0 shows everything.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        absl.logging.set_verbosity(absl.logging.ERROR)
    # `m6rec compile` uses libtpu as a compiler. Anything else would look for its TPU, in vain and
    # aloud.
    extra_platforms = importlib.util.find_spec("jax_plugins") is not None
    if importlib.util.find_spec("libtpu") and not (extra_platforms or has_tpu()):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def has_tpu(devices: Path = _PCI) -> bool:
    """Whether a TPU is among the PCI devices, which `devices` lists as Linux does."""
    return any(
        (device / "vendor").read_text().strip() == _GOOGLE
        and not (device / "class").read_text().startswith(_STORAGE_AND_NETWORK)
        for device in devices.glob("*")
    )
