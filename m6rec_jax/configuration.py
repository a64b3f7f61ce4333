"""Gin files and `--gin.MACRO=value` bindings, with errors that say where and what to write instead.

The dialect is t5x's: a run file sets macros (`MODEL`, `MIXTURE_OR_TASK_NAME`,
`TASK_FEATURE_LENGTHS`, `TRAIN_STEPS`, `MODEL_DIR`, ...) and includes other files:

    include 'gin_configs/models/mini.gin'
    include 'gin_configs/recipes/scoring.gin'

    MIXTURE_OR_TASK_NAME = 'movielens_ctr'
    TRAIN_STEPS = 2_000

gin itself reports an undefined macro when it is used, without its line, so macros are checked
first (`check_config`), which imports nothing and is quick. Statements are then bound one by one, so
that gin's errors come with file, line and the nearest name.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from m6rec_jax.errors import ConfigError, first_line
from m6rec_jax.gin_statements import place_of, quoted, statements_of
from m6rec_jax.io.closest import did_you_mean

# Macros that mean the same in all files, whether or not one mentions them.
MACROS: Mapping[str, str] = {
    "MODEL": "the model: @M6Rec()",
    "MIXTURE_OR_TASK_NAME": "seqio task or mixture, as registered in tasks/",
    "TASK_FEATURE_LENGTHS": "tokens per feature, e.g. {'inputs': 512, 'targets': 64}",
    "TRAIN_STEPS": "number of optimizer steps",
    "EVAL_PERIOD": "steps between validations",
    "MODEL_DIR": "folder of checkpoints, logs and config.gin",
    "BATCH_SIZE": "rows of one optimizer step, over all devices",
    "DROPOUT_RATE": "dropout rate of the whole model",
    "TRAINABLE": "'prompts' (frozen backbone) or 'all'",
    "INITIAL_CHECKPOINT_PATH": "checkpoint whose backbone training starts from",
}

# Read by commands and benchmarks directly, not through a file.
READ_BY_COMMANDS = {
    *("MODEL", "MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "MODEL_DIR", "BATCH_SIZE"),
    *("TRAINABLE", "TRAIN_STEPS", "RULES", "VOCAB_SIZE"),
}
# May be functions of the data (`pipeline.fitted_settings`).
_MEASURED = ("TASK_FEATURE_LENGTHS", "VOCAB_SIZE")
logger = logging.getLogger(__name__)
# How alike a name must be to one that exists to be a misspelling of it.
_NEAR = 0.85


@dataclass(slots=True)
class ParsedConfig:
    """What was read.

    Attributes:
      macros: name -> value.
      parameters: `configurable.parameter`, or `scope/configurable.parameter` -> value.
      places: name of either -> where it was set last, such as 'run.gin:3'.
      uses: name of a macro -> the statement that uses it first.
    """

    macros: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    uses: dict[str, Any] = field(default_factory=dict)

    def parameter(self, name: str, default: Any) -> Any:
        """The value of a parameter, or of the macro that it refers to."""
        value = self.parameters.get(name, default)
        while _is_macro_reference(value):
            value = self.macros.get("/".join(value.scopes))
        return value

    def add(self, statement: Any) -> None:
        """Takes in a statement, if it sets something."""
        if not isinstance(statement, config_parser.BindingStatement):
            return
        scope, selector, parameter, value, _ = statement
        name = f"{scope}/{selector}" if scope else selector
        for part in gin_config._iterate_flattened_values(value):
            if _is_macro_reference(part):
                self.uses.setdefault("/".join(part.scopes), statement)
        if parameter:
            name = f"{name}.{parameter}"
        (self.parameters if parameter else self.macros)[name] = value
        self.places[name] = place_of(statement)


def read_config(files: Sequence[str | Path]) -> ParsedConfig:
    """What gin files set, with what they include; checks nothing but that they are gin."""
    parsed = ParsedConfig()
    for statement in statements_of(files):
        parsed.add(statement)
    return parsed


def check_config(files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> ParsedConfig:
    """Reads gin files and bindings without setting or importing anything.

    Args as `parse_config`.

    Raises:
      ConfigError: unknown file or macro, undefined or unset macro, syntax error.
    """
    parsed = read_config(files)
    in_files = {*parsed.macros, *parsed.uses, *MACROS}
    for statement in statements_of((), bindings):
        parsed.add(statement)
    for name in parsed.macros:
        if name not in in_files and name not in parsed.uses:
            raise ConfigError(
                f"{parsed.places[name]}: no gin file uses a macro '{name}'"
                f"{did_you_mean(name, in_files)}. Known macros: {', '.join(sorted(in_files))}"
            )
    _check_macros(parsed)
    return parsed


def parse_config(files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> ParsedConfig:
    """Reads gin files, then bindings, and locks the configuration. Earlier settings are dropped.

    Args:
      files: gin files, later ones override earlier ones.
      bindings: `"MACRO=value"` or `"configurable.parameter=value"`, with or without `--gin.` in
        front; they override the files. Values are gin values; paths and names need no quotes
        (`--gin.MODEL_DIR=runs/a`), and MODEL_DIR, DATASET, BANK, PREPARED, ITEMS, TEACHER and
        macros that end in _PATH are text unless they are None, or refer to something by % or @.

    Raises:
      ConfigError: unknown file, configurable, parameter or macro (with the closest match and
        file:line), undefined or unset macro, module that does not import, syntax error.
    """
    parsed = check_config(files, bindings)
    gin.clear_config()
    for statement in statements_of(files, bindings):
        _apply(statement)
    for name in parsed.macros:
        place = parsed.places[name]
        if place.startswith("--gin.") and name not in {*parsed.uses, *READ_BY_COMMANDS}:
            logger.warning("%s: nothing in these files uses it, so it changes nothing", place)
    try:
        gin.finalize()
    except ValueError as error:  # a parameter that is left at %gin.REQUIRED
        raise ConfigError(f"gin: {first_line(error)}") from error
    return parsed


def settle_measured() -> None:
    """Macros that are measured get the values that they have now.

    A run's `config.gin` then has the numbers: it goes on with them, and is evaluated by them,
    whatever would be measured later.
    """
    with gin.unlock_config():
        for name in filter(has_macro, _MEASURED):
            gin.bind_parameter((name, "gin.macro", "value"), macro(name))


def has_macro(name: str) -> bool:
    """Whether the configuration sets the macro."""
    return (name, "gin.macro") in gin_config._CONFIG


def macro(name: str, default: Any = gin.REQUIRED) -> Any:
    """The value of a macro; references in it (`@f()`) are called.

    Raises:
      ConfigError: the macro is not set and there is no default.
    """
    if has_macro(name):
        return gin.get_configurable(f"{name}/gin.macro")()
    if default is gin.REQUIRED:
        raise _unset([name])
    return default


def bound(parameter: str, default: Any = None) -> Any:
    """The value bound to `configurable.parameter`, with macros replaced, or `default`.

    The configurable need not have been imported.
    """
    try:
        value = gin.query_parameter(parameter)
    except ValueError:
        return default
    return macro(value.scoped_selector.split("/")[0]) if _is_macro_reference(value) else value


def bound_directly(parameter: str) -> bool:
    """Whether `configurable.parameter` is bound to something else than a macro."""
    try:
        return not _is_macro_reference(gin.query_parameter(parameter))
    except ValueError:
        return False


def _apply(statement: Any) -> None:
    """Binds one statement."""
    try:
        if isinstance(statement, config_parser.ImportStatement):
            if statement.module.startswith("__gin__"):
                raise ImportError("dynamic registration is for `python -m t5x.train` alone")
            gin.parse_config(statement.format())  # gin keeps the import for the dumped file
        elif isinstance(statement, config_parser.BindingStatement):
            scope, selector, parameter, value, _ = statement
            for part in gin_config._iterate_flattened_values(value):
                if isinstance(part, gin_config._UnknownConfigurableReference):
                    _configurable(part.selector.rsplit("/", 1)[-1])
            if parameter:
                _check_parameter(selector, parameter)
                gin.bind_parameter((scope, selector, parameter), value)
            else:
                name = f"{scope}/{selector}" if scope else selector
                gin.bind_parameter((name, "gin.macro", "value"), value)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise ConfigError(
            f"{place_of(statement)}: {str(error).splitlines()[0]}{quoted(statement)}"
        ) from error


def _configurable(selector: str) -> Any:
    """A configurable; raises ValueError, with the nearest name, and KeyError for several."""
    try:
        return gin.get_configurable(selector)
    except ValueError:
        registered = [full for full, _ in gin_config._REGISTRY.items()]
        names = {name for full in registered for name in (full, full.rsplit(".", 1)[-1])}
        raise ValueError(
            f"nothing configurable is called '{selector}'{did_you_mean(selector, names)}. If it "
            "lives in a module of yours, put `import that.module` above it"
        ) from None


def _check_parameter(selector: str, name: str) -> None:
    """Raises ValueError for a parameter that is none."""
    parameters = inspect.signature(_configurable(selector)).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    if name not in parameters:
        raise ValueError(
            f"'{selector}' has no parameter '{name}'{did_you_mean(name, parameters)}. Its "
            f"parameters: {', '.join(one for one in parameters if one != 'self')}"
        )


def _check_macros(parsed: ParsedConfig) -> None:
    """Macros that are used are set, not to themselves, and none is misspelt or required."""
    for name, statement in parsed.uses.items():
        if name not in parsed.macros:
            raise ConfigError(
                f"{place_of(statement)}: macro '%{name}' is not defined"
                f"{did_you_mean(name, parsed.macros)}. Set it in a gin file or with "
                f"--gin.{name}=VALUE{quoted(statement)}"
            )
    for name, value in parsed.macros.items():
        passed = {name}
        while _is_macro_reference(value):
            name = "/".join(value.scopes)
            if name in passed:
                raise ConfigError(f"{parsed.places[name]}: macro '{name}' refers to itself")
            passed.add(name)
            value = parsed.macros.get(name)
    used = {*READ_BY_COMMANDS, *MACROS, *parsed.uses}
    for name in parsed.macros:
        # Nothing uses it, and it is nearly one that is used: a misspelling.
        if name not in used and difflib.get_close_matches(name, used, 1, _NEAR):
            place = parsed.places[name]
            raise ConfigError(f"{place}: nothing uses a macro '{name}'{did_you_mean(name, used)}")
    if unset := [name for name, value in parsed.macros.items() if _is_required(value)]:
        raise _unset(unset)


def _is_macro_reference(value: Any) -> bool:
    return isinstance(value, gin_config.ConfigurableReference) and value.selector == "gin.macro"


def _is_required(value: Any) -> bool:
    return getattr(value, "scoped_selector", None) == "gin.REQUIRED/gin.constant"


def _unset(names: Sequence[str]) -> ConfigError:
    lines = [
        f"  --gin.{name}=VALUE" + (f"   ({MACROS[name]})" if name in MACROS else "")
        for name in names
    ]
    return ConfigError(
        "these settings are required and not set; give them in a gin file or as\n"
        + "\n".join(lines)
    )
