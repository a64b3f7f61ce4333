"""`MODEL_DIR/config.gin`: the configuration that a run was started with."""

from __future__ import annotations

from pathlib import Path

import gin
from gin import config_parser

from m6rec_jax.gin_statements import parse_statements

CONFIG_FILE = "config.gin"
# To be read after it: validations may have read some rows alone, and training has batches of its
# own.
EVALUATED_ROWS = "gin_configs/commands/evaluated_rows.gin"
# These change nothing of what a run computes.
_NO_SETTINGS = ("MODEL_DIR", "train.model_dir", "Logging.progress", "Logging.tensorboard")


def write_config(directory: str | Path) -> None:
    """Writes all that gin files and the command line set to `DIRECTORY/config.gin`.

    It can be given as `--gin_file` again.

    Args:
      directory: usually MODEL_DIR; made when missing; may be a bucket address.
    """
    from etils import epath  # knows bucket addresses; costs time, so not on top

    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(f"# Configuration, written by m6rec\n\n{gin.config_str()}")


def changed_settings(directory: str | Path) -> list[str]:
    """Settings that are not what `DIRECTORY/config.gin` says, as `name: saved -> now`.

    Only settings that both have are compared.

    Raises:
      ConfigError: the file is not gin.
    """
    from etils import epath

    path = epath.Path(directory) / CONFIG_FILE
    if not path.exists():
        return []
    saved, now = _values(path.read_text(), str(path)), _values(gin.config_str(), "")
    return [
        f"{name}: {saved[name]} -> {value}"
        for name, value in sorted(now.items())
        if saved.get(name, value) != value and name not in _NO_SETTINGS
    ]


def _values(text: str, file: str) -> dict[str, str]:
    """Name to value as written in gin, without modules."""
    values = {}
    for statement in parse_statements(text, file):
        if isinstance(statement, config_parser.BindingStatement):
            name = statement.selector.rsplit(".", 1)[-1]
            name = f"{statement.scope}/{name}" if statement.scope else name
            name += f".{statement.arg_name}" if statement.arg_name else ""
            values[name] = repr(statement.value)
    return values
