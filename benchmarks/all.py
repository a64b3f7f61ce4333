"""Makes the page of results anew from one state of the code, in order of what is worth most.

    python -m benchmarks.all --list                   # the plan: what would run, and for how long
    python -m benchmarks.all --budget 20 [--only demo jobs] [--inspired FOLDER] [--amazon FOLDER]

The newest commit is checked out to `runs/page/tree`, where all studies of `page_plan` run, so that
every row is of that commit and every foundation is made once, whatever becomes of this checkout
meanwhile. A study starts without rows of its own and goes on where it was when it is run again.
When it has ended its rows take the place of those that it had on the page, and the page is
rendered. What has been run stands in `runs/page/studies`, what it printed in `runs/page/logs`.
To begin anew, remove `runs/page`.

`--budget` is in core-hours: hours on the clock times the processors that this command may use. A
study that would take more than is left is not started; none is stopped but by you. Studies that
train use one processor better than two, so two of these commands may share them:

    taskset -c 0 python -m benchmarks.all --budget 8 &
    taskset -c 1 python -m benchmarks.all --budget 8

What is timed waits for a command that has the whole machine. Data go where `M6REC_DATA_DIR` says.
The exit status is 1 where a study failed. One that measured other than is claimed did not fail, and
says so.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks import render_results
from benchmarks.command_line import UNMET, errors_told
from benchmarks.locks import locked
from benchmarks.page_plan import PLAN, Study
from benchmarks.provenance import ROOT, usable_cores
from benchmarks.results_file import Row, add_rows, read_results, run_key
from m6rec_jax.errors import DataError, M6RecError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.progress import progress_bar

RESULTS = Path("benchmarks") / "results"
# Core-hours that the plan's tables are bounded to.
BUDGET = 20.0
# Seconds between looks at a study of another command.
PERIOD = 5.0
_TOLD_OF_A_LOG = 2_000


@dataclass
class Record:
    """What is known of a study in this state; a file.

    Attributes:
      commands: how many of its commands have ended well.
      core_hours: that they took, those included that did not end.
      is_unmet: whether a command said that what it measured is not what is claimed.
      is_done: whether its rows are on the page.
    """

    commands: int = 0
    core_hours: float = 0.0
    is_unmet: bool = False
    is_done: bool = False


@dataclass(frozen=True)
class Page:
    """The page that is being made.

    Attributes:
      folder: where all is kept.
      folders: of the user's, by the name that commands have for them.
      cores: that this command may use.
    """

    folder: Path
    folders: Mapping[str, Path]
    cores: int

    @property
    def tree(self) -> Path:
        """The checkout that studies run in."""
        return self.folder / "tree"

    def check_out(self) -> None:
        """Checks the newest commit out, unless a page was begun, and says which one it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            if not self.tree.exists():
                # Forced: a folder that was removed by hand is still registered.
                _git(ROOT, "worktree", "add", "--force", "--detach", str(self.tree), "HEAD")
        ours, newest = (_git(of, "rev-parse", "--short=12", "HEAD") for of in (self.tree, ROOT))
        print(f"the page of {ours}" + f" (the newest is {newest})" * (ours != newest), flush=True)

    def record(self, study: Study) -> Record | None:
        """None: it has not begun."""
        path = self._record_path(study)
        return Record(**json.loads(path.read_text())) if path.exists() else None

    def is_done(self, study: Study) -> bool:
        record = self.record(study)
        return record is not None and record.is_done

    def core_hours_left(self, study: Study) -> float:
        """Of its estimate; of a study that takes longer, nothing."""
        record = self.record(study) or Record()
        return max(study.core_hours - record.core_hours, 0.0)

    def why_not(self, study: Study, budget: float, ready: frozenset[str]) -> str | None:
        """Why a study cannot start; None: it can.

        Args:
          budget: core-hours that are left.
          ready: names of studies that are done, or would be by then.
        """
        if reason := study.missing(self.folders):
            return f"skipped: {reason}"
        if study.timed and self.cores < (whole := usable_cores(1)):
            return f"left out: it is timed and wants all {whole} processors"
        by_name = {other.name: other for other in PLAN}
        for name in study.after:
            # Rows of what cannot be made here stand as they were.
            if name not in ready and by_name[name].missing(self.folders) is None:
                return f"left out: {name} comes first"
        if (needed := self.core_hours_left(study)) > budget:
            return f"left out: {needed:.1f} core-hours, and {max(budget, 0.0):.1f} are left"
        return None

    @contextlib.contextmanager
    def taken(self, study: Study) -> Iterator[IO[str] | None]:
        """Has a study to itself; None: another command has, or what it started lives on."""
        path = self.folder / "locks" / study.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file

    def make(self, study: Study, lock: IO[str]) -> None:
        """Runs what is left of a study's commands and puts its rows on the page.

        Raises:
          M6RecError: a command failed, or made no rows.
        """
        record = self.record(study)
        if record is None:
            self._without_rows(study)
            record = Record()
            self._write(study, record)
        for command in study.commands[record.commands :]:
            status = self._run(study, record, command, lock)
            record.is_unmet |= status == UNMET
            if status not in (0, UNMET):
                raise DataError(f"status {status} of `{command}`; {self._end_of_log(study)}")
            record.commands += 1
            self._write(study, record)
        with locked(self.folder / "publish"):
            self._publish(study)
        record.is_done = True
        self._write(study, record)

    def log_path(self, study: Study) -> Path:
        """What its commands print."""
        return self.folder / "logs" / f"{study.name}.log"

    def _record_path(self, study: Study) -> Path:
        return self.folder / "studies" / f"{study.name}.json"

    def _write(self, study: Study, record: Record) -> None:
        path = self._record_path(study)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(vars(record)) + "\n", durable=True)

    def _run(self, study: Study, record: Record, command: str, lock: IO[str]) -> int:
        """Runs a command to its end, counts what it took, and returns its status."""
        log, started = self.log_path(study), time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            print(f"\n$ {command}", file=output, flush=True)
            process = subprocess.Popen(
                _words(command, self.folders),
                cwd=self.tree,
                env=os.environ | {"PYTHONPATH": str(self.tree), "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # All that it starts is told to end, and whoever outlives this command keeps the
                # study to itself.
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        try:
            return _wait(process, study.name, self.core_hours_left(study) / self.cores, log)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        finally:
            record.core_hours += (time.monotonic() - started) * self.cores / 3600
            self._write(study, record)

    def _end_of_log(self, study: Study) -> str:
        log = self.log_path(study)
        end = log.read_text(encoding="utf-8", errors="replace")[-_TOLD_OF_A_LOG:]
        return f"{log} ends with:\n{end.rstrip()}"

    def _without_rows(self, study: Study) -> None:
        for path in self._results_in(self.tree, study):
            add_rows(path, [], derive=lambda rows: [row for row in rows if not study.owns(row)])

    def _publish(self, study: Study) -> None:
        """Takes a study's rows and pages over from the tree; renders."""
        for theirs, ours in zip(
            self._results_in(self.tree, study), self._results_in(ROOT, study), strict=True
        ):
            rows = [row for row in read_results(theirs).rows if study.owns(row)]
            if not rows:
                raise DataError(f"{study.name} made no rows of {theirs.name}")
            new = {(*run_key(row), row["metric"]) for row in rows}

            def kept(all_rows: Sequence[Row], new: set[Any] = new) -> list[Row]:
                return [
                    row
                    for row in all_rows
                    if not study.owns(row) or (*run_key(row), row["metric"]) in new
                ]

            add_rows(ours, rows, derive=kept)
        for name in study.pages:
            shutil.copyfile(self.tree / name, ROOT / name)
        page = ROOT / "docs" / "results.md"
        if render_results.main(["--results", str(ROOT / RESULTS), "--output", str(page)]):
            raise DataError(f"the rows of {study.name} are there, but the page cannot be rendered")

    @staticmethod
    def _results_in(root: Path, study: Study) -> list[Path]:
        return [root / RESULTS / f"{name}.json" for name in study.results]


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"`{shlex.join(command)}` in {folder} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _words(command: str, folders: Mapping[str, Path]) -> list[str]:
    """A command of the plan as the system takes it."""
    named = {name: shlex.quote(str(folder)) for name, folder in folders.items()}
    first, *rest = shlex.split(command.format(**named))
    if first == "m6rec":
        return [sys.executable, "-m", "m6rec_jax.cli", *rest]
    # Not resolved: a virtual environment is known by where its link lies.
    return [sys.executable if first == "python" else str(ROOT / first), *rest]


def _wait(process: subprocess.Popen[bytes], name: str, hours: float, log: Path) -> int:
    """Waits, with a bar of the seconds that it should take and the last line of its log."""
    with progress_bar(total=round(3600 * hours), desc=name, unit="s") as bar:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(1.0)
            bar.set_postfix_str(_last_line(log)[:80], refresh=False)
            bar.update(1)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4_000))
        text = file.read().decode(errors="replace")
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def list_plan(page: Page, studies: Sequence[Study], budget: float) -> None:
    """Prints what a run would do."""
    done = frozenset(study.name for study in PLAN if page.is_done(study))
    ready, left, total = done, budget, 0.0
    print(f"{'study':<28}{'core-hours':>10}{'sum':>7}")
    for study in studies:
        total += study.core_hours
        told = "done"
        if study.name not in done:
            told = page.why_not(study, left, ready) or "would run"
        if told == "would run":
            left -= page.core_hours_left(study)
            ready |= {study.name}
        print(f"{study.name:<28}{study.core_hours:>10.1f}{total:>7.1f}  {told}")


