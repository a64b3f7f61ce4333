"""Docstrings as the API reference needs them: one entry for each argument.

Ours describe alike arguments together, which griffe takes for a name and a type:

    mesh, rules: devices to spread the model over.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^ *(Args|Attributes|Raises|Returns|Yields):$")
_ENTRY = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): ")


def one_entry_each(text: str) -> str:
    """Repeats a description for each of the names in front of it."""
    found: list[str] = []
    lines = text.splitlines()
    inside = False
    for number, line in enumerate(lines):
        section = _SECTION.match(line)
        inside = section[1] in ("Args", "Attributes") if section else inside
        entry = _ENTRY.match(line) if inside else None
        if entry is None:
            found.append(line)
            continue
        rest = line[entry.end() :]
        more = []
        for below in lines[number + 1 :]:
            if not below.startswith(entry["indent"] + " "):
                break
            more.append(below)
        *first, last = entry["names"].split(", ")
        for name in first:
            found += [f"{entry['indent']}{name}: {rest}", *more]
        found.append(f"{entry['indent']}{last}: {rest}")  # what follows belongs to it
    return "\n".join(found)


class OneEntryEach(griffe.Extension):
    """Applies `one_entry_each` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = one_entry_each(obj.docstring.value)
