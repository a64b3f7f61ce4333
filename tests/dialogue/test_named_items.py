"""What is told of items that a dialogue has named."""

import pytest

from m6rec_jax.dialogue.state import DialogueState
from tests.dialogue.films import READER

FARGO = "Fargo: crime, drama, by Joel Coen, Ethan Coen"


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        (["Hello"], []),
        (["I liked Fargo"], [f"{FARGO}, with Frances McDormand, from United States, 1996"]),
        # Who asks for a genre or a person reads of these alone; of several turns, of both.
        (["I liked Fargo. A comedy?"], ["Fargo: crime, drama, 1996"]),
        (["I liked Fargo. A comedy?", "by Penny Marshall"], [f"{FARGO}, 1996"]),
        (["I liked Fargo. Nothing for kids"], ["Fargo: crime, drama, 1996"]),
        # Years are no columns.
        (["I liked Alien, but newer", "no horror"], ["Alien: horror, sci-fi, 1979"]),
        # The latest two of which something is known; The Mask has no director.
        (
            ["Fargo and Alien", "Mask, The and Big, by Michael Mann"],
            ["Alien: by Ridley Scott, 1979", "Big: by Penny Marshall, 1988"],
        ),
    ],
)
def test_segments(turns, told):
    state = DialogueState(READER)
    for text in turns:
        state.hear("USER", text)
    last = f"USER: {turns[-1]}"
    assert state.source(None, 2) == ["", *(f"USER: {t}" for t in turns[:-1]), *told, last]
    assert state.source(1, 2, ["young"]) == ["young", *told, last]
    assert state.source(1) == ["", last]
