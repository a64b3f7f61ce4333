"""Gin files and `--gin.MACRO=value` bindings, with errors that say where and what to write instead.

The dialect is t5x's: a run file sets macros (`MODEL`, `MIXTURE_OR_TASK_NAME`,
`TASK_FEATURE_LENGTHS`, `TRAIN_STEPS`, `MODEL_DIR`, ...) and includes other files:

    include 'gin_configs/models/mini.gin'
    include 'gin_configs/recipes/scoring.gin'

    MIXTURE_OR_TASK_NAME = 'movielens_ctr'
    TRAIN_STEPS = 2_000

Files are looked for in the current directory and then among those shipped with the package, so a
command works from any directory. gin itself reports an undefined macro when it is used, without its
line, so macros are checked first (`check_config`), which imports nothing and is quick. Statements
are then bound one by one, so that gin's errors come with file, line and the nearest name.
"""

from __future__ import annotations

import difflib
import inspect
import io
import os
import re
import tokenize
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
# May be functions of the data (`pipeline.fitted_settings`).
_MEASURED = ("TASK_FEATURE_LENGTHS", "VOCAB_SIZE")
# Read by commands directly, not through a file.
_READ_BY_COMMANDS = {*MACROS, *_MEASURED, "RULES"}
# A value without quotes that cannot be anything but a string: a path, a name, an address.
_BARE_STRING = re.compile(r"[A-Za-z_./~][\w ./~:+=-]*")
# Macros whose value is text, whatever it looks like: folders may be called 3 or "run (2)", and
# begin with ~/.
_OF_TEXT = re.compile(r"MODEL_DIR|DATASET|BANK|PREPARED|ITEMS|TEACHER|\w+_PATH")
_NOT_GIN = (SyntaxError, tokenize.TokenError, ValueError, TypeError)
# How alike a name must be to one that exists to be a misspelling of it.
_NEAR = 0.85


@dataclass(slots=True)
class ParsedConfig:
    """What was read.

    Attributes:
      macros: name -> value.
      parameters: `configurable.parameter`, or `scope/configurable.parameter` -> value.
      places: name of either -> where it was set last, such as 'run.gin:3'.
      uses: name of a macro -> where it is used first.
    """

    macros: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)

    def parameter(self, name: str, default: Any) -> Any:
        """The value of a parameter, or of the macro that it refers to."""
        value = self.parameters.get(name, default)
        while macro := _macro_of(value):
            value = self.macros.get(macro)
        return value


def read_config(files: Sequence[str | Path], bindings: Sequence[str] = ()) -> ParsedConfig:
    """What gin files and bindings set; checks nothing but that they are gin.

    Args as `parse_config`.
    """
    parsed = ParsedConfig()
    for statement in statements_of(files, bindings):
        if isinstance(statement, config_parser.BindingStatement):
            name = _name(statement)
            (parsed.parameters if statement.arg_name else parsed.macros)[name] = statement.value
            parsed.places[name] = _place(statement)
            for part in gin_config._iterate_flattened_values(statement.value):
                if macro := _macro_of(part):
                    parsed.uses.setdefault(macro, _place(statement))
    return parsed


