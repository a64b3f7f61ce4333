"""Counts the project's lines and files, and compares with another revision.

    python -m benchmarks.stats --since v0.3

Tracked files only: Python in the code folders, Markdown in docs (and README.md).
"""

from __future__ import annotations

import argparse
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence

from benchmarks.provenance import ROOT
from m6rec_jax.errors import DataError

# Group → its folders and files, and the ending that counts there.
GROUPS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "m6rec_jax + tasks": (("m6rec_jax", "tasks"), ".py"),
    "tests": (("tests",), ".py"),
    "benchmarks": (("benchmarks",), ".py"),
    "docs": (("docs", "README.md"), ".md"),
}

Count = tuple[int, int]  # lines, files


def counts(revision: str | None = None) -> dict[str, dict[str, Count]]:
    """Group → folder of at most two names → lines and files.

    Args:
      revision: of git; None: the working tree.

    Raises:
      DataError: no such revision.
    """
    found: dict[str, dict[str, Count]] = {}
    for group, (places, ending) in GROUPS.items():
        lines = _lines(revision, places)
        folders: dict[str, Count] = defaultdict(lambda: (0, 0))
        for path in _files(revision, places):
            if path.endswith(ending):
                folder = "/".join(path.split("/")[:-1][:2]) or path
                before = folders[folder]
                folders[folder] = before[0] + lines.get(path, 0), before[1] + 1
        found[group] = dict(sorted(folders.items()))
    return found


def render(now: Mapping[str, Mapping[str, Count]], then: Mapping[str, Mapping[str, Count]]) -> str:
    """A table of lines and files; with the difference where there is something to compare with."""
    rows = [("", "lines", "", "files", "")]
    for group, folders in now.items():
        before = then.get(group, {})
        rows.append(_row(group, _total(folders), _total(before) if then else None))
        for folder in sorted(folders.keys() | before.keys()):
            there = before.get(folder, (0, 0)) if then else None
            rows.append(_row(f"  {folder}", folders.get(folder, (0, 0)), there))
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{name:{width}}  {lines:>8} {more:>8}  {files:>6} {others:>6}".rstrip()
        for name, lines, more, files, others in rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--since", metavar="REV", help="a git revision to compare with")
    since = parser.parse_args(arguments).since
    try:
        print(render(counts(), {} if since is None else counts(since)))
    except DataError as error:
        parser.error(str(error))


def _row(name: str, now: Count, then: Count | None) -> tuple[str, str, str, str, str]:
    more = ("", "") if then is None else (f"{now[0] - then[0]:+,}", f"{now[1] - then[1]:+,}")
    return name, f"{now[0]:,}", more[0], f"{now[1]:,}", more[1]


def _total(folders: Mapping[str, Count]) -> Count:
    return sum(lines for lines, _ in folders.values()), sum(files for _, files in folders.values())


def _files(revision: str | None, places: Sequence[str]) -> list[str]:
    if revision is None:
        return _git("ls-files", "--", *places)
    return _git("ls-tree", "-r", "--name-only", revision, "--", *places)


def _lines(revision: str | None, places: Sequence[str]) -> dict[str, int]:
    wanted = [] if revision is None else [revision]
    found = (line.rsplit(":", 1) for line in _git("grep", "-c", "-I", "", *wanted, "--", *places))
    start = 0 if revision is None else len(revision) + 1
    return {path[start:]: int(number) for path, number in found}


def _git(*arguments: str) -> list[str]:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
    if result.stderr:
        raise DataError(f"git {' '.join(arguments[:3])}: {result.stderr.strip()}")
    return result.stdout.splitlines()


if __name__ == "__main__":
    main()
