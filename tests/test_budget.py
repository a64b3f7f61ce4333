"""Lines per folder against the budget of `pyproject.toml`, which only falls.

`python -m tests.test_budget` (`make stats`) prints lines, budget and ceiling of every folder;
`--lower` writes today's lines into the budget where they are fewer.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "pyproject.toml"


def budgets() -> dict[str, tuple[int, int]]:
    """Folder -> budget and ceiling."""
    tables = tomllib.loads(PROJECT.read_text())["tool"]["m6rec"]["budget"]
    return {name: (budget, ceiling) for name, (budget, ceiling) in tables.items()}


def tracked_files() -> list[str]:
    """Files that git tracks or would add; without git, as in an unpacked archive, all there are."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if not listed.returncode:
        return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]


def folder_of(name: str) -> str | None:
    """Which entry of the budget a file counts for."""
    parts = name.split("/")
    if name.endswith(".gin"):
        return "gin files"
    if parts[0] == "docs" and name.endswith(".md"):
        return "docs pages"
    if name.endswith(".py"):
        if parts[0] == "m6rec_jax":
            return f"m6rec_jax/{parts[1]}" if len(parts) > 2 else "m6rec_jax"
        return parts[0] if parts[0] in ("tasks", "tests", "benchmarks") else None
    if parts[0] == "m6rec_jax" and name.endswith((".js", ".css", ".html")):
        return "web files"
    return None


def counts() -> dict[str, int]:
    """Lines of Python in each folder; numbers of pages and gin files."""
    found: dict[str, int] = {}
    for name in tracked_files():
        folder = folder_of(name)
        if folder is not None:
            whole = folder in ("gin files", "docs pages")
            lines = 1 if whole else (ROOT / name).read_bytes().count(b"\n")
            found[folder] = found.get(folder, 0) + lines
    return found


def test_no_folder_is_above_its_budget() -> None:
    allowed = budgets()
    above = {
        folder: f"{number} lines, {number - allowed.get(folder, (0, 0))[0]} above its budget"
        for folder, number in counts().items()
        if number > allowed.get(folder, (0, 0))[0]
    }
    assert not above, f"take lines out, of these or of others: {above}"


def test_every_folder_has_a_budget() -> None:
    assert budgets().keys() == counts().keys()


def lowered(text: str, found: dict[str, int]) -> str:
    """The text of `pyproject.toml` with budgets no higher than what is found."""

    def lower(match: re.Match[str]) -> str:
        folder, budget, ceiling = match[1], int(match[2]), match[3]
        return f'"{folder}" = [{min(budget, found.get(folder, budget))}, {ceiling}]'

    return re.sub(r'^"([^"]+)" = \[(\d+), (\d+)\]', lower, text, flags=re.MULTILINE)


def main() -> None:
    found, allowed = counts(), budgets()
    if "--lower" in sys.argv:
        PROJECT.write_text(lowered(PROJECT.read_text(), found))
    print(f"{'folder':24} {'lines':>8} {'budget':>8} {'ceiling':>8}")
    for folder, (budget, ceiling) in allowed.items():
        print(f"{folder:24} {found.get(folder, 0):8,} {budget:8,} {ceiling:8,}")
    package = [name for name in allowed if name.startswith("m6rec_jax") or name == "tasks"]
    columns = (found, *({name: pair[n] for name, pair in allowed.items()} for n in (0, 1)))
    sums = [sum(column[name] for name in package) for column in columns]
    print(f"{'m6rec_jax and tasks':24} {sums[0]:8,} {sums[1]:8,} {sums[2]:8,}")


if __name__ == "__main__":
    main()
