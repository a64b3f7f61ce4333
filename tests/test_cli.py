"""The command line: what it refuses before anything is run."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import gin
import pytest

from m6rec_jax import cli, configuration
from m6rec_jax.commands import answering, training
from m6rec_jax.commands.settings import look_at_run

ROOT = Path(cli.__file__).parents[1]
WITHOUT_GIN = {
    "data fetch": ["movielens-100k"],
    "data import": ["recbole", "folder", "output"],
    "data check": ["folder"],
    "convert": ["--from", "huggingface:a", "--to", "b"],
    "prompts list": ["bank"],
    "prompts add": ["bank", "--from", "run"],
    "prompts remove": ["bank", "task"],
    "prompts inspect": ["bank", "task"],
    "demo": [],
    "quickstart": ["folder"],
    "doctor": [],
}


@pytest.mark.parametrize("command", WITHOUT_GIN)
def test_settings_that_a_command_would_ignore_are_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: list[str] = []
    name = f"run_{command.replace(' ', '_')}"
    subject = next(module for module in cli._SUBJECTS if hasattr(module, name))
    monkeypatch.setattr(subject, name, lambda args: run.append(command))
    words = [*command.split(), *WITHOUT_GIN[command]]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--gin.BATCH_SIZE=8"])
    assert ended.value.code == cli.EXIT_USER_ERROR
    assert f"m6rec {command} takes no gin settings: --gin.BATCH_SIZE=8" in capsys.readouterr().err
    assert not run
    assert cli.main(words) == 0
    assert run == [command]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["serv"], "serve"),
        (["data", "chekc", "folder"], "check"),
        (["quickstart", "folder", "--minuts", "8"], "--minutes"),
    ],
)
def test_the_nearest_name_is_named(
    words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == cli.EXIT_USER_ERROR
    assert f"did you mean '{nearest}'?" in capsys.readouterr().err


def test_a_port_of_the_surroundings_is_of_the_server_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("AIP_HTTP_PORT", "http")
    assert cli._parser().parse_args(["doctor"]).run
    with pytest.raises(SystemExit) as ended:
        cli._parser().parse_args(["serve", str(tmp_path)])
    assert ended.value.code == cli.EXIT_USER_ERROR
    assert "--port: invalid int value: 'http'" in capsys.readouterr().err


def test_settings_reach_a_command_that_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[str]] = []
    monkeypatch.setattr(training, "run_params", lambda args: found.append(args.gin_bindings))
    assert cli.main(["params", "--gin_file", "a.gin", "--gin.BATCH_SIZE=8"]) == 0
    assert found == [["BATCH_SIZE = 8"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--edge", "--count", "0"], "--count 0: from 1 to 100 films are recommended"),
        (["--edge", "--count", "101"], "--count 101: from 1 to 100 films are recommended"),
        (["--edge", "--seed", "0"], "--seed is for `m6rec demo` without --edge"),
    ],
)
def test_zeros_are_values(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *words]) == cli.EXIT_USER_ERROR
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["data", "import", "recbole", "shop", "gs://bucket/shop"],
        ["demo", "--output", "gs://bucket/demo"],
    ],
)
def test_a_bucket_is_no_local_folder(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == cli.EXIT_USER_ERROR
    assert "gs://bucket/" in (message := capsys.readouterr().err)
    assert "on a local disk only" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["infer", "--requests", "a.jsonl"], "run_infer"),
        (["index", "build"], "run_index_build"),
    ],
)
def test_outputs_may_be_below_home_or_in_a_bucket(
    words: list[str], run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(answering, run, lambda args: found.append(args.output))
    monkeypatch.setenv("HOME", str(tmp_path))
    for output in ("~/out.jsonl", "gs://bucket/out.jsonl"):
        assert cli.main([*words, f"--output={output}"]) == 0
    assert found == [str(tmp_path / "out.jsonl"), "gs://bucket/out.jsonl"]


def test_paths_that_cannot_be_written_are_named_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(
        training, "run_params", lambda args: (tmp_path / "file" / "report").write_text("")
    )
    assert cli.main(["params", "--gin_file", "a.gin"]) == cli.EXIT_USER_ERROR
    message = capsys.readouterr().err
    assert message.startswith("m6rec: ")
    assert "Not a directory" in message
    assert "file/report" in message


def test_a_full_disk_is_told_by_what_gin_calls_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @gin.configurable("fills_the_disk")
    def fills(args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(training, "run_params", fills)
    assert cli.main(["params", "--gin_file", "a.gin"]) == cli.EXIT_USER_ERROR
    message = capsys.readouterr().err
    assert message == "m6rec: [Errno 28] No space left on device: 'metrics.jsonl'\n"


def test_a_database_without_room_needs_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fills(args: object) -> None:
        raise duckdb.IOException("Could not write file: No space left on device")

    monkeypatch.setattr(training, "run_params", fills)
    assert cli.main(["params", "--gin_file", "a.gin"]) == cli.EXIT_USER_ERROR
    assert capsys.readouterr().err.endswith("No space left on device\n")


def test_other_errors_of_the_system_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(training, "run_params", broken)
    assert cli.main(["params", "--gin_file", "a.gin"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("Traceback")
    assert message.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_whoever_reads_may_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: int
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    monkeypatch.setattr(training, "run_params", lambda args: print("a line\n" * lines))
    assert cli.main(["params", "--gin_file", "a.gin"]) == cli.EXIT_NOBODY_READS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "bindings", "limit"),
    [
        ("data/movielens-100k/generation.gin", [], 0),
        ("data/movielens-100k/generation.gin", ["Evaluator.limit = 7"], 7),
        ("data/movielens-100k/generation.gin", ["EVAL_LIMIT = 7"], 7),
    ],
)
def test_a_training_file_is_evaluated_on_all_rows(
    file: str, bindings: list[str], limit: int | None, tmp_path: Path
) -> None:
    """It says how many rows validations read."""
    given = [f"MODEL_DIR = '{tmp_path}'", *bindings]
    training = f"gin_configs/{file}"
    base = [f"gin_configs/{name}.gin" for name in ("models/mini", "tuning/option_adapter")]
    args = argparse.Namespace(gin_file=[*base, training], gin_bindings=given)
    look_at_run(args)
    parsed = configuration.check_config(args.gin_file, args.gin_bindings)
    assert parsed.parameter("Evaluator.limit", None) == limit
    assert parsed.parameter("Evaluator.sample", None) == (None if limit is None else 0)
    assert parsed.parameter("evaluate.batch_size", None) == 64
    # A file of one's own has the last word.
    few = tmp_path / "few.gin"
    few.write_text("Evaluator.limit = 5\nBATCH_SIZE = 8\n")
    args.gin_file, args.gin_bindings = [*base, training, str(few)], given[:1]
    look_at_run(args)
    parsed = configuration.check_config(args.gin_file, args.gin_bindings)
    assert parsed.parameter("Evaluator.limit", None) == 5
    assert parsed.parameter("evaluate.batch_size", None) == 8


@pytest.mark.parametrize(
    ("command", "batch_size"),
    [("eval.evaluate", 64), ("eval.infer", 64), ("calibrate.calibrate", 32)],
)
def test_a_run_is_evaluated_in_batches_of_the_command(
    command: str, batch_size: int, tmp_path: Path
) -> None:
    (tmp_path / "config.gin").write_text(
        "MIXTURE_OR_TASK_NAME = 'a'\nTASK_FEATURE_LENGTHS = {}\nBATCH_SIZE = 4096\n"
    )
    args = argparse.Namespace(gin_file=[], gin_bindings=[f"MODEL_DIR = '{tmp_path}'"])
    file, function = command.split(".")
    look_at_run(args, f"gin_configs/commands/{file}.gin")
    parsed = configuration.check_config(args.gin_file, args.gin_bindings)
    assert parsed.parameter(f"{function}.batch_size", None) == batch_size


# Commands, of which none may import what takes long, and what each of them says.
TOLD_AT_ONCE = {
    "train --gin_file {eval} --gin.MODEL_DRI=runs/a": "did you mean 'MODEL_DIR'?",
    "train --recipe scorin --gin.MODEL_DIR=a": "did you mean 'scoring'?",
    "train --recipe scoring --model mini": "the recipe needs --tuning NAME",
    "train --gin_file {eval} --gin.MODEL_DIR=my run": "a value with spaces stands in quotes",
    "eval": "m6rec eval takes --gin.MODEL_DIR=RUN, whose task it knows",
    "eval --gin_file {eval} --gin.MODEL_DIR=m6rec_jx": "(did you mean 'm6rec_jax'?)",
    "eval --gin.MODEL_DIR=docs": "docs has no config.gin",
    "eval --gin_file evla.gin": "no gin file 'evla.gin'",
    "eval --gin_file {eval} --against dosc": "dosc: nothing is there (did you mean 'docs'?)",
    "calibrate": "m6rec calibrate takes --gin.MODEL_DIR=RUN, whose task it knows",
    "params none": "none: nothing is there",
    "params docs --gin.BATCH_SIZE=8": "counts what this run has, whatever gin says",
    "report none": "none: nothing is there",
    "report docs": "docs has no config.gin",
    "report {run} --gin.MODEL_DRI=a": "did you mean 'MODEL_DIR'?",
    "infer": "m6rec infer takes --gin.MODEL_DIR=RUN, whose task it knows",
    "infer --requests {eval}": "needs --output FILE, too",
    "infer --requests {eval} --output b.jsonl --gin.MODEL_DIR=. --gin.PREPARED=nowhere": "PREPARED "
    "= 'nowhere': nothing is there",
    "infer --requests none.jsonl --output b.jsonl --gin.MODEL_DIR=.": "none.jsonl: nothing is",
    "infer --requests {eval} --output b.jsonl": "--gin.MODEL_DIR=VALUE",
    "index build --output i --gin.MODEL_DIR=. --gin.ITEMS=no.csv": "ITEMS = 'no.csv': nothing",
    "chat --gin.MODEL_DIR=none": "MODEL_DIR = 'none': nothing is there",
    "serve none": "none: nothing is there",
    "serve docs --gin.PREPARED=nowhere": "PREPARED = 'nowhere': nothing is there",
    "serve docs --index dosc": "--index dosc: nothing is there (did you mean 'docs'?)",
    "serve docs --index a=docs --index b=none": "--index none: nothing is there",
    "export none --output a": "none: nothing is there",
    "export docs --output a --gin.MODEL_DRI=a": "did you mean 'MODEL_DIR'?",
    "compress structure {run} --output a --gin.BATCH_SIZ=8": "did you mean 'BATCH_SIZE'?",
    "compress vocabulary docs --size 128 --output a": "docs has no config.gin",
    "convert --from none --to huggingface:a": "--from none: nothing is there",
    "convert --from hugging:none --to a": "unknown format 'hugging'",
    "prompts add bank --from none": "--from none: nothing is there",
    "data import recbole dcos output": "dcos: nothing is there (did you mean 'docs'?)",
    "quickstart none": "none/dataset.json does not exist",
    "quickstart docs": "docs/dataset.json does not exist",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str], str]]:
    """Status, long imports and message of each, in one process: to start it takes most of the time.

    Importing jax or tensorflow takes most of a command's.
    """
    code = """
