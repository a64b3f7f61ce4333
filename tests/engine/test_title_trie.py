"""Titles to items: shared titles, their order, cut titles."""

import numpy as np
import pytest

from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.errors import DataError
from tests.pipeline import shop_rows

TITLES = [*shop_rows.ITEMS, shop_rows.ITEMS[2], "  " + shop_rows.ITEMS[2]]  # indices 2, 12 and 13


@pytest.fixture(scope="module")
def trie(shop_vocabulary):
    return TitleTrie(shop_vocabulary, TITLES)


def test_every_item_is_under_its_title(trie, shop_vocabulary):
    assert len(trie) == 12
    assert trie.num_items == 14
    assert [trie.indices(entry) for entry in range(12)] == [
        [2, 12, 13] if index == 2 else [index] for index in range(12)
    ]
    assert trie.titles == shop_rows.ITEMS
    assert trie.length == 1 + max(len(shop_vocabulary.encode(title)) for title in TITLES)


def test_scores_order_items_that_share_a_title(trie):
    scores = np.zeros((2, 14))
    scores[1, [2, 12, 13]] = [0.1, 0.3, 0.2]

    def of_request(request, items):
        return scores[request, items]

    assert trie.indices(2, of_request, 0) == [2, 12, 13]
    assert trie.indices(2, of_request, 1) == [12, 13, 2]
    assert trie.indices(3, of_request, 1) == [3]


def test_long_titles_are_cut_and_may_then_be_shared(shop_vocabulary):
    titles = ["Film A, comedy", "Film A, comedy drama", "Film B"]
    length = len(shop_vocabulary.encode(titles[0])) + 1
    assert len(TitleTrie(shop_vocabulary, titles)) == 3
    cut = TitleTrie(shop_vocabulary, titles, max_tokens=length)
    assert cut.length == length
    assert [cut.indices(entry) for entry in range(len(cut))] == [[0, 1], [2]]


def test_clear_errors(shop_vocabulary):
    with pytest.raises(DataError, match="item 1 has no title to generate: ' '"):
        TitleTrie(shop_vocabulary, ["Film A", " "])
