"""Stands in for Python and m6rec on a stubbed host (see stub_gcloud.py).

It makes environments that hold itself. As `m6rec train` and the like it appends what it was given
to `$STUB/received.jsonl` and does what `$STUB/behaviours.json` says: an entry for each start on
a host, by host or for all of them ('*'). 'exit N' leaves with this status, 'wait' waits for
SIGTERM and leaves as m6rec does, 'hang' leaves at no signal but SIGKILL.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

WORLD = Path(os.environ["STUB"])
HOST = os.environ["STUB_HOST"]
RUNS = ("train", "eval", "infer", "t5x.train", "t5x.eval", "t5x.infer")


def main(argv: list[str]) -> int:
    match argv:
        case ["-c", _]:
            print("3.11")
        case ["-m", "venv", folder]:
            (Path(folder) / "bin").mkdir(parents=True)
            for name in ("python", "m6rec"):
                shutil.copy(sys.argv[0], Path(folder) / "bin" / name)
        case ["-m", "uv", "venv", "--quiet", "--seed", "--python", "3.11", folder]:
            return main(["-m", "venv", folder])
        case ["-m", "pip", *_]:
            note("pip.jsonl", argv)
        case ["--version"]:
            print("m6rec_jax 0.0")
        case [command, "--gin.join_processes.cluster=tpu", *rest] if command in RUNS:
            return play([command, *rest])
        case ["serve", *_]:
            return play(argv)
        case _:
            sys.exit(f"unexpected: {argv}")
    return 0


def note(name: str, argv: list[str]) -> None:
    with (WORLD / name).open("a") as file:
        environment = {
            key: os.environ.get(key) for key in ("M6REC_DATA_DIR", "EXTRA", "TPU_PROCESS_BOUNDS")
        }
        file.write(json.dumps({"host": HOST, "argv": argv, "environment": environment}) + "\n")


def play(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path = WORLD / "received.jsonl"
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    count = sum(entry["host"] == HOST for entry in earlier)
    behaviours = json.loads((WORLD / "behaviours.json").read_text())
    mine = behaviours.get(HOST, behaviours.get("*"))
    what = mine[min(count, len(mine) - 1)]
    if what == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    note("received.jsonl", arguments)
    print("step 1", flush=True)
    while what in ("wait", "hang"):
        time.sleep(0.05)
    return int(what.split()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
