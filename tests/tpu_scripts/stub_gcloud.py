"""Stands in for `gcloud`: records every call and plays a Google Cloud of folders.

`$STUB` is the world, which the test prepares and reads:

    calls.jsonl      argv of every call, and the host it came from ('' for the user's machine)
    states.json      what `describe` answers next; the last one stays. NONE: there is none
    creations.json   the states.json of the first, second, ... resource that is created
    failures.json    [{"words": [...], "times": N, "stderr": TEXT}]: calls with these words fail,
                     with "skip": N not the first N of them
    health.json      what `describe` says of a slice's hosts; without this file it does not know
    workers          how many hosts a slice has; without this file ssh and scp are only recorded
    hosts/NODE-W/    home of worker W: commands sent by ssh really run there, in bash
    buckets/NAME/    a bucket
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

WORLD = Path(os.environ["STUB"])


def read(name: str, default: Any) -> Any:
    path = WORLD / name
    return json.loads(path.read_text()) if path.exists() else default


def write(name: str, value: Any) -> None:
    (WORLD / name).write_text(json.dumps(value))


def main(argv: list[str]) -> int:
    with (WORLD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({"argv": argv, "host": os.environ.get("STUB_HOST", "")}) + "\n")
    failures = read("failures.json", [])
    for failure in failures:
        if failure["times"] and set(failure["words"]) <= set(argv):
            skipped = failure.get("skip", 0) > 0
            failure["skip" if skipped else "times"] -= 1
            write("failures.json", failures)
            if skipped:
                continue
            sys.exit(failure["stderr"])
    match argv:
        case ["compute", "tpus", "queued-resources", verb, _, *_]:
            {"describe": describe, "create": create, "delete": delete}[verb]()
        case ["compute", "tpus", "tpu-vm", "describe", _, *_]:
            print(f"READY\t{read('health.json', 'HEALTH_UNSPECIFIED')}")
        case ["compute", "tpus", "tpu-vm", "ssh", node, *options]:
            return ssh(node, dict(option.partition("=")[::2] for option in options))
        case ["compute", "tpus", "tpu-vm", "scp", source, target, *_]:
            node, _, name = target.partition(":")
            for home in homes(node):
                shutil.copy(source, home / name)
        case ["storage", "buckets", "describe", address, *_]:
            if not folder(address).is_dir():
                sys.exit(f"ERROR: {address} not found: 404.")
        case ["storage", "rsync", "--recursive", source, target, *_]:
            shutil.copytree(folder(source), folder(target), dirs_exist_ok=True)
        case _:
            sys.exit(f"ERROR: Invalid choice: {argv}")
    return 0


def describe() -> None:
    states = read("states.json", ["NONE"])
    if len(states) > 1:
        write("states.json", states[1:])
    if states[0] == "NONE":
        sys.exit(
            "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such resource"
        )
    print(states[0])


def create() -> None:
    creations = read("creations.json", [])
    write("states.json", creations[0] if creations else ["ACTIVE"])
    write("creations.json", creations[1:])


def delete() -> None:
    for group in WORLD.glob("hosts/*/m6rec-runs/*/group"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(group.read_text()), signal.SIGKILL)
    shutil.rmtree(WORLD / "hosts", ignore_errors=True)
    write("states.json", ["NONE"])


def homes(node: str, worker: str = "all") -> list[Path]:
    found = [WORLD / "hosts" / f"{node}-{index}" for index in range(read("workers", 0))]
    for home in found:
        home.mkdir(parents=True, exist_ok=True)
    return found if worker == "all" else found[int(worker) : int(worker) + 1]


def ssh(node: str, options: dict[str, str]) -> int:
    sent = [
        subprocess.Popen(
            ["bash", "-c", options["--command"]],
            cwd=home,
            env=os.environ
            | {
                "HOME": str(home),
                "STUB_HOST": home.name,
                "PATH": os.environ["STUB_HOST_PATH"],
            },
            stdin=subprocess.DEVNULL,
        )
        for home in homes(node, options["--worker"])
    ]
    return max((process.wait() for process in sent), default=0)


def folder(address: str) -> Path:
    return (
        WORLD / "buckets" / address[len("gs://") :]
        if address.startswith("gs://")
        else Path(address)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
