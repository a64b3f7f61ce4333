"""`MODEL_DIR/config.gin`: the configuration that a run was started with, and later used."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

CONFIG_FILE = "config.gin"
# To be read after it: validations may have read some rows alone, and training has batches of its
# own.
ALL_ROWS = "gin_configs/runs/all_rows.gin"
EVAL_BATCHES = "gin_configs/runs/eval_batches.gin"
# These change nothing of what a run computes.
_NO_SETTINGS = ("MODEL_DIR", "train.model_dir", "Logging.progress", "Logging.tensorboard")


def write_config(directory: str | Path, *, operative: bool) -> None:
    """Writes `DIRECTORY/config.gin`, which can be given as `--gin_file` again.

    Args:
      directory: usually MODEL_DIR; made when missing; may be a bucket address.
      operative: False: everything that was parsed (written when a run starts). True: what the
        called configurables used, defaults included (written when a run ends).
    """
    from etils import epath  # knows bucket addresses; costs time, so not on top

    text = _as_used() if operative else gin.config_str()
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    kind = "operative (as used)" if operative else "parsed (as read at the start)"
    (folder / CONFIG_FILE).write_text(f"# {kind} configuration, written by m6rec\n\n{text}")


def _as_used() -> str:
    """gin's operative configuration, without the scopes in which gin evaluates macros.

    A setting called `MODEL/ModelConfig.dropout_rate` would go before any that is given later.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with gin_config._OPERATIVE_CONFIG_LOCK:
        used = dict(gin_config._OPERATIVE_CONFIG)
    macros = {scope for scope, selector in used if selector == "gin.macro"}
    for (scope, selector), values in sorted(used.items(), key=lambda one: one[0]):  # "" is first
        own, plain = (scope, selector), ("", selector)
        of_macro = selector != "gin.macro" and macros.issuperset(scope.split("/"))
        for name, value in values.items():
            is_given = name in gin_config._CONFIG.get(own, {})
            is_other = found.get(plain, {}).get(name, value) != value
            place = plain if of_macro and not (is_given or is_other) else own
            found.setdefault(place, {})[name] = value
    return str(gin_config._config_str(found))


def changed_settings(directory: str | Path) -> list[str]:
    """Settings that are not what `DIRECTORY/config.gin` says, as `name: saved -> now`.

    Only settings that both have are compared: a file written at a run's end has defaults, too, and
    lacks what was never used.

    Raises:
      ValueError: the file is not gin.
    """
    from etils import epath

    path = epath.Path(directory) / CONFIG_FILE
    if not path.exists():
        return []
    try:
        saved, now = _bindings(path.read_text()), _bindings(gin.config_str())
    except (SyntaxError, tokenize.TokenError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    changed = []
    for name, value in sorted(now.items()):
        # At a run's end settings have the scopes in which they were used.
        before = [
            used
            for key, used in saved.items()
            if key == name or (key.endswith(f"/{name}") and key not in now)
        ]
        if before and value not in before and name not in _NO_SETTINGS:
            changed.append(f"{name}: {' or '.join(sorted(set(before)))} -> {value}")
    return changed


def _bindings(text: str) -> dict[str, str]:
    """Name to value as written in gin, without modules."""
    found = {}
    delegate = gin_config.ParserDelegate(skip_unknown=True)
    for statement in config_parser.ConfigParser(text, delegate):
        if isinstance(statement, config_parser.BindingStatement):
            name = statement.selector.rsplit(".", 1)[-1]
            if statement.scope:
                name = f"{statement.scope}/{name}"
            if statement.arg_name:
                name = f"{name}.{statement.arg_name}"
            found[name] = repr(statement.value)
    return found
