"""`MODEL_DIR/config.gin`: the configuration that a run was started with."""

from __future__ import annotations

from pathlib import Path

import gin

CONFIG_FILE = "config.gin"
# To be read after it: validations may have read some rows alone, and training has batches of its
# own.
EVALUATED_ROWS = "gin_configs/commands/evaluated_rows.gin"
# These change nothing of what a run computes.
_NO_SETTINGS = ("MODEL_DIR", "train.model_dir", "Logging.progress", "Logging.tensorboard")
# So that a setting is one line.
_LONGEST_LINE = 10**6


def write_config(directory: str | Path) -> None:
    """Writes all that gin files and the command line set to `DIRECTORY/config.gin`.

    It can be given as `--gin_file` again.

    Args:
      directory: usually MODEL_DIR; made when missing; may be a bucket address.
    """
    from etils import epath  # knows bucket addresses; costs time, so not on top

    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = gin.config_str(_LONGEST_LINE)
    (folder / CONFIG_FILE).write_text(f"# Configuration, written by m6rec\n\n{text}")


def changed_settings(directory: str | Path) -> list[str]:
    """Settings that are not what `DIRECTORY/config.gin` says, as `name: saved -> now`.

    Only settings that both have are compared.
    """
    from etils import epath

    path = epath.Path(directory) / CONFIG_FILE
    if not path.exists():
        return []
    saved, now = _values(path.read_text()), _values(gin.config_str(_LONGEST_LINE))
    return [
        f"{name}: {saved[name]} -> {value}"
        for name, value in sorted(now.items())
        if saved.get(name, value) != value and name not in _NO_SETTINGS
    ]


def _values(text: str) -> dict[str, str]:
    """Name, without modules, to value as written in gin."""
    pairs = (line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    return {name if "/" in name else ".".join(name.split(".")[-2:]): value for name, value in pairs}
