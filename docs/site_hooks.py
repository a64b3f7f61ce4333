"""What the site needs beyond the pages: links to files of the repository that are no pages.

On a forge such links open the file. The site has the pages alone, so there the path is shown as
code; a link to a file that does not exist is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)\s#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""

    def path_of(link: re.Match[str]) -> str:
        path = (ROOT / "docs" / link["target"]).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_path} links to {link['target']}")
        text = link["text"]
        name = str(path.relative_to(ROOT))
        return text if name in text else f"{text} (`{name}`)"

    return _LINK.sub(path_of, markdown)
