"""`m6rec doctor`: what is installed here, what runs on it, and traps that others fell into."""

import importlib.metadata
import platform
from collections.abc import Callable

from m6rec_jax import __version__
from m6rec_jax.errors import CheckpointError
from m6rec_jax.export.formats import FORMATS, what_is_missing
from m6rec_jax.io.buckets import check_bucket

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "seqio",
    "tensorflow",
    "tensorflow-text",
    "tensorflow-datasets",
    "gin-config",
    "sentencepiece",
    "numpy",
    "pyarrow",
    "scikit-learn",
    "importlib_resources",  # of tensorflow-datasets, which does not ask for it
)


def report() -> str:
    """Versions, devices and findings as text; nothing here raises."""
    lines = [
        f"m6rec_jax {__version__}, Python {platform.python_version()}, {platform.platform()}",
        "",
        "packages",
        *(f"  {name:22} {_version(name) or 'NOT INSTALLED'}" for name in PACKAGES),
        "",
        "devices",
        *(f"  {line}" for line in _devices()),
        "",
        "m6rec export",
        *(f"  {name:22} {what_is_missing(name) or 'works'}" for name in FORMATS),
        "",
        "findings",
    ]
    findings = [finding for check in CHECKS for finding in check()]
    return "\n".join(lines + [f"  - {finding}" for finding in findings or ["none"]])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _number(package: str) -> tuple[int, ...]:
    parts = (_version(package) or "0").split(".")[:3]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _devices() -> list[str]:
    try:
        import jax

        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        return [f"jax does not start: {error}"]
    kinds = sorted({device.device_kind for device in devices})
    return [
        f"{len(devices)} × {', '.join(kinds)} ({jax.default_backend()}), "
        f"process {jax.process_index()} of {jax.process_count()}"
    ]


def _packages_are_there() -> list[str]:
    missing = [name for name in PACKAGES if _version(name) is None]
    return [f"pip install {' '.join(missing)}: training needs them"] if missing else []


def _tensorflow_text_matches() -> list[str]:
    text, tensorflow = _number("tensorflow-text")[:2], _number("tensorflow")[:2]
    if (0,) < text != tensorflow > (0,):
        return [
            f"tensorflow-text {_version('tensorflow-text')} is built for tensorflow "
            f"{text[0]}.{text[1]}, not {_version('tensorflow')}: importing seqio will fail"
        ]
    return []


def _buckets_can_be_used() -> list[str]:
    try:
        check_bucket("gs://MODEL_DIR")
    except CheckpointError as error:
        return [f"{error}; local folders need nothing"]
    return []


CHECKS: tuple[Callable[[], list[str]], ...] = (
    _packages_are_there,
    _tensorflow_text_matches,
    _buckets_can_be_used,
)
