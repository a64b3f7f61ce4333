"""Statements of gin files and of `--gin.NAME=VALUE` bindings, each with where it is written.

Files are looked for in the current directory first and then among the files shipped with the
package, so a command works from any directory.
"""

from __future__ import annotations

import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a statement is: `file`, or the command line with `line` 0."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def quoted(self) -> str:
        """Its line, for the end of a message."""
        return f"\n    {self.text}" if self.text else ""


def shipped_root() -> Path:
    """The folder that holds `gin_configs`: in a wheel the package, in a checkout its parent."""
    package = Path(__file__).resolve().parent
    return package if (package / "gin_configs").is_dir() else package.parent


def search_path() -> list[Path]:
    """Folders in which gin files are looked for, first match wins."""
    return [Path.cwd(), shipped_root()]


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
        f"{'' if origin is None else f'{origin}: '}no gin file '{name}'{near}. Searched: {searched}"
    )


def statements_of(
    files: Sequence[str | Path], bindings: Sequence[str] = ()
) -> Iterator[tuple[Any, Origin]]:
    """All but includes, which are read in their place; each only when it is asked for.

    Args as `configuration.parse_config`.

    Raises:
      ConfigError: a file is missing, cannot be read or includes itself, or text is not gin.
    """
    for name in files:
        yield from _of_file(find_file(str(name)), ())
    for binding in bindings:
        yield from _of_binding(binding)


def _of_file(path: Path, including: tuple[Path, ...]) -> Iterator[tuple[Any, Origin]]:
    if path.resolve() in including:
        chain = " -> ".join(str(p) for p in (*including, path))
        raise ConfigError(f"gin files include each other in a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for statement, origin in _statements(text, shown_path(path)):
        if isinstance(statement, config_parser.IncludeStatement):
            found = find_file(statement.filename, origin)
            yield from _of_file(found, (*including, path.resolve()))
        else:
            yield statement, origin


def _of_binding(binding: str) -> Iterator[tuple[Any, Origin]]:
    text = with_quotes(binding)
    return _statements(text, f"--gin.{text.partition('=')[0].strip()}", on_line=False)


def with_quotes(binding: str) -> str:
    """`NAME=VALUE` of the command line as a statement: a value that is text in gin's quotes.

    Raises:
      ConfigError: there is no name, or no value.
    """
    text = binding.removeprefix("--").removeprefix("gin.").strip()
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or not value:
        raise ConfigError(f"'{binding}': expected --gin.NAME=VALUE")
    if _lacks_quotes(name, value):
        # The shell leaves it alone behind an equals sign.
        value = repr(os.path.expanduser(value) if value.startswith("~/") else value)
    return f"{name} = {value}"


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
        # Unknown references are let through here; who binds them reports them with their line.
        delegate = gin_config.ParserDelegate(skip_unknown=True)
        for statement in config_parser.ConfigParser(text, delegate):
            yield _with_home(statement), origin_of(statement.location.line_num)
    except (SyntaxError, tokenize.TokenError, ValueError, TypeError) as error:
        number = _line_number(error)
        origin = origin_of(number) if number else Origin(shown, 0, "")
        reason = error.msg if isinstance(error, SyntaxError) else str(error.args[0])
        raise ConfigError(f"{origin}: not valid gin: {reason}{origin.quoted}") from error


def _with_home(statement: Any) -> Any:
    """A statement whose `~/`, in a macro that is text, has become the home folder."""
    if isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
        value, is_text = statement.value, _OF_TEXT.fullmatch(statement.selector)
        if is_text and isinstance(value, str) and value.startswith("~/"):
            return statement._replace(value=os.path.expanduser(value))
    return statement


def _existing_files(asked: Path, folders: Sequence[Path]) -> list[str]:
    """Names one could have meant: the shipped files, and files beside the one asked for."""
    root = shipped_root()
    names = [str(p.relative_to(root)) for p in sorted((root / "gin_configs").rglob("*.gin"))]
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


def shown_path(path: Path) -> str:
    """Path as the user would write it: relative to here when it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
