"""The words of English that turns are read by, of `english.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources

_TABLES = tomllib.loads(resources.files(__package__).joinpath("english.toml").read_text("utf-8"))
# Kind → phrases that a turn's meaning depends on.
PHRASES = {kind: phrases.split(",") for kind, phrases in _TABLES["phrases"].items()}
_LISTS = {name: words.split() for name, words in _TABLES["words"].items()}
WORDS = {name: frozenset(words) for name, words in _LISTS.items()}
# A title of these needs its own capitals.
COMMON = frozenset[str]().union(
    *(WORDS[n] for n in ("resumes", "tastes", "fillers", "before_years", "spans", "common"))
)
DECADES = {name: 10 * n for n, name in enumerate(_LISTS["decades"], start=2)}
# From twenty on in tens, which are enough for ages.
NUMBERS = {name: n if n <= 20 else 10 * (n - 18) for n, name in enumerate(_LISTS["numbers"])}
