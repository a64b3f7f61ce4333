"""`m6rec demo --edge` as a user runs it after installing: no data, no network, no tensorflow."""

import os
import re
import subprocess
import sys

from m6rec_jax.edge_demo import MODEL
from tests.integration.commands import ROOT

PROGRAM = """
import socket, sys

def refuse(*_):
    raise OSError("this test has no network")

socket.socket.connect = socket.create_connection = refuse
from m6rec_jax.cli import main
status = main(["demo", "--edge", *sys.argv[1:]])
assert "tensorflow" not in sys.modules
sys.exit(status)
"""


def demo(folder, *arguments):
    environment = {"M6REC_DATA_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_films_are_recommended_with_reasons(tmp_path):
    assert MODEL.stat().st_size <= 3_000_000
    run = demo(tmp_path, "--liked", "Alien", "the thing (1982)", "Haloween", "--count", "5")
    assert run.returncode == 0, run.stderr
    assert "Trained on film-viewers (CC0-1.0): 5,000 made-up viewers" in run.stdout
    assert "It cannot: " in run.stdout
    assert "Liked: Alien (1979), The Thing (1982), Halloween (" in run.stdout
    found = re.findall(r"^ +(\d)\. +(\d+)%  (.+? \(\d{4}\))(?:  (.+))?$", run.stdout, re.MULTILINE)
    assert [rank for rank, *_ in found] == list("12345")
    shares = [int(share) for _, share, *_ in found]
    assert shares == sorted(shares, reverse=True)
    of_the_kind = re.compile("(horror|sci-fi|thriller).* again, like")
    assert sum(bool(of_the_kind.search(reason)) for *_, reason in found) >= 3, run.stdout
    # What was liked is not recommended.
    assert not {"Alien (1979)", "The Thing (1982)"} & {title for _, _, title, _ in found}
    # The vectors of the catalogue are there now.
    run = demo(tmp_path, "--liked", "No Film Has This Name")
    assert run.returncode != 0
    assert "the catalogue has no film 'No Film Has This Name'" in run.stderr
