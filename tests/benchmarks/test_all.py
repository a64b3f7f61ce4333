"""The page of results, made anew by fake studies in a repository of their own."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import all as page_of
from benchmarks import page_plan
from benchmarks.page_plan import PLAN, Study
from benchmarks.provenance import ROOT

# Writes a row of a model, as studies do, in the checkout that it runs in; says what it did.
FAKE = """
import json, pathlib, sys, time
file, model, what = sys.argv[1:4]
path = pathlib.Path("benchmarks/results") / f"{file}.json"
with open("ran.txt", "a") as ran:
    print(model, file=ran)
if what == "wait" and not pathlib.Path("stopped").exists():
    pathlib.Path("stopped").touch()
    time.sleep(60)
if what == "fail":
    sys.exit("no such luck")
found = json.loads(path.read_text())
found["rows"].append({"model": model, "gin_file": None, "config": "fake", "dataset": "d",
    "split": "s", "seed": 0, "metric": "auc", "value": 0.75, "commit": "new",
    "command": f"python -m benchmarks.fake {file} {model}"})
path.write_text(json.dumps(found))
sys.exit(3 * (what == "unmet"))
"""


def study(name: str, what: str = "row", hours: float = 1.0, **changes: object) -> Study:
    own = {"commands": (f"python -m benchmarks.fake page {name} {what}",)}
    own |= {"where": {"model": (name,)}}
    return Study(name, ("page",), core_hours=hours, **(own | changes))  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose page has rows of 'first', of another study and of nobody's."""
    root = tmp_path / "repository"
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "docs").mkdir()
    (root / "benchmarks" / "__init__.py").touch()
    (root / "benchmarks" / "fake.py").write_text(FAKE)
    row = {"gin_file": None, "config": "fake", "dataset": "d", "split": "s", "seed": 0}
    row |= {"metric": "auc", "value": 0.5}
    old = {"command": "python -m benchmarks.fake", "commit": "old"}
    old |= {"hardware": "a processor", "date": "2026-11-01"}
    rows = [
        row | {"model": "first"},
        row | {"model": "first", "seed": 1},
        row | {"model": "other", "command": "python -m benchmarks.other"},
    ]
    path = root / "benchmarks" / "results" / "page.json"
    path.write_text(json.dumps(old | {"rows": rows}))
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    monkeypatch.setattr(page_of, "ROOT", root)
    monkeypatch.setattr(page_plan, "ROOT", root)
    monkeypatch.setattr(page_of, "usable_cores", lambda process=0: 2)
    return root


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch):
    def run(plan: Sequence[Study], *arguments: str) -> int:
        monkeypatch.setattr(page_of, "PLAN", plan)
        return page_of.main(["--output", str(root / "page"), *arguments])

    return run


def models(root: Path) -> list[tuple[str, int, str]]:
    """(model, seed, commit) of the page's rows."""
    found = page_of.read_results(root / "benchmarks" / "results" / "page.json").rows
    return [(row["model"], row["seed"], row["commit"]) for row in found]


def ran(root: Path) -> list[str]:
    path = root / "page" / "tree" / "ran.txt"
    return path.read_text().split() if path.exists() else []


def test_new_rows_take_the_place_of_the_studys_own_and_nothing_runs_twice(root, run, capsys):
    plan = [study("first"), study("second", after=("first",))]
    assert run(plan) == 0
    # The row of a seed that is not made any more is gone, that of another study stays.
    assert models(root) == [("other", 0, "old"), ("first", 0, "new"), ("second", 0, "new")]
    assert "0.7500" in (root / "docs" / "results.md").read_text()
    assert run(plan) == 0
    assert ran(root) == ["first", "second"]
    assert capsys.readouterr().out.count("done before") == 2


def test_studies_run_the_commit_that_the_page_was_begun_with(root, run, capsys):
    fake = root / "benchmarks" / "fake.py"
    fake.write_text("broken, and not committed")
    assert run([study("first"), study("second")], "--only", "first") == 0
    subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-qam", "broken"],
        cwd=root,
        check=True,
    )
    assert run([study("first"), study("second")]) == 0
    assert ran(root) == ["first", "second"]
    assert "(the newest is" in capsys.readouterr().out