def run_plan(page: Page, studies: Sequence[Study], budget: float) -> dict[str, str]:
    """Runs studies in order as far as the budget goes; returns what became of each."""
    told: dict[str, str] = {}
    ended: set[str] = set()
    start = {study.name: (page.record(study) or Record()).core_hours for study in studies}
    left, current = budget, None
    try:
        while True:
            is_anothers = False
            for study in studies:
                if study.name in ended:
                    continue
                if page.is_done(study):
                    told[study.name] = "done before"
                    continue
                ready = frozenset(other.name for other in PLAN if page.is_done(other))
                if reason := page.why_not(study, left, ready):
                    told[study.name] = reason
                    continue
                with page.taken(study) as lock:
                    if lock is None or page.is_done(study):
                        is_anothers, told[study.name] = True, "left to another command"
                        continue
                    current = study.name
                    print(f"{current}: {page.log_path(study)}", flush=True)
                    try:
                        page.make(study, lock)
                        told[study.name] = "done"
                    except M6RecError as error:
                        told[study.name] = f"failed: {error}"
                print(f"{current}: {told[study.name]}", flush=True)
                ended.add(study.name)
                record, current = page.record(study) or Record(), None
                left -= record.core_hours - start[study.name]
                break
            else:
                if not is_anothers:
                    return told
                time.sleep(PERIOD)
    except KeyboardInterrupt:
        if current is not None:
            told[current] = "stopped in the middle: the same command goes on with it"
        for study in studies:
            told.setdefault(study.name, "left out: stopped before")
        return told


