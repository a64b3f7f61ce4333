"""Repairs of text as it stands in public files: entities, wrong encodings, stray whitespace."""

from __future__ import annotations

import html
import re

_C1 = re.compile("[\x80-\x9f]")
_WIKI = re.compile(r"\[\[|\]\]|\{\{|\}\}")


def repaired(text: str) -> str:
    """A text as it was meant: HTML entities resolved, encodings put right, single spaces.

    UTF-8 that was read as Latin-1 ("CafÃ©") is read again. Control characters that Windows-1252 has
    letters and quotation marks for become those. Text that is neither stays as it is.
    """
    try:
        # Latin-1 text with an accent is hardly ever valid UTF-8 by chance.
        text = text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        text = _C1.sub(_windows, text)
    return " ".join(html.unescape(text).split())


def without_wiki_marks(text: str) -> str:
    """A text without the brackets of wiki links and templates."""
    return " ".join(_WIKI.sub(" ", text).split())


def _windows(match: re.Match[str]) -> str:
    # Five codes of Windows-1252 mean nothing.
    return match[0].encode("latin-1").decode("cp1252", errors="ignore")
