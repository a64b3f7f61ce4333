"""Lines and files, counted and compared."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import stats


def test_folders_are_compared_with_a_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(stats, "ROOT", tmp_path)
    folder = tmp_path / "m6rec_jax" / "text" / "deeper"
    folder.mkdir(parents=True)
    (folder / "one.py").write_text("a = 1\n" * 3)
    (folder / "empty.py").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    (folder / "one.py").write_text("a = 1\n" * 5)
    (folder / "notes.md").write_text("not counted here")
    git("add", ".")
    stats.main(["--since", "HEAD"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["m6rec_jax", "+", "tasks", "5", "+2", "2", "+0"] in lines
    assert ["m6rec_jax/text", "5", "+2", "2", "+0"] in lines
    with pytest.raises(SystemExit):
        stats.main(["--since", "nowhere"])
    assert "nowhere" in capsys.readouterr().err
