"""Statements of gin files and of `--gin.NAME=VALUE` bindings, as gin's own parser reads them.

Files are looked for in the current directory first and then among the files shipped with the
package, so a command works from any directory.
"""

from __future__ import annotations

import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gin import config as gin_config
from gin import config_parser

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean

# A value without quotes that cannot be anything but a string: a path, a name, an address.
_BARE_STRING = re.compile(r"[A-Za-z_./~][\w ./~:+=-]*")
# Macros whose value is text, whatever it looks like: folders may be called 3 or "run (2)", and
# begin with ~/.
_OF_TEXT = re.compile(r"MODEL_DIR|DATASET|BANK|PREPARED|ITEMS|TEACHER|\w+_PATH")
_NOT_GIN = (SyntaxError, tokenize.TokenError, ValueError, TypeError)


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
    path, root = Path(name).expanduser(), shipped_root()
    folders = [path.parent] if path.is_absolute() else [Path.cwd(), root]
    candidates = [folder / (path.name if path.is_absolute() else path) for folder in folders]
    if existing := [candidate for candidate in candidates if candidate.is_file()]:
        return existing[0]
    names = [str(file.relative_to(root)) for file in (root / "gin_configs").rglob("*.gin")]
    for candidate in candidates:
        names += [str(path.parent / file.name) for file in candidate.parent.glob("*.gin")]
    raise ConfigError(
        f"{place}no gin file '{name}'{did_you_mean(str(path), sorted(names))}. Searched: "
        f"{', '.join(map(str, folders))}"
    )


def statements_of(files: Sequence[str | Path], bindings: Sequence[str] = ()) -> Iterator[Any]:
    """gin's statements, those of included files in the place of the include.

    Args as `configuration.parse_config`.

    Raises:
      ConfigError: a file is missing, cannot be read or includes itself, or text is not gin.
    """
    for name in files:
        yield from _of_file(find_file(name), ())
    for binding in bindings:
        text = with_quotes(binding)
        yield from parse_statements(text, f"--gin.{text.partition(' = ')[0]}")


def _of_file(path: Path, including: tuple[Path, ...]) -> Iterator[Any]:
    if path in including:
        chain = " -> ".join(map(str, (*including, path)))
        raise ConfigError(f"gin files include each other in a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for statement in parse_statements(text, shown_path(path)):
        if isinstance(statement, config_parser.IncludeStatement):
            included = find_file(statement.filename, f"{place_of(statement)}: ")
            yield from _of_file(included, (*including, path))
        else:
            yield statement


def parse_statements(text: str, name: str) -> Iterator[Any]:
    """gin's statements of a text, each of which has a `location`.

    References to what is not registered are let through: who binds them reports them.

    Raises:
      ConfigError: the text is not gin, with `name` and the line.
    """
    lines = text.splitlines()

    def located(statement: Any, number: int) -> Any:
        line = lines[number - 1] if 0 < number <= len(lines) else ""
        return statement._replace(location=config_parser.Location(name, number, None, line))

    try:
        delegate = gin_config.ParserDelegate(skip_unknown=True)
        for statement in config_parser.ConfigParser(text, delegate):
            yield _in_home(located(statement, statement.location.line_num))
    except _NOT_GIN as error:
        number = getattr(error, "lineno", 0) or 0
        if isinstance(error, tokenize.TokenError):
            number = error.args[1][0]
        statement = located(config_parser.IncludeStatement("", None), number)
        raise ConfigError(
            f"{place_of(statement)}: not valid gin: {error.args[0]}{quoted(statement)}"
        ) from error


def _in_home(statement: Any) -> Any:
    """A statement whose `~/`, in a macro that is text, has become the home folder."""
    if isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
        value = statement.value
        if isinstance(value, str) and _OF_TEXT.fullmatch(statement.selector):
            return statement._replace(value=os.path.expanduser(value))
    return statement


def place_of(statement: Any) -> str:
    """Where a statement is: 'run.gin:3', or '--gin.NAME'."""
    name, number = statement.location[:2]
    return name if name.startswith("--gin.") or not number else f"{name}:{number}"


def quoted(statement: Any) -> str:
    """A statement's line, for the end of a message."""
    line = statement.location.line_content.strip()
    return f"\n    {line}" if line else ""


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
    if is_text:
        # The shell leaves ~ alone behind an equals sign.
        value = repr(os.path.expanduser(value))
    return f"{name} = {value}"


def _is_value(text: str, kind: type = object) -> bool:
    try:
        return isinstance(gin_config.parse_value(text), kind)
    except _NOT_GIN:
        return False


def shown_path(path: Path) -> str:
    """Path as the user would write it: relative to here when it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
