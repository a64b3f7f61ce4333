from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.text import phrase_cuts
from m6rec_jax.text.phrase_cuts import PhraseCuts

any_text = st.text(st.characters(exclude_categories=()), max_size=80)


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        (
            "loved L.A. Confidential (1997), film-noir, 12 days ago. The end.",
            [" loved", " L.A. Confidential (1997)", ", film-noir", ", 12 days ago", ". The end",
             "."],
        ),
        ("Mr. Holland's Opus (1995).", [" Mr. Holland's Opus (1995)", "."]),
        ("72% of 1,250 said: great! Done", [" 72% of 1,250 said", ": great", "! Done"]),
        ("Apollo 13 (1995)", [" Apollo 13 (1995)"]),
        ("unloved lovedness", [" unloved lovedness"]),
        ("thought okay Fargo", [" thought okay", " Fargo"]),
    ],
)  # fmt: skip
def test_cuts(text: str, cuts: list[str]) -> None:
    assert PhraseCuts(["loved", "thought okay"], words=False).split(text) == cuts


def test_equal_cuts_are_counted() -> None:
    cuts = PhraseCuts(words=False)
    for text in ("Fargo (1996), crime", "Fargo (1996),  drama", "", " \n"):
        cuts.add(text)
    assert cuts.counts == {" Fargo (1996)": 2, ", crime": 1, ", drama": 1}
    assert (cuts.num_texts, cuts.num_empty) == (4, 2)
    words = PhraseCuts(words=True)
    words.add("Fargo (1996), crime")
    assert words.counts == {" Fargo": 1, " (1996)": 1, ",": 1, " crime": 1}


@given(any_text, st.booleans())
def test_nothing_is_lost(text: str, words: bool) -> None:
    """The cuts put together are the text, as an independent normalisation sees it."""
    cuts = PhraseCuts(["a"], words=words)
    cuts.add(text)
    total = sum(len(cut) * number for cut, number in cuts.counts.items())
    clean = "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000).replace("\x00", "")
    normal = unicodedata.normalize("NFKC", clean)
    letters = sum(c.isascii() and c.isalnum() for c in normal)
    counted = sum(
        number * sum(c.isascii() and c.isalnum() for c in cut)
        for cut, number in cuts.counts.items()
    )
    assert counted == letters
    assert total >= letters
    assert not any(c in cut for cut in cuts.counts for c in "\t\n\x00\u2585\u2581")


def test_what_sentencepiece_would_skip_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = PhraseCuts(words=True)
    cuts.add("x" * 2500)
    cuts.add("nul\x00 block\u2585 lone\ud800")
    assert cuts.num_long == 2
    assert sum(len(cut) * n for cut, n in cuts.counts.items() if "x" in cut) == 2501
    assert max(map(len, cuts.counts)) <= phrase_cuts.MAX_CUT_CHARS
    assert cuts.num_sanitised == 1
    assert {" nul", " block", " lone"} <= set(cuts.counts)


def test_too_many_different_cuts_are_forgotten_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(phrase_cuts, "_MAX_CUTS", 10)
    cuts = PhraseCuts(words=True)
    for _ in range(3):
        cuts.add("often seen")
    cuts.add(" ".join(f"once{i}" for i in range(40)))
    assert len(cuts.counts) == 5
    assert cuts.counts[" often"] == cuts.counts[" seen"] == 3
    assert cuts.num_forgotten == 42 - 5
