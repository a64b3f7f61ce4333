"""Renders `docs/results.md`, `docs/speed.md` and more from `benchmarks/results/*.json`.

    python -m benchmarks.render_results            # write it
    python -m benchmarks.render_results --check    # exit with 1 when the file on disk is stale

`NAME.json` may have prose beside it, `NAME.md`: see `results_section`. `summary.md` stands on top,
with `of("NAME")` for the section of a file.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from benchmarks.results_chart import Picture
from benchmarks.results_file import RESULTS, Results, read_results
from benchmarks.results_section import Section, filled_in

OUTPUT = ROOT / "docs" / "results.md"
HEAD = """\
# Results

Every figure of the tables below was measured by a command of this repository and stands in
[`benchmarks/results/`](../benchmarks/results) with that command, the commit (*uncommitted*: there
was none yet; *dirty*: with changes on top), the hardware and the date; this page is rendered from
those files, and a test fails when it is stale. A row, or a line below its table, names the gin file
that made it, or the baseline's configuration.

`a ± b` is the mean and the sample standard deviation over seeds; it says nothing of other test
rows. The standard error of a hit rate p over n users is √(p (1 − p) / n), about .014 for MovieLens'
943 users: smaller differences say nothing.

How fast, how large and how robust all this is has a page of its own, [Speed and size](speed.md).
"""
SPEED_HEAD = """\
# Speed and size

Measured and rendered as the [results](results.md) are; their first lines say how to read both.
"""
WRITTEN = """\
<!-- Written by `make results` from benchmarks/results/. Change what is there, not this file. -->
"""


def render(results_folder: Path, output: Path) -> tuple[dict[Path, str], dict[Path, Picture]]:
    """Renders all result files of a folder.

    Args:
      results_folder: where the `.json` files and their prose lie.
      output: where the page of results will lie; other pages lie beside it, pictures in `images/`.
        The pages of results and of speed have several sections, other ones one.

    Returns:
      The pages and the pictures, by path.

    Raises:
      DataError: a result file or its prose is wrong.
    """
    sections = []
    foundations = read_results(results_folder / "foundation.json").foundations
    for path in sorted(results_folder.glob("*.json")):
        prose = path.with_suffix(".md")
        text = prose.read_text(encoding="utf-8") if prose.exists() else None
        images = output.parent / "images"
        sections.append(Section(read_results(path), text, images, foundations))
    sections.sort(key=lambda section: (section.order, section.results.name))
    sections = [section for section in sections if section.results.rows]
    heads = {
        output: HEAD + _summary(results_folder, sections),
        output.with_name("speed.md"): SPEED_HEAD,
    }
    parts: dict[Path, list[str]] = {output: [heads[output]]}
    for section in sections:
        path, text = output.with_name(section.page or output.name), section.render()
        if path in heads:
            # The page has a title; a section's headings move down one level.
            text = re.sub(r"^(#{1,5}) ", r"#\1 ", text, flags=re.MULTILINE)
            parts.setdefault(path, [heads[path]]).append(text)
        else:
            parts[path] = [text]
    pages = {path: WRITTEN + "\n".join(texts) for path, texts in parts.items()}
    pictures: dict[Path, Picture] = {}
    for section in sections:
        pictures |= section.pictures
    return pages, pictures


def _summary(folder: Path, sections: Sequence[Section]) -> str:
    """What stands on top of all sections; empty where there is no summary.md."""
    path = folder / "summary.md"
    if not path.exists():
        return ""
    by_name = {section.results.name: section for section in sections}

    def of(name: str) -> Section:
        return by_name.get(name) or Section(Results(name, ()), None, folder)

    return f"\n{filled_in(path.read_text(encoding='utf-8'), path.name, of=of)}\n"


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when something is stale, 2 when a result file is wrong."""
    parser = argparse.ArgumentParser(description="Render docs/results.md from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the page to write")
    options = parser.parse_args(arguments)
    pages, pictures = render(options.results, options.output)
    if options.check:
        return _check(pages, pictures)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for path, page in pages.items():
        path.write_text(page, encoding="utf-8")
    for path, picture in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(picture.svg(), encoding="utf-8")
    print(f"wrote {', '.join(path.name for path in pages)} and {len(pictures)} pictures")
    return 0


def _check(pages: dict[Path, str], pictures: dict[Path, Picture]) -> int:
    stale = 0
    for output, page in pages.items():
        on_disk = output.read_text(encoding="utf-8") if output.exists() else ""
        if on_disk == page:
            continue
        stale = 1
        print(f"{output.name} is stale; run `make results`. What differs:", file=sys.stderr)
        changes = difflib.unified_diff(
            on_disk.splitlines(), page.splitlines(), "on disk", "rendered", n=0, lineterm=""
        )
        print("\n".join(list(changes)[:40]), file=sys.stderr)
    for path, picture in pictures.items():
        if not path.exists() or picture.mark not in path.read_text(encoding="utf-8"):
            stale = 1
            print(f"{path.name} is missing or stale; run `make results`", file=sys.stderr)
    return stale


if __name__ == "__main__":
    sys.exit(main())
