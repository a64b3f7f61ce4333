"""Pages print what their commands print today; see `page`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.integration.commands import ROOT, SHOP
from tests.integration.page import Command, agrees, commands, follow, gin_files

T5X = "docs/t5x.md"
FOLLOWED = ("t5x.md", "tuning.md")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("loss 0.2041, ...", "loss 0.204096, step 3", True),
        ("loss 0.2041, ...", "loss 0.2141, step 3", False),
        ("step 20", "step 21", False),
        ("... [21] loss=0.25...", "I12 log.py:48] [21] loss=0.2499, x", True),
        ('{"id": "0003", ...}', '{"id": "0005", "p": 0.5}', False),
    ],
)
def test_numbers_are_compared(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


def test_every_program_that_shows_its_output_is_followed() -> None:
    """What m6rec or t5x printed stands in blocks that these tests run, nowhere else."""
    for path in (ROOT / "README.md", ROOT / "tasks" / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        shown = re.findall(r"^\$ (?:m6rec|python) ", text, re.MULTILINE)
        followed = commands(f"docs/{path.name}") if path.name in FOLLOWED else []
        programs = [one for one in followed if one.text.startswith(("m6rec ", "python "))]
        assert len(shown) == len(programs), path


def test_what_pages_show_of_m6rec(tmp_path: Path) -> None:
    """The rest of docs/t5x.md is test_t5x_commands.py's."""
    follow([*commands("docs/tuning.md"), *before_t5x(tmp_path)], tmp_path)


def before_t5x(folder: Path) -> list[Command]:
    """The page's commands before the first of t5x, in a folder with what they read."""
    shutil.copytree(SHOP, folder / "shop")
    for name, text in gin_files(T5X).items():
        (folder / name).write_text(text)
    listed = commands(T5X)
    first = next(index for index, command in enumerate(listed) if command.needs_t5x)
    assert any(command.shows for command in listed[:first])
    return listed[:first]
