"""Gin files and `--gin.MACRO=value` bindings, with errors that say where and what to write instead.

The dialect is t5x's: a run file sets macros (`MODEL`, `MIXTURE_OR_TASK_NAME`,
`TASK_FEATURE_LENGTHS`, `TRAIN_STEPS`, `MODEL_DIR`, ...) and includes other files:

    include 'gin_configs/models/mini.gin'
    include 'gin_configs/runs/finetune_scoring.gin'

    MIXTURE_OR_TASK_NAME = 'movielens_ctr'
    TRAIN_STEPS = 2_000

gin itself reports an unknown name without a hint and an undefined macro without a line, so here
each statement is checked, and then bound through gin's own functions. What can be said without
importing what they configure is said first (`check_config`): that takes seconds.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import logging
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from m6rec_jax.errors import ConfigError, first_line
from m6rec_jax.gin_statements import Origin, find_file, shown_path, statements_of
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
      macros, values: name -> where set last, and to what.
      macro_uses: name -> where used first.
      parameters: `configurable.parameter`, or `scope/configurable.parameter` -> value.
    """

    macros: dict[str, Origin] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    macro_uses: dict[str, Origin] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    def parameter(self, name: str, default: Any) -> Any:
        """The value of a parameter, or of the macro that it refers to."""
        value = self.parameters.get(name, default)
        while _is_macro_reference(value):
            value = self.values.get("/".join(value.scopes))
        return value