import contextlib, io, json, sys
from m6rec_jax import cli
found = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = cli.main(command.split())
        except SystemExit as ended:
            status = ended.code
    long = [name for name in ("jax", "tensorflow", "pyarrow", "flax") if name in sys.modules]
    found.append((status, long, said.getvalue()))
print(json.dumps(found))
"""
    run = tmp_path_factory.mktemp("run")
    (run / "config.gin").write_text("MODEL_DIR = 'a'\ntrain.model_dir = %MODEL_DIR\n")
    task = run / "eval.gin"
    task.write_text("MIXTURE_OR_TASK_NAME = 'a'\nTASK_FEATURE_LENGTHS = {}\n")
    files = {"eval": task, "run": run}
    commands = json.dumps([words.format(**files) for words in TOLD_AT_ONCE])
    python = [sys.executable, "-c", code, commands]
    done = subprocess.run(python, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "runs" / "docs").exists()  # the output of a quickstart of docs
    return dict(zip(TOLD_AT_ONCE, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("words", TOLD_AT_ONCE)
def test_what_is_not_there_is_told_before_anything_is_imported(
    words: str, told: dict[str, tuple[int, list[str], str]]
) -> None:
    status, imported, said = told[words]
    assert (status, imported) == (cli.EXIT_USER_ERROR, []), said
    assert TOLD_AT_ONCE[words] in said


@pytest.mark.parametrize(("error", "status"), [("ValueError()", 1), ("M6RecError('wrong')", 2)])
def test_a_command_that_failed_ends_at_once(error: str, status: int) -> None:
    """Though to destroy what its error holds would take forever."""
    code = f"""
import sys, time
from m6rec_jax import cli
from m6rec_jax.commands import starting
from m6rec_jax.errors import M6RecError
class Pipeline:
    def __del__(self):
        time.sleep(100)
def fails(args):
    pipeline = Pipeline()
    print("begun")
    raise {error}
starting.run_doctor = fails
sys.argv = ["m6rec", "doctor"]
sys.exit(cli.main())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=10)
    assert (found.returncode, found.stdout) == (status, "begun\n")
    assert error.partition("(")[0] in found.stderr or "m6rec: wrong" in found.stderr
