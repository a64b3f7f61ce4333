"""Formats of checkpoints that `m6rec convert` knows, and how they are named with a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import in_bucket, path_of

OURS, HUGGING_FACE, T5X, SCALABLE_T5 = "m6rec", "huggingface", "t5x", "scalable_t5"
# Runs of this project's own model under t5x, not of T5's: prompts and all.
T5X_BRIDGE = "t5x_bridge"
FORMATS = (OURS, HUGGING_FACE, T5X, SCALABLE_T5, T5X_BRIDGE)


@dataclass(frozen=True, slots=True)
class Location:
    """A folder and the format of what is, or will be, in it."""

    format: str
    folder: Path

    @staticmethod
    def parse(text: str) -> Location:
        """Reads 'FORMAT:FOLDER'; without a format it is this project's own.

        Raises:
          ConfigError: an unknown format, or a bucket address where only a local folder will do.
        """
        name, colon, folder = text.partition(":")
        if not colon or "/" in name or folder.startswith("//"):
            name, folder = OURS, text
        if name not in FORMATS:
            raise ConfigError(
                f"{text}: unknown format '{name}'; write FORMAT:FOLDER with one of "
                + ", ".join(FORMATS)
            )
        if name == OURS:
            return Location(name, path_of(folder).expanduser())
        if in_bucket(folder):
            raise ConfigError(f"{text}: only m6rec's own checkpoints may lie in a bucket; copy it")
        return Location(name, Path(folder).expanduser())
