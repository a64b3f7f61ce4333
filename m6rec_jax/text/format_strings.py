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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


class Template:
    """A parsed format string; make one with `Template.parse`.

    Attributes:
      source: the format string as it was written.
      name: what error messages call it, such as "event".
      fields: the names it mentions, each once, in order of first appearance.
      required: those outside every optional clause, without whose value nothing can be rendered.
    """

    def __init__(self, source: str, name: str, parts: Sequence[_Part]) -> None:
        self.source, self.name, self._parts = source, name, tuple(parts)
        self.fields = tuple(dict.fromkeys(field.name for field in _fields(parts)))
        outside = [part.name for part in parts if isinstance(part, _Field)]
        self.required = tuple(dict.fromkeys(outside))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    @classmethod
    def parse(cls, source: str, name: str = "text") -> Template:
        """Reads a format string; `name` is what error messages call it.

        Raises:
          ConfigError: an unbalanced bracket or brace, an empty field name, an optional clause that
            holds no field, or a backslash before an ordinary character; each with its position,
            counted from 1.
        """
        return cls(source, name, _parse(source, name))

    def named(self, name: str) -> Template:
        """The same under another name."""
        return Template(self.source, name, self._parts)

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
        return "".join(str(part) for part in self._reduced(values, frozenset()))

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
        return [Template(self.source, self.name, parts) for _, parts in runs]

    def fill(self, values: Mapping[str, Value], later: Iterable[str]) -> str:
        """The format string that is left when all fields but those of `later`, whose values are not
        known yet, are rendered; raises DataError as `render` for the others.
        """
        return _source(self._reduced(values, frozenset(later)))

    def _reduced(self, values: Mapping[str, Value], later: frozenset[str]) -> list[_Part]:
        reduced = _reduce(self._parts, values, later)
        if isinstance(reduced, _Field):
            raise DataError(
                f"template '{self.name}' needs a value for {{{reduced.name}}} (character "
                f"{reduced.position}), and there is none; fill it in the table, or put the words "
                "around it in an optional clause [ ... ] of the template"
            )
        return reduced[0]

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


# Words, an escaped character, a field, or a character that stands where it may not.
_TOKEN = re.compile(r"[^\\\[\]{}]+|\\(?P<escaped>[\[\]{}\\])|\{(?P<field>[^}]*)\}|.", re.DOTALL)
_MISPLACED = {
    "]": "']' without a '[' before it",
    "}": "'}' without a '{' before it",
    "{": "'{' is never closed by a '}'",
    "\\": "a backslash may only stand before [ ] { } or \\",
}


def parse_member(_: type, source: object) -> Template:
    """A template in a JSON object, as `msgspec.convert` reads it (`dec_hook`)."""
    if not isinstance(source, str):
        raise TypeError(f"a template must be a string, not {source!r}")
    try:
        return Template.parse(source, "")
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _parse(source: str, name: str) -> list[_Part]:
    def error(start: int, problem: str) -> ConfigError:
        return ConfigError(
            f"{f'template {name!r}, ' if name else ''}character {start + 1}: {problem} "
            f"(write \\{source[start]} for the character itself): {source!r}"
        )

    parts: list[_Part] = []
    # Clauses that are open: where each begins, and the parts before it.
    around: list[tuple[int, list[_Part]]] = []
    for match in _TOKEN.finditer(source):
        text, start = match[0], match.start()
        if match["field"] is not None:
            if not is_field_name(match["field"]):
                raise error(start, f"'{text}' does not hold a field name")
            parts.append(_Field(match["field"], start + 1))
        elif text == "[":
            around.append((start, parts))
            parts = []
        elif text == "]" and around:
            opened, before = around.pop()
            if all(isinstance(part, str) for part in parts):
                raise error(opened, "an optional clause without a field is never left out")
            parts = [*before, _Clause(tuple(parts))]
        elif text in _MISPLACED:
            raise error(start, _MISPLACED[text])
        elif parts and isinstance(parts[-1], str):
            parts[-1] += match["escaped"] or text
        else:
            parts.append(match["escaped"] or text)
    if around:
        raise error(around[-1][0], "'[' is never closed by a ']'")
    return parts


def _fields(parts: Iterable[_Part]) -> Iterator[_Field]:
    for part in parts:
        if isinstance(part, _Field):
            yield part
        elif isinstance(part, _Clause):
            yield from _fields(part.parts)


def _reduce(
    parts: Sequence[_Part], values: Mapping[str, Value], later: frozenset[str]
) -> tuple[list[_Part], bool] | _Field:
    """What is left when values are filled in, and whether one is in it; or a field without value.

    Of `later` fields are left, and clauses that may still be left out because of them.
    """
    left: list[_Part] = []
    has_value = False
    for part in parts:
        if isinstance(part, str) or (isinstance(part, _Field) and part.name in later):
            left.append(part)
        elif isinstance(part, _Field):
            text = text_of(values.get(part.name))
            if not text:
                return part
            left.append(text)
            has_value = True
        else:
            inner = _reduce(part.parts, values, later)
            if isinstance(inner, _Field):
                continue
            waits = any(isinstance(one, _Field) for one in inner[0])
            if inner[1] and not waits:
                left += inner[0]
                has_value = True
            elif waits or any(isinstance(one, _Clause) for one in inner[0]):
                left.append(_Clause(tuple(inner[0])))
    return left, has_value


def _source(parts: Iterable[_Part]) -> str:
    """The format string of some parts."""
    texts = []
    for part in parts:
        if isinstance(part, _Field):
            texts.append(f"{{{part.name}}}")
        elif isinstance(part, _Clause):
            texts.append(f"[{_source(part.parts)}]")
        else:
            texts.append(re.sub(r"[\[\]{}\\]", r"\\\g<0>", part))
    return "".join(texts)


# Renders to no text.
NOTHING = Template.parse("")
