"""`m6rec t5x.train` and the like: what is pinned."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tests.integration.commands import ROOT, failed, m6rec

PINNED = re.compile(r"(\S+) @ git\+https://github\.com/\S+@[0-9a-f]{40}|([\w-]+)==([\w.]+)")


def pins(name: str) -> list[re.Match[str] | None]:
    lines = (ROOT / name).read_text().splitlines()
    return [PINNED.fullmatch(line) for line in lines if line and not line.startswith("#")]


def test_t5x_and_what_it_imports_are_pinned() -> None:
    """Installed without dependencies, nothing else would keep a version from changing."""
    ours = [pin for pin in pins("requirements-t5x.txt") if pin]
    assert len(ours) == len(pins("requirements-t5x.txt"))
    assert {pin[1] for pin in ours if pin[1]} == {"t5x", "airio", "jestimator"}
    constraints = {pin[2]: pin[3] for pin in pins("constraints.txt") if pin}
    for pin in ours:
        assert pin[3] == constraints.get(pin[2], pin[3]), pin[0]


def test_what_a_user_can_mend_is_status_2(tmp_path: Path) -> None:
    (tmp_path / "run.gin").write_text("no_such.setting = 1\n")
    message = failed(m6rec(tmp_path, "t5x.train", "--gin_file", "run.gin"))
    is_installed = importlib.util.find_spec("t5x") is not None
    assert ("no_such" if is_installed else "requirements-t5x.txt") in message
