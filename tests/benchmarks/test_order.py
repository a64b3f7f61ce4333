"""How much of a ranking stayed."""

import numpy as np
import pytest

from benchmarks.order import shuffled, stayed


def test_what_stays_of_rankings() -> None:
    scores = np.linspace(1.0, 0.0, 20)
    assert stayed([scores], [scores / 3]) == {"overlap@10": 1.0, "kendalls_tau": 1.0}
    # Turned round the tens change places; half of the lists stayed.
    found = stayed([scores, scores], [scores[::-1], scores])
    assert found == {"overlap@10": pytest.approx(0.5), "kendalls_tau": pytest.approx(0.0)}


def test_a_shuffled_history_has_the_behaviours_that_fit(shop_vocabulary) -> None:
    history = ["profile", *(f"liked Film {letter}" for letter in "ABCDEFGH"), "context"]
    lengths = [len(shop_vocabulary.encode_array(segment)) for segment in history]
    room = 2 + lengths[0] + sum(lengths[-4:])  # three behaviours and the context
    found = shuffled(history, shop_vocabulary, room, np.random.default_rng(0))
    assert (found[0], found[-1]) == ("profile", "context")
    assert sorted(found[1:-1]) == history[-4:-1] != found[1:-1]
