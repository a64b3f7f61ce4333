r"""Templates turn records into *segments* of text (paper, section 2: plain text, no item ids).

A template is text with fields and optional clauses:

    clicked {title}[ by {author}][ ({year}[, {country}])], {ago}

`{title}` is replaced by the value of that name; a clause in brackets is left out when a field
directly inside it has no value (None, NaN, an empty string or list), or when it holds nothing but
clauses that were all left out. Clauses nest. A backslash takes the meaning off the character after
it: `\[`, `\]`, `\{`, `\}`, `\\` (inside JSON the backslash itself is doubled: `"\\["`). Text from
data goes in verbatim and is never read as template syntax.

A field outside every bracket must have a value; a record without one is an error that names the
template, the field and the record, because a silent gap would train the model on broken text.
"""

from __future__ import annotations

import decimal
import math
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.records import Value

_ESCAPABLE = "[]{}\\"
# Whitespace, and what SentencePiece's normalisation makes nothing of: control characters, invisible
# ones, and the sign for what could not be read. A model would get no token of it.
_SILENT = re.compile(
    r"[\s\x01-\x08\x0e-\x1f\x7f\x8f\x9f\u061c\u200b\u200c\u200e\u200f\u2581\ufeff\ufffd]*"
)


def text_of(value: Value) -> str:
    """Writes one value as text; the empty string means that there is nothing to write.

    Strings stay as they are, except that one of nothing but whitespace and invisible characters
    counts as missing. Tuples and lists are joined with ", " without their empty members. Whole
    floats lose their ".0", others keep six significant digits (from 100,000 on all of them), and
    none has an exponent. True is "yes", False is "no".
    """
    if type(value) is str:
        return "" if _SILENT.fullmatch(value) else value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            return ""
        if number.is_integer():
            return str(int(number))
        text = f"{number:.6g}" if abs(number) < 1e5 else repr(number)
        return format(decimal.Decimal(text), "f") if "e" in text else text
    if isinstance(value, (tuple, list)):
        return ", ".join(filter(None, map(text_of, value)))
    return text_of(str(value))


def is_field_name(name: str) -> bool:
    """Whether a template can name a field so."""
    return bool(name) and name == name.strip() and not any(char in _ESCAPABLE for char in name)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    position: int  # of the opening brace in the template, counted from 1


@dataclass(frozen=True, slots=True)
class _Clause:
    parts: tuple[_Part, ...]


