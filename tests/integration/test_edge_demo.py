"""`m6rec demo --edge` as a user runs it after installing: no data, no network, no tensorflow."""

import re

from tests.integration.commands import python, succeeded

PROGRAM = """
import socket, sys

def refuse(*_):
    raise OSError("this test has no network")

socket.socket.connect = socket.create_connection = refuse
from m6rec_jax.cli import main
status = main(["demo", "--edge", *sys.argv[1:]])
assert not {"tensorflow", "jax"} & set(sys.modules)
sys.exit(status)
"""


def test_films_are_recommended_with_reasons(tmp_path):
    liked = ("Alien", "the thing (1982)", "Haloween")
    out = succeeded(python(tmp_path, PROGRAM, "--liked", *liked, "--count", "70"))
    assert "Trained on film-viewers (CC0-1.0): 5,000 made-up viewers" in out
    assert "It cannot: " in out
    assert "Liked: Alien (1979), The Thing (1982), Halloween (" in out
    found = re.findall(r"^ +(\d+)\. +(\d+)%  (.+? \(\d{4}\))(?:  (.+))?$", out, re.MULTILINE)
    assert [int(rank) for rank, *_ in found] == list(range(1, 71))
    shares = [int(share) for _, share, *_ in found]
    assert shares == sorted(shares, reverse=True)
    of_the_kind = re.compile("(horror|sci-fi|thriller).* again, like")
    assert sum(bool(of_the_kind.search(reason)) for *_, reason in found) >= 3, out
    # What was liked is not recommended.
    assert not {"Alien (1979)", "The Thing (1982)"} & {title for _, _, title, _ in found}