def check_config(files: Sequence[str | Path] = (), bindings: Sequence[str] = ()) -> ParsedConfig:
    """Reads gin files and bindings without setting or importing anything.

    Args as `parse_config`.

    Raises:
      ConfigError: unknown file or macro, undefined or unset macro, syntax error.
    """
    parsed = read_config(files, bindings)
    used = {*parsed.uses, *_READ_BY_COMMANDS}
    for name, place in parsed.uses.items():
        if name not in parsed.macros:
            raise ConfigError(
                f"{place}: macro '%{name}' is not defined{did_you_mean(name, parsed.macros)}. Set "
                f"it in a gin file or with --gin.{name}=VALUE"
            )
    for name, value in parsed.macros.items():
        place, passed = parsed.places[name], {name}
        while value := _macro_of(value):
            if value in passed:
                raise ConfigError(f"{place}: macro '{name}' refers to itself")
            passed.add(value)
            value = parsed.macros[value]
        near = difflib.get_close_matches(name, used, 1, _NEAR)
        if name not in used and (near or place.startswith("--gin.")):
            raise ConfigError(
                f"{place}: nothing uses a macro '{name}'{did_you_mean(name, used)}. These are "
                f"used: {', '.join(sorted(used))}"
            )
    if unset := [name for name, value in parsed.macros.items() if _is_required(value)]:
        raise _unset(unset)
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
        try:
            _bind(statement)
        except (ValueError, TypeError, KeyError, ImportError) as error:
            raise ConfigError(f"{_place(statement)}: {first_line(error)}") from error
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
        for name in _MEASURED:
            if (value := macro(name, gin)) is not gin:
                gin.bind_parameter((name, "gin.macro", "value"), value)


def macro(name: str, default: Any = gin.REQUIRED) -> Any:
    """The value of a macro; references in it (`@f()`) are called.

    Raises:
      ConfigError: the macro is not set and there is no default.
    """
    if gin.get_bindings(f"{name}/gin.macro", resolve_references=False):
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
    name = _macro_of(value)
    return macro(name) if name else value


# --- files and statements ---------------------------------------------------------------------


def shipped_root() -> Path:
    """The folder that holds `gin_configs`: in a wheel the package, in a checkout its parent."""
    package = Path(__file__).resolve().parent
    return package if (package / "gin_configs").is_dir() else package.parent


def find_file(name: str | Path, place: str = "") -> Path:
    """A gin file in the current directory, else among the shipped files.

    Args:
      name: the file; absolute, or relative to one of these folders.
      place: 'run.gin:3: ', where it is included.

    Raises:
      ConfigError: no such file; names the folders searched and the closest existing file.
    """
    folders, path = (Path.cwd(), shipped_root()), Path(name).expanduser()
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    names = [str(file.relative_to(folders[1])) for file in folders[1].rglob("gin_configs/**/*.gin")]
    names += [str(path.parent / file.name) for file in (folders[0] / path).parent.glob("*.gin")]
    raise ConfigError(
        f"{place}no gin file '{name}'{did_you_mean(str(path), sorted(names))}. Searched: "
        f"{', '.join(map(str, folders))}"
    )


def statements_of(files: Sequence[str | Path], bindings: Sequence[str] = ()) -> Iterator[Any]:
    """gin's statements, those of included files in the place of the include.

    References to what is not registered are let through: whoever binds them reports them.

    Raises:
      ConfigError: a file is missing, cannot be read or includes itself, or text is not gin.
    """
    for name in files:
        yield from _of_file(find_file(name), ())
    for binding in bindings:
        text = with_quotes(binding)
        yield from _parsed(text, f"--gin.{text.partition(' = ')[0]}")


