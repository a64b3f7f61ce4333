"""The wheel ships gin files and tasks, finds them from anywhere, and shadows no other `tasks`."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
sys.path[:0] = [{installed!r}]
sys.path[:] = [p for p in sys.path if p != {root!r}]
from m6rec_jax import configuration, configuration
assert configuration.__file__.startswith({installed!r}), configuration.__file__
print(configuration.find_file("gin_configs/models/mini.gin"))
import tasks
print(list(tasks.__path__) if hasattr(tasks, "__path__") else tasks.__file__)
from m6rec_jax.data.getting import sources
print("movielens-100k" in sources.public_datasets())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, as site-packages would hold it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, cwd: Path) -> list[str]:
    program = PROGRAM.format(installed=str(installed), root=str(ROOT))
    # -I: neither the current directory nor PYTHONPATH, which name the checkout.
    code = f"import sys; sys.path.append({str(cwd)!r})\n" + program
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_is_found_from_any_directory(installed: Path, tmp_path: Path) -> None:
    """And merges with a folder `tasks` of a user's."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.py").write_text("")
    found, paths, knows_movielens = run(installed, tmp_path)
    assert knows_movielens == "True"
    assert found == str(installed / "m6rec_jax" / "gin_configs" / "models" / "mini.gin")
    assert str(tmp_path / "tasks") in paths
    assert str(installed / "tasks") in paths


def test_has_the_servers_page(installed: Path) -> None:
    files = (installed / "m6rec_jax" / "server" / "static").iterdir()
    assert {file.name for file in files} == {"page.html", "page.css", "page.js"}
    shared = (installed / "m6rec_jax" / "pages").iterdir()
    assert {file.name for file in shared} == {"__init__.py", "base.css", "elements.js"}


def test_has_the_model_in_the_box(installed: Path) -> None:
    (file,) = (installed / "m6rec_jax" / "edge_model").iterdir()
    assert file.name == "films.m6rec"
    assert file.stat().st_size <= 3_000_000


def test_a_users_own_tasks_module_wins(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("")
    _, path, _ = run(installed, tmp_path)
    assert path == str(tmp_path / "tasks.py")