def test_the_budget_is_spent_in_order_of_worth(root, run, capsys):
    plan = [
        study("dear", hours=3.0),
        study("first", hours=1.5),
        study("too_much", hours=1.0),
        study("follows", hours=0.1, after=("too_much",)),
        study("cheap", hours=0.4),
    ]
    assert run(plan, "--budget", "2", "--list") == 0
    listed = capsys.readouterr().out
    would = [line.split()[0] for line in listed.splitlines() if "would run" in line]
    assert would == ["first", "cheap"]
    assert not ran(root)
    # Fakes take no time, so that after the first there is room for another.
    assert run(plan, "--budget", "2") == 0
    assert ran(root) == ["first", "too_much", "follows", "cheap"]
    assert re.search(r"dear +0\.0 +3\.0 +left out: 3\.0 core-hours", capsys.readouterr().out)


def test_a_failure_is_told_and_the_rest_goes_on(root, run, capsys):
    plan = [study("bad", "fail"), study("of_bad", after=("bad",)), study("first", "unmet")]
    assert run(plan) == 1
    told = capsys.readouterr().out
    assert "status 1" in told
    assert "no such luck" in told
    assert "left out: bad comes first" in told
    assert ran(root) == ["bad", "first"]
    # A study that says no to what it was to show has measured all the same.
    assert re.search(r"first .* done; not as claimed, see .*/first.log", told)
    assert models(root) == [("other", 0, "old"), ("first", 0, "new")]


def test_what_cannot_be_had_is_skipped_with_its_reason(root, run, capsys):
    plan = [
        study("module", modules=("no_such_module",)),
        study("interpreter", commands=("env/bin/python -m benchmarks.fake",)),
        study("folder", commands=("python -m benchmarks.fake {inspired}",)),
        study("first", after=("folder",)),
    ]
    assert run(plan) == 0
    told = capsys.readouterr().out
    for reason in ("no_such_module is not", "there is no env/bin/python", "--inspired FOLDER was"):
        assert f"skipped: {reason}" in told
    # Its rows stand as they were, which is no reason not to make others.
    assert ran(root) == ["first"]


def test_what_is_timed_wants_the_whole_machine(root, run, capsys, monkeypatch):
    monkeypatch.setattr(page_of, "usable_cores", lambda process=0: 1 + process)
    assert run([study("first", timed=True)]) == 0
    assert "left out: it is timed" in capsys.readouterr().out
    assert not ran(root)


def test_a_killed_run_goes_on_where_it_was(root, run):
    two = ("python -m benchmarks.fake page first row", "python -m benchmarks.fake page slow wait")
    plan = [study("slow", commands=two, where={})]
    script = (
        "import sys; from benchmarks import all as a, page_plan as p; from pathlib import Path\n"
        f"a.ROOT = p.ROOT = Path({str(root)!r})\n"
        f"a.PLAN = [p.Study('slow', ('page',), {two!r}, 1.0)]\n"
        f"sys.exit(a.main(['--output', {str(root / 'page')!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    marker = root / "page" / "tree" / "stopped"
    until = time.monotonic() + 30
    while not marker.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped in the middle" in told
    # Nothing of a study is on the page before all of it is.
    assert models(root) == [("first", 0, "old"), ("first", 1, "old"), ("other", 0, "old")]
    assert run(plan) == 0
    assert ran(root) == ["first", "slow", "slow"]
    assert models(root) == [("other", 0, "old"), ("first", 0, "new"), ("slow", 0, "new")]


def test_two_commands_do_not_make_the_same_study(root, run, monkeypatch):
    plan = [study("first"), study("second")]
    page = page_of.Page(root / "page", {}, 1)
    other = contextlib.ExitStack()
    sleep, waited = time.sleep, list[float]()

    def release(seconds: float) -> None:
        if seconds == page_of.PERIOD:
            waited.append(seconds)
            other.close()
        else:  # of processes that are waited for
            sleep(seconds)

    monkeypatch.setattr(page_of.time, "sleep", release)
    with other:
        assert other.enter_context(page.taken(plan[0])) is not None
        assert run(plan) == 0
    assert ran(root) == ["second", "first"]
    assert len(waited) == 1


def test_every_module_that_writes_rows_is_planned() -> None:
    folder = ROOT / "benchmarks"
    writing = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if ".venv" not in path.parts and re.search(r"\badd_rows\(", path.read_text())
    } - {"results_file", "all"}
    planned = set().union(*(study.measured_by for study in PLAN))
    assert writing <= planned
    names = [study.name for study in PLAN]
    assert len(set(names)) == len(names)
    for place, one in enumerate(PLAN):
        assert set(one.after) <= set(names[:place]), one.name
        for name in one.results:
            assert (folder / "results" / f"{name}.md").exists()
        # What publishes the rows of a module and a file leaves those of others alone.
        for other in PLAN[:place]:
            if set(one.results) & set(other.results) and one.measured_by & other.measured_by:
                assert one.where != other.where, (one.name, other.name)
                assert one.where, one.name
                assert other.where, other.name
