"""Renders `docs/results.md` and `docs/speed.md` from `benchmarks/results/*.json`.

    python -m benchmarks.render_results            # write them
    python -m benchmarks.render_results --check    # exit with 1 when a file on disk is stale

`NAME.json` may have prose beside it, `NAME.md`, a jinja2 template with `result_tables`' calls. Its
first line is the section's `# Title`; sections stand in the order of the files' names unless a
line `{# order: 10 #}` says otherwise (lower comes first, default 100). With a line
`{# page: speed.md #}` it stands on that page. A result file without prose is on no page.
`summary.md` stands on top, with `of("NAME")` for the calls of a file.

Measured figures come from these calls; what prose says of data, settings and other people's papers
is typed. Commands, commits, hardware and dates of the rows stand in the result file.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from benchmarks.result_tables import Tables
from benchmarks.results_file import RESULTS, read_results
from m6rec_jax.errors import DataError

OUTPUT = ROOT / "docs" / "results.md"
WRITTEN = (
    "<!-- Written by `make results` from benchmarks/results/. "
    "Change what is there, not this file. -->\n"
)
HEADS = {
    "results.md": "# Results\n",
    "speed.md": "# Speed and size\n\nMeasured and rendered as the [results](results.md) are; their "
    "first lines say how to read both.\n",
}


def render(folder: Path) -> dict[str, str]:
    """The pages by file name; raises DataError where a result file or its prose is wrong."""
    tables = {path.stem: Tables(path.stem, read_results(path)) for path in folder.glob("*.json")}
    pages = {name: WRITTEN + head for name, head in HEADS.items()}
    if (summary := folder / "summary.md").exists():

        def of(name: str) -> Tables:
            return tables.get(name) or Tables(name, ())

        pages["results.md"] += f"\n{_filled(summary, of=of)}\n"
    prose = {path: path.read_text("utf-8") for path in folder.glob("*.md") if path.stem in tables}
    for path in sorted(prose, key=lambda path: (_order(prose[path]), path.stem)):
        if not tables[path.stem].rows:
            continue
        text = _filled(path, **tables[path.stem].calls())
        if not text.startswith("# "):
            raise DataError(f"{path.name}: the first line must be '# Title'")
        # The page has a title; a section's headings move down one level.
        text = re.sub(r"^(#{1,5}) ", r"#\1 ", text, flags=re.MULTILINE)
        page = "speed.md" if "{# page: speed.md #}" in prose[path] else "results.md"
        file = f"{path.stem}.json"
        pages[page] += f"\n{text}\n\n*[`{file}`](../benchmarks/results/{file})*\n"
    return pages


def _order(prose: str) -> int:
    order = re.search(r"\{#\s*order:\s*(\d+)\s*#\}", prose)
    return int(order[1]) if order else 100


def _filled(path: Path, **calls: Any) -> str:
    """Prose with its figures, without more than one empty line at a time."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        text = environment.from_string(path.read_text("utf-8")).render(**calls)
    except jinja2.TemplateError as error:
        raise DataError(f"{path.name}: {error}") from error
    return re.sub(r"\n{3,}", "\n\n", text.strip())


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when something is stale, 2 when a result file is wrong."""
    parser = argparse.ArgumentParser(description="Render docs/results.md from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the page of results to write")
    options = parser.parse_args(arguments)
    stale = 0
    for name, page in render(options.results).items():
        path = options.output.with_name(name)
        on_disk = path.read_text("utf-8") if path.exists() else ""
        if options.check and on_disk != page:
            stale = 1
            changes = difflib.unified_diff(
                on_disk.splitlines(), page.splitlines(), n=0, lineterm=""
            )
            print(
                f"{name} is stale; run `make results`:",
                *list(changes)[:40],
                sep="\n",
                file=sys.stderr,
            )
        elif not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, "utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
