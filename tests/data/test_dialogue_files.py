"""Readers of INSPIRED's and ReDial's files."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.data.dialogue_files import Dialogue, Turn, read_inspired, read_redial
from m6rec_jax.errors import DataError
from tests.data import dialogue_files as files


def test_inspired(tmp_path):
    first, second = read_inspired(files.write_inspired(tmp_path / "dev.tsv", range(2)))
    fargo, heat, alien, _ = files.FILMS
    assert first == Dialogue(
        "d0",
        (
            Turn("SYSTEM", "Hello. What do you like?"),
            Turn("USER", f"I liked {fargo}", (fargo,)),
            Turn("SYSTEM", f"Then try {heat} or {alien}", (heat, alien)),
            Turn("USER", '"No"'),
            Turn("SYSTEM", f"As you liked {fargo}, see {fargo} again", (fargo,)),
        ),
        {film: film for film in (fargo, heat, alien)},
    )
    assert second.id == "d1"


def test_redial(tmp_path):
    dialogues = [
        files.redial(1),
        # The files have lists for empty objects.
        files.redial(2, movieMentions=[], messages=[{"senderWorkerId": 9, "text": "Hi @11"}]),
        files.redial(3, messages=[]),
        # A film whose title is not known stays a number.
        files.redial(4, movieMentions={"11": None, "111": "Heat (1995)"}),
    ]
    first, second, third = read_redial(files.write_redial(tmp_path / "train.jsonl", dialogues))
    assert first == Dialogue(
        "1",
        (
            Turn("USER", "Hi, I liked Heat (1995) & Fargo (1996)", ("111", "11")),
            Turn("SYSTEM", "See Fargo (1996)! Mail me @12 or at a@b", ("11",)),
        ),
        {"111": "Heat (1995)", "11": "Fargo (1996)"},
    )
    assert second == Dialogue("2", (Turn("SYSTEM", "Hi @11"),), {})
    assert third.turns[0] == Turn("USER", "Hi, I liked Heat (1995) & @11", ("111",))
    assert third.titles == {"111": "Heat (1995)"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("speaker", "who"), "has no column 'speaker'"),
        (lambda text: text.replace("SEEKER", "SYSTEM", 1), "line 4: the speaker is 'SYSTEM'"),
        (lambda text: text.replace("Hello.", "Hel\tlo."), "line 2: 8 columns, .* header has 7"),
    ],
)
def test_broken_rows_of_inspired_are_told(tmp_path, change, message):
    path = files.write_inspired(tmp_path / "dev.tsv", range(1))
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        list(read_inspired(path))


@pytest.mark.parametrize(
    "broken",
    [
        *("{", "[]", "{}", '{"movieMentions": 3}', '{"movieMentions": {"1": 3}, "messages": []}'),
        json.dumps(files.redial(2)).replace("Hi", "\\ud800"),  # half a character
    ],
)
def test_broken_lines_of_redial_are_told(tmp_path, broken):
    path = files.write_redial(tmp_path / "a.jsonl", [files.redial(1)])
    with path.open("a") as file:
        file.write(f"\n{broken}\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 3 is no dialogue of ReDial"):
        list(read_redial(path))


def test_missing_and_foreign_files_are_told(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(read_inspired(tmp_path / "none.tsv"))
    (tmp_path / "b.tsv").write_bytes(b"dialog_id\xff\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        list(read_inspired(tmp_path / "b.tsv"))


@given(st.lists(st.tuples(st.sampled_from([7, 9]), st.text(max_size=20)), max_size=6))
def test_speakers_take_turns_and_nothing_is_lost(tmp_path_factory, said):
    path = tmp_path_factory.mktemp("redial") / "a.jsonl"
    messages = [{"senderWorkerId": who, "text": text} for who, text in said]
    files.write_redial(path, [files.redial(1, messages=messages, movieMentions={})])
    found = list(read_redial(path))
    turns = found[0].turns if found else ()
    assert all(a.speaker != b.speaker for a, b in itertools.pairwise(turns))
    everything = " ".join(text for _, text in said)
    # Elsewhere entities are resolved and wrong encodings put right.
    if everything.isascii() and "&" not in everything:
        assert [word for turn in turns for word in turn.text.split()] == everything.split()
