"""Titles to items: cut titles, and what has none."""

import pytest

from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.errors import DataError


def test_long_titles_are_cut_and_may_then_be_shared(shop_vocabulary):
    titles = ["Film A, comedy", "Film A, comedy drama", "Film B"]
    length = len(shop_vocabulary.encode(titles[0])) + 1
    assert len(TitleTrie(shop_vocabulary, titles)) == 3
    cut = TitleTrie(shop_vocabulary, titles, max_tokens=length)
    assert cut.length == length
    assert [cut.indices(entry) for entry in range(len(cut))] in ([[0, 1], [2]], [[2], [0, 1]])


def test_clear_errors(shop_vocabulary):
    with pytest.raises(DataError, match="item 1 has no title to generate: ' '"):
        TitleTrie(shop_vocabulary, ["Film A", " "])
