"""Gin files and `--gin.MACRO=value` bindings, with errors that say where and what to write instead.

The dialect is t5x's: a run file sets macros (`MODEL`, `MIXTURE_OR_TASK_NAME`,
`TASK_FEATURE_LENGTHS`, `TRAIN_STEPS`, `MODEL_DIR`, ...) and includes other files:

    include 'gin_configs/models/mini.gin'
    include 'gin_configs/runs/finetune_scoring.gin'

    MIXTURE_OR_TASK_NAME = 'movielens_ctr'
    TRAIN_STEPS = 2_000

Files are looked for in the current directory first and then among the files shipped with the
package, so a command works from any directory.

gin itself reports an unknown name without a hint and an undefined macro without a line, so the
statements are walked here, checked one by one, and then bound through gin's own functions. What can
be said without importing what they configure is said first (`check_config`): that takes seconds.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import logging
import os
import re
import sys
import tokenize
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from m6rec_jax.errors import ConfigError, first_line
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
# A value without quotes that cannot be anything but a string: a path, a name, an address.
_BARE_STRING = re.compile(r"[A-Za-z_./~][\w ./~:+=-]*")
# Macros whose value is text, whatever it looks like: folders may be called 3 or "run (2)", and
# begin with ~/.
_OF_TEXT = re.compile(r"MODEL_DIR|DATASET|\w+_PATH")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a statement is: `file`, or the command line with `line` 0."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(slots=True)
class ParsedConfig:
    """What was read.

    Attributes:
      files: in the order they were opened.
      macros, values: name -> where set last, and to what.
      macro_uses: name -> where used first.
      parameters: `configurable.parameter`, or `scope/configurable.parameter` -> value.
    """

    files: list[Path] = field(default_factory=list)
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


def shipped_root() -> Path | None:
    """The folder that holds `gin_configs`: in a wheel the package, in a checkout its parent."""
    package = Path(__file__).resolve().parent
    for root in (package, package.parent):
        if (root / "gin_configs").is_dir():
            return root
    return None


def search_path() -> list[Path]:
    """Folders in which gin files are looked for, first match wins."""
    root = shipped_root()
    return [Path.cwd()] + ([root] if root is not None else [])


def find_file(name: str, origin: Origin | None = None) -> Path:
    """Resolves a gin file name against the current directory, then the shipped files.

    Raises:
      ConfigError: no such file; names the folders searched and the closest existing file.
    """
    asked = Path(name).expanduser()
    folders = [Path()] if asked.is_absolute() else search_path()
    for folder in folders:
        if (folder / asked).is_file():
            return folder / asked
    near = did_you_mean(str(asked), _existing_files(asked, folders))
    searched = ", ".join(str(p) for p in ([asked.parent] if asked.is_absolute() else folders))
    raise ConfigError(
        f"{_prefix(origin)}no gin file '{name}'{near}. Searched: {searched}"
        + ("" if shipped_root() else " (this installation ships no gin_configs)")
    )


def check_config(files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> ParsedConfig:
    """Reads gin files and bindings without setting or importing anything.

    Args as `parse_config`.

    Raises:
      ConfigError: unknown file, macro or module, undefined or unset macro, syntax error.
    """
    parsed = ParsedConfig()
    for statement, origin in _all_statements(files, (), parsed):
        _note(statement, origin, parsed)
    known = set(parsed.macros) | set(parsed.macro_uses) | set(MACROS)
    given: dict[str, Origin] = {}
    for statement, origin in _all_statements((), bindings, parsed):
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
    for statement, origin in _all_statements(files, (), parsed):
        _note(statement, origin, parsed)
    return set(parsed.macros)


def own_settings(file: str | Path) -> set[str]:
    """Names of the macros and parameters that a gin file sets itself, not by what it includes;
    errors as `check_config`.
    """
    path, parsed = find_file(str(file)), ParsedConfig()
    for statement, origin in _all_statements([path], (), ParsedConfig()):
        if origin.file == _shown(path):
            _note(statement, origin, parsed)
    return {*parsed.macros, *parsed.parameters}


def parse_config(files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> ParsedConfig:
    """Reads gin files, then bindings, and locks the configuration. Earlier settings are dropped.

    Args:
      files: gin files, later ones override earlier ones.
      bindings: `"MACRO=value"` or `"configurable.parameter=value"`, with or without `--gin.` in
        front; they override the files. Values are gin values; paths and names need no quotes
        (`--gin.MODEL_DIR=runs/a`), and MODEL_DIR, DATASET and macros that end in _PATH are text
        unless they are None, or refer to something by % or @.

    Raises:
      ConfigError: unknown file, configurable, parameter or macro (with the closest match and
        file:line), undefined or unset macro, module that does not import, syntax error.
    """
    parsed = check_config(files, bindings)
    gin.clear_config()
    for statement, origin in _all_statements(files, bindings, ParsedConfig()):
        _apply(statement, origin)
    for name, origin in parsed.macros.items():
        if not origin.line and name not in {*parsed.macro_uses, *READ_BY_COMMANDS}:
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


# --- walking the statements -------------------------------------------------------------------


def _all_statements(
    files: Sequence[str | Path], bindings: Sequence[str], parsed: ParsedConfig
) -> Iterator[tuple[Any, Origin]]:
    """All but includes, which are read in their place; each only when it is asked for."""
    for name in files:
        yield from _of_file(find_file(str(name)), parsed, ())
    for binding in bindings:
        yield from _of_binding(binding)


def _of_file(
    path: Path, parsed: ParsedConfig, including: tuple[Path, ...]
) -> Iterator[tuple[Any, Origin]]:
    if path.resolve() in including:
        chain = " -> ".join(str(p) for p in (*including, path))
        raise ConfigError(f"gin files include each other in a circle: {chain}")
    parsed.files.append(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for statement, origin in _statements(text, _shown(path)):
        if isinstance(statement, config_parser.IncludeStatement):
            found = find_file(statement.filename, origin)
            yield from _of_file(found, parsed, (*including, path.resolve()))
        else:
            yield statement, origin


def _of_binding(binding: str) -> Iterator[tuple[Any, Origin]]:
    text = binding.removeprefix("--").removeprefix("gin.").strip()
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or not value:
        raise ConfigError(f"'{binding}': expected --gin.NAME=VALUE")
    if _lacks_quotes(name, value):
        # The shell leaves it alone behind an equals sign.
        value = repr(os.path.expanduser(value) if value.startswith("~/") else value)
    return _statements(f"{name} = {value}", f"--gin.{name}", on_line=False)


def _lacks_quotes(name: str, value: str) -> bool:
    """Whether a value of the command line is text."""
    if _OF_TEXT.fullmatch(name):
        return value != "None" and value[0] not in "%@" and not _is_value(value, str)
    return _BARE_STRING.fullmatch(value) is not None and not _is_value(value)


def _statements(text: str, shown: str, on_line: bool = True) -> Iterator[tuple[Any, Origin]]:
    """Yields gin statements with their origin.

    Raises:
      ConfigError: the text is not gin, with file:line.
    """
    lines = text.splitlines()

    def origin_of(number: int) -> Origin:
        line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        return Origin(shown, number if on_line else 0, line)

    try:
        # Unknown references are let through here and reported, with their line, by `_apply`.
        delegate = gin_config.ParserDelegate(skip_unknown=True)
        for statement in config_parser.ConfigParser(text, delegate):
            yield _with_home(statement), origin_of(statement.location.line_num)
    except (SyntaxError, tokenize.TokenError, ValueError, TypeError) as error:
        number = _line_number(error)
        origin = origin_of(number) if number else Origin(shown, 0, "")
        reason = error.msg if isinstance(error, SyntaxError) else str(error.args[0])
        raise ConfigError(f"{origin}: not valid gin: {reason}{_quote(origin)}") from error


def _with_home(statement: Any) -> Any:
    """A statement whose `~/`, in a macro that is text, has become the home folder."""
    if isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
        value, is_text = statement.value, _OF_TEXT.fullmatch(statement.selector)
        if is_text and isinstance(value, str) and value.startswith("~/"):
            return statement._replace(value=os.path.expanduser(value))
    return statement


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
                f"{_quote(origin)}"
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
        raise ConfigError(f"{origin}: {first_line(error)}{_quote(origin)}") from error


def _import(statement: Any, origin: Origin) -> None:
    try:
        gin.parse_config(statement.format())  # gin keeps the import for the dumped file
    except ImportError as error:
        raise ConfigError(
            f"{origin}: cannot import '{statement.module}': {first_line(error)}{_quote(origin)}"
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
        f"`import that.module` above it{_quote(origin)}"
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
            f"{_quote(origin)}"
        )
    asked = parameters[parameter]
    is_bool = isinstance(asked.default, bool) or "bool" in str(asked.annotation).split(" | ")
    if is_bool and isinstance(value, str):
        # The text 'false' would be true.
        raise ConfigError(
            f"{origin}: {selector}.{parameter} = {value!r} is neither True nor False"
            f"{_quote(origin)}"
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
                f"Set it in a gin file or with --gin.{name}=VALUE{_quote(origin)}"
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
                f"{origin}: nothing uses a macro '{name}'{did_you_mean(name, used)}{_quote(origin)}"
            )


def _is_macro_reference(value: Any) -> bool:
    return isinstance(value, gin_config.ConfigurableReference) and value.selector == "gin.macro"


def _is_required(value: Any) -> bool:
    return (
        isinstance(value, gin_config.ConfigurableReference)
        and value.selector == "gin.constant"
        and value.scoped_selector == "gin.REQUIRED/gin.constant"
    )


# --- messages ---------------------------------------------------------------------------------


def _unset(names: Sequence[str]) -> ConfigError:
    lines = [
        f"  --gin.{name}=VALUE" + (f"   ({MACROS[name]})" if name in MACROS else "")
        for name in names
    ]
    return ConfigError(
        "these settings are required and not set; give them in a gin file or as\n"
        + "\n".join(lines)
    )


def _existing_files(asked: Path, folders: Sequence[Path]) -> list[str]:
    """Names one could have meant: the shipped files, and files beside the one asked for."""
    names = []
    root = shipped_root()
    if root is not None:
        names += [str(p.relative_to(root)) for p in sorted((root / "gin_configs").rglob("*.gin"))]
    for folder in folders:
        names += [str(asked.parent / p.name) for p in sorted((folder / asked.parent).glob("*.gin"))]
    return names


def _is_value(text: str, kind: type = object) -> bool:
    try:
        return isinstance(gin_config.parse_value(text), kind)
    except (SyntaxError, ValueError, TypeError, tokenize.TokenError):
        return False


def _line_number(error: Exception) -> int:
    if isinstance(error, SyntaxError):
        return error.lineno or 0
    if isinstance(error, tokenize.TokenError):
        return int(error.args[1][0])
    return 0


def _shown(path: Path) -> str:
    """Path as the user would write it: relative to here when it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _prefix(origin: Origin | None) -> str:
    return f"{origin}: " if origin is not None else ""


def _quote(origin: Origin) -> str:
    return f"\n    {origin.text}" if origin.text else ""
