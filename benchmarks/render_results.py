"""Renders `docs/results.md` and `docs/speed.md` from `benchmarks/results/*.json`.

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
from benchmarks.results_file import RESULTS, Results, read_results
from benchmarks.results_section import Section, filled_in

OUTPUT = ROOT / "docs" / "results.md"
HEAD = "# Results\n"
SPEED_HEAD = """\
# Speed and size

Measured and rendered as the [results](results.md) are; their first lines say how to read both.
"""
WRITTEN = """\
<!-- Written by `make results` from benchmarks/results/. Change what is there, not this file. -->
"""


def render(results_folder: Path, output: Path) -> dict[Path, str]:
    """Renders all result files of a folder.

    Args:
      results_folder: where the `.json` files and their prose lie.
      output: where the page of results will lie; that of speed lies beside it.

    Returns:
      The pages by path.

    Raises:
      DataError: a result file or its prose is wrong.
    """
    sections = []
    for path in sorted(results_folder.glob("*.json")):
        prose = path.with_suffix(".md")
        if prose.exists():
            sections.append(Section(read_results(path), prose.read_text(encoding="utf-8")))
    sections.sort(key=lambda section: (section.order, section.results.name))
    sections = [section for section in sections if section.results.rows]
    results = [WRITTEN, HEAD, _summary(results_folder, sections)]
    speed = [WRITTEN, SPEED_HEAD]
    for section in sections:
        # The page has a title; a section's headings move down one level.
        text = re.sub(r"^(#{1,5}) ", r"#\1 ", section.render(), flags=re.MULTILINE)
        (speed if section.is_of_speed else results).append("\n" + text)
    return {output: "".join(results), output.with_name("speed.md"): "".join(speed)}


def _summary(folder: Path, sections: Sequence[Section]) -> str:
    """What stands on top of all sections; empty where there is no summary.md."""
    path = folder / "summary.md"
    if not path.exists():
        return ""
    by_name = {section.results.name: section for section in sections}

    def of(name: str) -> Section:
        return by_name.get(name) or Section(Results(name, ()), "")

    return f"\n{filled_in(path.read_text(encoding='utf-8'), path.name, of=of)}\n"


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when something is stale, 2 when a result file is wrong."""
    parser = argparse.ArgumentParser(description="Render docs/results.md from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the page to write")
    options = parser.parse_args(arguments)
    pages = render(options.results, options.output)
    if options.check:
        return _check(pages)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for path, page in pages.items():
        path.write_text(page, encoding="utf-8")
    print(f"wrote {', '.join(path.name for path in pages)}")
    return 0


def _check(pages: dict[Path, str]) -> int:
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
    return stale


if __name__ == "__main__":
    sys.exit(main())