_Part = str | _Field | _Clause


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed format string; make one with `Template.parse`.

    Attributes:
      source: the format string as it was written.
      name: what error messages call it, such as "event".
      fields: the names it mentions, each once, in order of first appearance.
      required: those outside every optional clause, without whose value nothing can be rendered.
    """

    source: str
    name: str
    fields: tuple[str, ...]
    required: tuple[str, ...]
    _parts: tuple[_Part, ...]

    @classmethod
    def parse(cls, source: str, name: str = "text") -> Template:
        """Reads a format string; `name` is what error messages call it.

        Raises:
          ConfigError: an unbalanced bracket or brace, an empty field name, an optional clause that
            holds no field, or a backslash before an ordinary character; each with its position,
            counted from 1.
        """
        if not isinstance(source, str):
            raise ConfigError(f"template '{name}' must be a string, not {source!r}")
        return cls._of(source, name, _Parser(source, name).parse())

    @classmethod
    def _of(cls, source: str, name: str, parts: tuple[_Part, ...]) -> Template:
        fields = tuple(dict.fromkeys(found.name for found in _fields(parts)))
        outside = (part.name for part in parts if isinstance(part, _Field))
        return cls(source, name, fields, tuple(dict.fromkeys(outside)), parts)

    @property
    def may_be_empty(self) -> bool:
        """Whether it may render to nothing but spaces."""
        return not self.required and not any(
            isinstance(part, str) and part.strip() for part in self._parts
        )

    def render(self, values: Mapping[str, Value]) -> str:
        """Fills in the values by field name; names the template does not mention are ignored.

        Raises:
          DataError: a field outside every optional clause has no value.
        """
        texts: list[str] = []
        for part in self._parts:
            if type(part) is str:
                texts.append(part)
            elif isinstance(part, _Field):
                text = text_of(values.get(part.name))
                if not text:
                    raise _missing(part, self.name)
                texts.append(text)
            elif isinstance(part, _Clause):
                texts.append(_render_clause(part, values))
        return "".join(texts)

    def pieces(self, source_of: Callable[[str], object]) -> list[Template]:
        """Cuts it into templates whose texts, put together, are its own.

        Args:
          source_of: where a field's value comes from. A piece goes on as long as the sources of the
            next part's fields are those that it has already.
        """
        runs: list[tuple[set[object], list[_Part]]] = []
        for part in self._parts:
            sources = {source_of(field.name) for field in _fields([part])}
            if runs and (sources == runs[-1][0] or not sources):
                runs[-1][1].append(part)
            elif runs and not runs[-1][0]:  # words at the beginning
                runs[-1] = (sources, [*runs[-1][1], part])
            else:
                runs.append((sources, [part]))
        return [Template._of(self.source, self.name, tuple(parts)) for _, parts in runs]

    def fill(self, values: Mapping[str, Value], later: Iterable[str]) -> str:
        """The format string that is left when all but some fields are rendered.

        Args:
          values: as for `render`.
          later: fields to keep, whose values are not known yet.

        Raises:
          DataError: as `render`, for the others.
        """
        return "".join(_fill(part, values, frozenset(later), self.name) for part in self._parts)

    def validate(self, known: Iterable[str]) -> None:
        """Raises ConfigError, with the position and the closest known name, for an unknown field
        name.
        """
        names = sorted(set(known))
        for field in _fields(self._parts):
            if field.name not in names:
                raise ConfigError(
                    f"template '{self.name}', character {field.position}: there is no field "
                    f"{{{field.name}}}{did_you_mean(field.name, names)}; "
                    f"known here: {', '.join(names) or 'none'}"
                )


class _Parser:
    """Recursive descent over one format string; positions in messages count from 1."""

    def __init__(self, source: str, name: str) -> None:
        self._source = source
        self._name = name
        self._at = 0

    def parse(self) -> tuple[_Part, ...]:
        return self._parts(opened_at=None)

    def _parts(self, opened_at: int | None) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        literal: list[str] = []
        while self._at < len(self._source):
            start, char = self._at, self._source[self._at]
            self._at += 1
            if char == "\\":
                literal.append(self._escaped(start))
                continue
            if char not in _ESCAPABLE:
                literal.append(char)
                continue
            if literal:
                parts.append("".join(literal))
                literal = []
            if char == "{":
                parts.append(self._field(start))
            elif char == "[":
                parts.append(self._clause(start))
            elif char == "]" and opened_at is not None:
                return tuple(parts)
            else:
                opener = "[" if char == "]" else "{"
                raise self._error(start, f"'{char}' without a '{opener}' before it", char)
        if opened_at is not None:
            raise self._error(opened_at, "'[' is never closed by a ']'", "[")
        if literal:
            parts.append("".join(literal))
        return tuple(parts)

    def _escaped(self, start: int) -> str:
        char = self._source[self._at : self._at + 1]
        if not char or char not in _ESCAPABLE:
            raise self._error(start, "a backslash may only stand before [ ] { } or \\", "\\")
        self._at += 1
        return char

    def _field(self, start: int) -> _Field:
        end = self._source.find("}", self._at)
        if end < 0:
            raise self._error(start, "'{' is never closed by a '}'", "{")
        name = self._source[self._at : end]
        if not is_field_name(name):
            raise self._error(start, f"'{{{name}}}' does not hold a field name", "{")
        self._at = end + 1
        return _Field(name, start + 1)

    def _clause(self, start: int) -> _Clause:
        clause = _Clause(self._parts(opened_at=start))
        if not any(not isinstance(part, str) for part in clause.parts):
            raise self._error(start, "an optional clause without a field is never left out", "[")
        return clause

    def _error(self, position: int, problem: str, char: str) -> ConfigError:
        return ConfigError(
            f"template '{self._name}', character {position + 1}: {problem} "
            f"(write \\{char} for the character itself): {self._source!r}"
        )


def _fields(parts: Iterable[_Part]) -> Iterator[_Field]:
    for part in parts:
        if isinstance(part, _Field):
            yield part
        elif isinstance(part, _Clause):
            yield from _fields(part.parts)


def _render_clause(clause: _Clause, values: Mapping[str, Value]) -> str:
    """Returns the clause's text, or "" when a field has no value or only lost clauses are in it."""
    texts: list[str] = []
    has_content = False
    for part in clause.parts:
        if type(part) is str:
            texts.append(part)
            continue
        if isinstance(part, _Field):
            text = text_of(values.get(part.name))
            if not text:
                return ""
        else:
            assert isinstance(part, _Clause)
            text = _render_clause(part, values)
        has_content = has_content or bool(text)
        texts.append(text)
    return "".join(texts) if has_content else ""


def _fill(part: _Part, values: Mapping[str, Value], later: frozenset[str], name: str) -> str:
    if isinstance(part, str):
        return _escaped(part)
    if isinstance(part, _Field):
        if part.name in later:
            return f"{{{part.name}}}"
        if text := text_of(values.get(part.name)):
            return _escaped(text)
        raise _missing(part, name)
    own = [inner for inner in part.parts if isinstance(inner, _Field) and inner.name not in later]
    if not all(text_of(values.get(field.name)) for field in own):
        return ""
    if not later.intersection(field.name for field in _fields(part.parts)):
        return _escaped(_render_clause(part, values))
    filled = "".join(_fill(inner, values, later, name) for inner in part.parts)
    direct = any(isinstance(inner, _Field) and inner.name in later for inner in part.parts)
    # With a value in it, it stays whatever its inner clauses lose.
    has_content = own or any(
        _render_clause(inner, values) for inner in part.parts if isinstance(inner, _Clause)
    )
    return filled if has_content and not direct else f"[{filled}]"


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in _ESCAPABLE else char for char in text)


def _missing(field: _Field, name: str) -> DataError:
    return DataError(
        f"template '{name}' needs a value for {{{field.name}}} (character {field.position}), and "
        "there is none; fill it in the table, or put the words around it in an optional clause "
        "[ ... ] of the template"
    )
