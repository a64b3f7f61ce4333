"""A user's machine whose `gcloud` is a stub, and hosts that are folders on this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"
# Only what a script is expected to need, so that no `gcloud` of this machine is ever called.
SYSTEM_PATH = "/usr/bin:/bin"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@dataclass(frozen=True)
class World:
    """See stub_gcloud.py for the files of `folder`."""

    folder: Path
    home: Path
    bin: Path

    def write(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(json.dumps(value))

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def calls(self, host: str = "") -> list[list[str]]:
        """What was asked of gcloud so far, from the user's machine or from a host."""
        return [call["argv"] for call in self.lines("calls.jsonl") if call["host"] == host]

    def verbs(self) -> list[str]:
        """The calls in short: create, describe, delete, scp, ssh."""
        return [call[3] for call in self.calls() if call[0] == "compute"]

    def received(self) -> list[dict[str, Any]]:
        """What m6rec was given on the hosts, start by start."""
        return self.lines("received.jsonl")

    def sleeps(self) -> list[str]:
        path = self.folder / "sleeps"
        return path.read_text().split() if path.exists() else []

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": f"{self.bin}:{SYSTEM_PATH}",
            "STUB": str(self.folder),
            "STUB_HOST_PATH": f"{self.folder / 'host_bin'}:{SYSTEM_PATH}",
            "M6REC_TPU_PROJECT": "shop",
            "M6REC_TPU_ZONE": "us-east5-a",
            "M6REC_TPU_NAME": "pod",
            **more,
        }

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPTS / f"{script}.sh"), *arguments],
            cwd=cwd or self.home,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def kill_runs(self) -> None:
        """What a reboot does: all processes of the hosts die, the disks stay."""
        for group in self.folder.glob("hosts/*/m6rec-runs/*/group"):
            try:
                os.killpg(int(group.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                continue