def _of_file(path: Path, including: tuple[Path, ...]) -> Iterator[Any]:
    if path in including:
        chain = " -> ".join(map(str, (*including, path)))
        raise ConfigError(f"gin files include each other in a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    is_below = path.is_relative_to(Path.cwd())
    for statement in _parsed(text, str(path.relative_to(Path.cwd()) if is_below else path)):
        if isinstance(statement, config_parser.IncludeStatement):
            included = find_file(statement.filename, f"{_place(statement)}: ")
            yield from _of_file(included, (*including, path))
        else:
            yield statement


def _parsed(text: str, name: str) -> Iterator[Any]:
    file = io.StringIO(text)
    file.name = name  # gin's parser notes it in each location
    try:
        delegate = gin_config.ParserDelegate(skip_unknown=True)
        for statement in config_parser.ConfigParser(file, delegate):
            yield _in_home(statement)
    except _NOT_GIN as error:
        is_open = isinstance(error, tokenize.TokenError)  # a bracket or a quote
        number = error.args[1][0] if is_open else getattr(error, "lineno", 0) or 0
        lines = ["", *text.splitlines()]
        line = lines[number] if number < len(lines) else ""
        raise ConfigError(f"{name}:{number}: not valid gin: {error.args[0]}: {line}") from error


def _in_home(statement: Any) -> Any:
    """A statement whose `~/`, in a macro that is text, has become the home folder."""
    if isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
        value = statement.value
        if isinstance(value, str) and _OF_TEXT.fullmatch(statement.selector):
            return statement._replace(value=os.path.expanduser(value))
    return statement


def with_quotes(binding: str) -> str:
    """`NAME=VALUE` of the command line as a statement: a value that is text in gin's quotes.

    Raises:
      ConfigError: there is no name, or no value.
    """
    text = binding.removeprefix("--").removeprefix("gin.").strip()
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name or not value:
        raise ConfigError(f"'{binding}': expected --gin.NAME=VALUE")
    if value in ("true", "false"):  # as texts both would be true
        value = value.capitalize()
    if _OF_TEXT.fullmatch(name):
        is_text = value != "None" and value[0] not in "%@" and not _is_value(value, str)
    else:
        is_text = _BARE_STRING.fullmatch(value) is not None and not _is_value(value)
    return f"{name} = {os.path.expanduser(value)!r}" if is_text else f"{name} = {value}"


def _is_value(text: str, kind: type = object) -> bool:
    try:
        return isinstance(gin.config.parse_value(text), kind)
    except _NOT_GIN:
        return False


# --- one statement ----------------------------------------------------------------------------


def _bind(statement: Any) -> None:
    if isinstance(statement, config_parser.ImportStatement):
        if statement.module.startswith("__gin__"):
            raise ImportError("dynamic registration is for `python -m t5x.train` alone")
        gin.parse_config(statement.format())  # gin keeps the import for the dumped file
    elif isinstance(statement, config_parser.BindingStatement):
        for part in gin_config._iterate_flattened_values(statement.value):
            if isinstance(part, gin_config._UnknownConfigurableReference):
                _configurable(part.selector.rsplit("/", 1)[-1])
        if statement.arg_name:
            _check_parameter(statement.selector, statement.arg_name)
            gin.bind_parameter(statement[:3], statement.value)
        else:
            gin.bind_parameter((_name(statement), "gin.macro", "value"), statement.value)


def _configurable(selector: str) -> Any:
    """A configurable; raises ValueError, with the nearest name, and KeyError for several."""
    try:
        return gin.get_configurable(selector)
    except ValueError:
        names = {name.rsplit(".", 1)[-1] for name, _ in gin_config._REGISTRY.items()}
        raise ValueError(
            f"nothing configurable is called '{selector}'{did_you_mean(selector, names)}. If it "
            "lives in a module of yours, put `import that.module` above it"
        ) from None


def _check_parameter(selector: str, name: str) -> None:
    """Raises ValueError for a parameter that is none."""
    parameters = inspect.signature(_configurable(selector)).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if name not in parameters and not takes_any:
        raise ValueError(
            f"'{selector}' has no parameter '{name}'{did_you_mean(name, parameters)}. Its "
            f"parameters: {', '.join(one for one in parameters if one != 'self')}"
        )


def _name(statement: Any) -> str:
    scope, selector, parameter = statement[:3]
    return "/".join(filter(None, (scope, selector))) + (f".{parameter}" if parameter else "")


def _place(statement: Any) -> str:
    """Where a statement is: 'run.gin:3', or '--gin.NAME'."""
    name, number = statement.location[:2]
    return name if name.startswith("--gin.") else f"{name}:{number}"


def _macro_of(value: Any) -> str | None:
    """The name of the macro that a value refers to, if it is such a reference."""
    is_one = isinstance(value, gin_config.ConfigurableReference) and value.selector == "gin.macro"
    return "/".join(value.scopes) if is_one else None


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
