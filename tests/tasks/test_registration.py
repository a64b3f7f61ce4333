"""`tasks` is a namespace package that a user's own `tasks` may extend or win over."""

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_movielens_registers_its_tasks():
    import seqio

    module = importlib.import_module("tasks.movielens")
    for name in (*module.TEMPORAL, *module.LEAVE_ONE_OUT):
        assert seqio.get_mixture_or_task(name).name == name
    assert "movielens_100k_ctr_ratings" in module.TEMPORAL
    assert "movielens_100k_leave_one_out_retrieval" in module.LEAVE_ONE_OUT


def test_tasks_is_no_package_of_ours(tmp_path):
    assert not (ROOT / "tasks" / "__init__.py").exists()
    for packaged in (False, True):
        own = tmp_path / str(packaged) / "tasks"
        own.mkdir(parents=True)
        (own / "my_shop.py").write_text("VALUE = 1\n")
        if packaged:
            (own / "__init__.py").write_text("")
        code = (
            f"import sys; sys.path[:0] = [{str(own.parent)!r}, {str(ROOT)!r}]\n"
            "import tasks.my_shop, importlib.util\n"
            "assert tasks.my_shop.VALUE == 1\n"
            f"found = importlib.util.find_spec('tasks.movielens') is not None\n"
            # A namespace package merges with ours; a regular one hides it.
            f"assert found == {not packaged}, found\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_data_set_takes_thirty_lines():
    source = (ROOT / "tasks" / "movielens" / "__init__.py").read_text()
    code = [line for line in source.split('"""', 2)[2].splitlines() if line.strip()]
    assert len(code) <= 30