def summarise(page: Page, studies: Sequence[Study], told: Mapping[str, str]) -> None:
    """Prints what became of each study, and what has to be looked at."""
    print(f"\n{'study':<28}{'took':>6}{'of':>6}  core-hours")
    for study in studies:
        first, *_ = told[study.name].splitlines()
        record = page.record(study) or Record()
        unmet = f"; not as claimed, see {page.log_path(study)}" * record.is_unmet
        print(f"{study.name:<28}{record.core_hours:>6.1f}{study.core_hours:>6.1f}  {first}{unmet}")
    made = [study for study in studies if told[study.name] == "done"]
    if files := sorted({f"{name}.md" for study in made for name in study.results}):
        prose = ", ".join([*files, "summary.md"])
        print(f"\nProse to read again beside its new figures ({RESULTS}): {prose}")


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where a study failed, 2 on an error, 130 when stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="core-hours (default: 20)")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in PLAN], metavar="STUDY")
    parser.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--inspired", type=Path, help="folder of INSPIRED's files")
    parser.add_argument(
        "--amazon", type=Path, help="folder with beauty/ and games/, see benchmarks/amazon.py"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "page")
    options = parser.parse_args(arguments)
    folders = {
        name: folder.resolve()
        for name in ("inspired", "amazon")
        if (folder := getattr(options, name)) is not None
    }
    page = Page(options.output.resolve(), folders, usable_cores())
    studies = [study for study in PLAN if not options.only or study.name in options.only]
    if options.list:
        list_plan(page, studies, options.budget)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page.check_out()
    told = run_plan(page, studies, options.budget)
    summarise(page, studies, told)
    if any(text.startswith(("stopped", "left out: stopped")) for text in told.values()):
        return 130
    return int(any(text.startswith("failed") for text in told.values()))


if __name__ == "__main__":
    sys.exit(main())