def check_config(files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> ParsedConfig:
    """Reads gin files and bindings without setting or importing anything.

    Args as `parse_config`.

    Raises:
      ConfigError: unknown file, macro or module, undefined or unset macro, syntax error.
    """
    parsed = ParsedConfig()
    for statement, origin in statements_of(files):
        _note(statement, origin, parsed)
    known = set(parsed.macros) | set(parsed.macro_uses) | set(MACROS)
    given: dict[str, Origin] = {}
    for statement, origin in statements_of((), bindings):
        if name := _note(statement, origin, parsed):
            given[name] = origin
    # A macro on the command line that no file mentions has no effect: surely a misspelling.
    for name, origin in given.items():
        if name not in known and name not in parsed.macro_uses:
            raise ConfigError(
                f"{origin}: no gin file uses a macro '{name}'{did_you_mean(name, known)}. "
                f"Known macros: {', '.join(sorted(known))}"
            )
    _check_macros(parsed)
    _check_idle_macros(parsed)
    return parsed


def macros_of(files: Sequence[str | Path]) -> set[str]:
    """Names of the macros that gin files set, with what they include; errors as `check_config`."""
    parsed = ParsedConfig()
    for statement, origin in statements_of(files):
        _note(statement, origin, parsed)
    return set(parsed.macros)


def own_settings(file: str | Path) -> set[str]:
    """Names of the macros and parameters that a gin file sets itself, not by what it includes;
    errors as `check_config`.
    """
    path, parsed = find_file(str(file)), ParsedConfig()
    for statement, origin in statements_of([path]):
        if origin.file == shown_path(path):
            _note(statement, origin, parsed)
    return {*parsed.macros, *parsed.parameters}


def parse_config(
    files: Sequence[str | Path] = (),
    bindings: Sequence[str] = (),
    read: Collection[str] = READ_BY_COMMANDS,
) -> ParsedConfig:
    """Reads gin files, then bindings, and locks the configuration. Earlier settings are dropped.

    Args:
      files: gin files, later ones override earlier ones.
      bindings: `"MACRO=value"` or `"configurable.parameter=value"`, with or without `--gin.` in
        front; they override the files. Values are gin values; paths and names need no quotes
        (`--gin.MODEL_DIR=runs/a`), and MODEL_DIR, DATASET, BANK, PREPARED, ITEMS, TEACHER and
        macros that end in _PATH are text unless they are None, or refer to something by % or @.
      read: macros that the caller reads itself; others that no file uses get a warning.

    Raises:
      ConfigError: unknown file, configurable, parameter or macro (with the closest match and
        file:line), undefined or unset macro, module that does not import, syntax error.
    """
    parsed = check_config(files, bindings)
    gin.clear_config()
    for statement, origin in statements_of(files, bindings):
        _apply(statement, origin)
    for name, origin in parsed.macros.items():
        if not origin.line and name not in {*parsed.macro_uses, *read}:
            logger.warning("%s: nothing in these files uses it, so it changes nothing", origin)
    try:
        gin.finalize()
    except (ValueError, RuntimeError) as error:
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


def _note(statement: Any, origin: Origin, parsed: ParsedConfig) -> str:
    """Checks what can be checked without imports; the name of a macro that is set, or none."""
    if isinstance(statement, config_parser.ImportStatement):
        if statement.module.startswith("__gin__"):
            raise ConfigError(
                f"{origin}: '{statement.module}' (dynamic registration) is not supported by m6rec; "
                "run files that use it with `python -m t5x.train`"
            )
        if not _is_there(statement.module):
            raise ConfigError(
                f"{origin}: cannot import '{statement.module}': there is no such module"
                f"{origin.quoted}"
            )
        return ""
    if isinstance(statement, config_parser.BlockDeclaration):
        return ""
    scope, selector, parameter, value, _ = statement
    name = f"{scope}/{selector}" if scope else selector
    for part in gin_config._iterate_flattened_values(value):
        if _is_macro_reference(part):
            parsed.macro_uses.setdefault("/".join(part.scopes), origin)
    if parameter:
        parsed.parameters[f"{name}.{parameter}"] = value
        return ""
    parsed.macros[name], parsed.values[name] = origin, value
    return name


def _is_there(module: str) -> bool:
    """Whether a module would be found; importing it, or its packages, may take long."""
    top, *rest = module.split(".")
    if module in sys.modules:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return True  # the import will say
    if spec is None or not rest:
        return spec is not None
    places = [Path(place).joinpath(*rest) for place in spec.submodule_search_locations or ()]
    return any(place.is_dir() or any(place.parent.glob(f"{place.name}.*")) for place in places)


def _apply(statement: Any, origin: Origin) -> None:
    """Checks and binds one statement."""
    if isinstance(statement, config_parser.ImportStatement):
        _import(statement, origin)
        return
    if isinstance(statement, config_parser.BlockDeclaration):
        _check_configurable(statement.selector, origin)
        return
    scope, selector, parameter, value, _ = statement
    for part in gin_config._iterate_flattened_values(value):
        if isinstance(part, gin_config._UnknownConfigurableReference):
            _check_configurable(part.selector.rsplit("/", 1)[-1], origin, mark="@")
    if parameter:
        _check_configurable(selector, origin)
        _check_parameter(selector, parameter, value, origin)
        key = (scope, selector, parameter)
    else:
        key = (f"{scope}/{selector}" if scope else selector, "gin.macro", "value")
    try:
        gin.bind_parameter(key, value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: {first_line(error)}{origin.quoted}") from error


def _import(statement: Any, origin: Origin) -> None:
    try:
        gin.parse_config(statement.format())  # gin keeps the import for the dumped file
    except ImportError as error:
        raise ConfigError(
            f"{origin}: cannot import '{statement.module}': {first_line(error)}{origin.quoted}"
        ) from error


def _check_configurable(selector: str, origin: Origin, mark: str = "") -> None:
    matches = gin_config._REGISTRY.matching_selectors(selector)
    if len(matches) == 1 or selector in matches:
        return
    if matches:
        raise ConfigError(
            f"{origin}: '{mark}{selector}' is ambiguous: {', '.join(sorted(matches))}"
        )
    registered = [full for full, _ in gin_config._REGISTRY.items()]
    names = {name for full in registered for name in (full, full.rsplit(".", 1)[-1])}
    raise ConfigError(
        f"{origin}: nothing configurable is called '{mark}{selector}'"
        f"{did_you_mean(selector, names)}. If it lives in a module of yours, put "
        f"`import that.module` above it{origin.quoted}"
    )


def _check_parameter(selector: str, parameter: str, value: Any, origin: Origin) -> None:
    configurable = gin.get_configurable(selector)
    parameters = inspect.signature(configurable).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    names = [name for name in parameters if name != "self"]
    if parameter not in names:
        own = difflib.get_close_matches(parameter, names, 1, _NEAR)
        hint = "" if own else _closest_in_groups(parameter, configurable)
        raise ConfigError(
            f"{origin}: '{selector}' has no parameter '{parameter}'"
            f"{hint or did_you_mean(parameter, names)}. Its parameters: {', '.join(names)}"
            f"{origin.quoted}"
        )
    asked = parameters[parameter]
    is_bool = isinstance(asked.default, bool) or "bool" in str(asked.annotation).split(" | ")
    if is_bool and isinstance(value, str):
        # The text 'false' would be true.
        raise ConfigError(
            f"{origin}: {selector}.{parameter} = {value!r} is neither True nor False{origin.quoted}"
        )


def _closest_in_groups(parameter: str, configurable: Any) -> str:
    """A hint at a setting of one of the dataclasses that a configurable takes, such as `train`."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(configurable))
    except (NameError, TypeError):  # annotations that only a type checker resolves
        return ""
    settings: dict[str, str] = {}
    for part in (part for hint in hints.values() for part in (hint, *typing.get_args(hint))):
        for setting in dataclasses.fields(part) if dataclasses.is_dataclass(part) else ():
            group, name = part.__name__, setting.name
            for key in (name, f"{group.lower()}_{name}", f"{name}_{group.lower()}"):
                settings.setdefault(key, f"{group}.{name}")
    matches = difflib.get_close_matches(parameter, settings, n=1, cutoff=0.55)
    return f" (did you mean '{settings[matches[0]]}'?)" if matches else ""


def _check_macros(parsed: ParsedConfig) -> None:
    """Every macro that is used must be set, not to itself, and none left at %gin.REQUIRED."""
    for name, origin in parsed.macro_uses.items():
        if name not in parsed.macros:
            raise ConfigError(
                f"{origin}: macro '%{name}' is not defined{did_you_mean(name, parsed.macros)}. "
                f"Set it in a gin file or with --gin.{name}=VALUE{origin.quoted}"
            )
    for name, value in parsed.values.items():
        passed = {name}
        while _is_macro_reference(value):
            name = "/".join(value.scopes)
            if name in passed:
                raise ConfigError(f"{parsed.macros[name]}: macro '{name}' refers to itself")
            passed.add(name)
            value = parsed.values.get(name)
    unset = [name for name, value in parsed.values.items() if _is_required(value)]
    if unset:
        raise _unset(unset)


def _check_idle_macros(parsed: ParsedConfig) -> None:
    """A macro that nothing uses, and that is nearly one that is used, is a misspelling of it."""
    used = {*parsed.macro_uses, *READ_BY_COMMANDS, *MACROS}
    for name, origin in parsed.macros.items():
        if name not in used and difflib.get_close_matches(name, used, 1, _NEAR):
            raise ConfigError(
                f"{origin}: nothing uses a macro '{name}'{did_you_mean(name, used)}{origin.quoted}"
            )


def _is_macro_reference(value: Any) -> bool:
    return isinstance(value, gin_config.ConfigurableReference) and value.selector == "gin.macro"


def _is_required(value: Any) -> bool:
    return (
        isinstance(value, gin_config.ConfigurableReference)
        and value.selector == "gin.constant"
        and value.scoped_selector == "gin.REQUIRED/gin.constant"
    )


def _unset(names: Sequence[str]) -> ConfigError:
    lines = [
        f"  --gin.{name}=VALUE" + (f"   ({MACROS[name]})" if name in MACROS else "")
        for name in names
    ]
    return ConfigError(
        "these settings are required and not set; give them in a gin file or as\n"
        + "\n".join(lines)
    )
