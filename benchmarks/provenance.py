"""What made a figure: the command, the commit and the hardware, without host names or local paths.

Standard library only: the baselines' environments import this file too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Libraries whose version can change a measured figure.
_LIBRARIES = (
    "jax",
    "flax",
    "optax",
    "libtpu",
    "seqio",
    "tensorflow",
    "torch",
    "recbole",
    "numpy",
    "scipy",
    "scikit-learn",
)


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware_description() -> str:
    """Processor, cores, memory, system and library versions; no host name, user or path."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found.group(1).strip() if found else model
    model = re.sub(r"\((R|TM)\)|\s+CPU\b|\s+Processor\b", "", model)
    model = re.sub(r"\s+", " ", model).strip()
    cores = usable_cores()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{model}, {cores} core{'s' * (cores != 1)}, {memory:.0f} GiB; "
        f"{platform.system()} {platform.machine()}; {versions(_LIBRARIES)}"
    )


def versions(libraries: Iterable[str]) -> str:
    """Versions of Python and of those libraries that are installed."""
    found = [f"Python {platform.python_version()}"]
    for library in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{library} {importlib.metadata.version(library)}")
    return ", ".join(found)


def current_commit() -> str:
    """The commit the code stands at, with `-dirty` when files under version control differ.

    Result files and what is rendered from them do not count: a study writes them as it goes.
    `uncommitted` before the first commit, `unknown` outside a repository.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("rev-parse", "--git-dir") is None:
        return "unknown"
    head = git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return "uncommitted"
    changed = git(
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!benchmarks/results",
        ":!docs",
    )
    return f"{head}-dirty" if changed else head


def current_command() -> str:
    """The command line of this process, without paths that exist on this machine only."""
    arguments = list(sys.orig_argv)
    words = ["python" if re.match(r"python[\d.]*$", Path(arguments[0]).name) else arguments[0]]
    words += arguments[1:]
    return shlex.join(portable(word) for word in words)


def portable(text: str) -> str:
    """Writes absolute paths in `text` relative to the repository, or as their last part alone."""

    def shorten(match: re.Match[str]) -> str:
        path = Path(match.group())
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name

    # Not within a relative path or an address such as gs://bucket/folder.
    return re.sub(r"(?<![\w.:/~])/[^\s'\",;()\[\]]+", shorten, text)
