"""Titles are found as people write them, and what is not found is told with what is near."""

import pytest

from m6rec_jax.cli import main
from m6rec_jax.edge_demo import TitleFinder, named
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.records import Item

FILMS = [
    ("Alien", 1979),
    ("Aliens", 1986),
    ("The Fly", 1958),
    ("The Fly", 1986),
    ("Amélie", 2001),
    ("Star Wars: Episode IV – A New Hope", 1977),
    ("Singin' in the Rain", 1952),
    ("A", None),
    ("...", 2000),
]
ITEMS = {str(n): Item(str(n), {"title": t, "year": y}) for n, (t, y) in enumerate(FILMS)}


@pytest.fixture(scope="module")
def titles():
    return TitleFinder(ITEMS, {"3": 7, "2": 5})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("alien", "Alien (1979)"),
        ("ALIENS", "Aliens (1986)"),
        ("fly", "The Fly (1986)"),  # the better known one
        ("The Fly (1958)", "The Fly (1958)"),
        ("amelie", "Amélie (2001)"),
        ("Singing in the rain", "Singin' in the Rain (1952)"),
        ("a", "A"),
        ("...", "... (2000)"),
    ],
)
def test_a_title_is_found_in_nearly_any_spelling(titles, written, meant):
    assert named(titles.find(written)) == meant


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("Star Wars", "near: Star Wars: Episode IV – A New Hope"),
        ("Aliens Attack", "near: Aliens (1986)"),
        ("Alien (2003)", "near: Alien (1979)"),
        ("Aliens 2", "near: Aliens (1986)"),
        ("Aliens II", "near: Aliens (1986)"),
        ("zzzz", "'zzzz'"),
        ("?!", "'?!'"),
        ("", "''"),
    ],
)
def test_what_is_not_found_is_told(titles, written, near):
    with pytest.raises(ConfigError) as problem:
        titles.find(written)
    text = str(problem.value)
    assert "the catalogue has no film" in text
    assert near in text


def test_options_of_the_other_demo_are_refused(capsys):
    assert main(["demo", "--liked", "Alien"]) != 0
    assert "--liked is for `m6rec demo` with --edge" in capsys.readouterr().err
    assert main(["demo", "--edge", "--output", "runs/demo"]) != 0
    assert "--output is for `m6rec demo` without --edge" in capsys.readouterr().err
