"""A linear model of texts for items that nobody acted on yet."""

import numpy as np

from benchmarks.baselines.contents import factor_scores


def test_words_tell_whom_an_unseen_item_is_for() -> None:
    texts = [f"{kind} number{n % 2}" for kind in ("horror", "romance") for n in range(6)]
    likes_horror = np.arange(40) % 2 == 0
    train = np.repeat(np.array([[1.0] * 6 + [0.0] * 6]), 40, axis=0)
    train[~likes_horror] = train[~likes_horror, ::-1]
    known = np.ones(12, bool)
    known[[0, 11]] = False
    train[:, ~known] = 0.0
    scores = factor_scores(texts, train, known, rank=2, penalty=0.1)
    assert (scores[likes_horror, 0] > scores[likes_horror, 11]).all()
    assert (scores[~likes_horror, 0] < scores[~likes_horror, 11]).all()
    # What an unseen item is given does not come from its own column: factors hold it exactly.
    train[:, 0] = 1.0
    again = factor_scores(texts, train, known, rank=2, penalty=0.1)
    np.testing.assert_allclose(scores, again, atol=1e-9)
