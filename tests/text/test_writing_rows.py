"""Texts to write as rows: the beginning is given, the rest counts."""

import pytest

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.rows import generation_row
from m6rec_jax.text.writing_rows import writing_row


def test_only_what_follows_the_prefix_counts(vocab):
    row = writing_row(vocab, ["24 year old writer"], "liked", "Fargo (1996)", 16, 16, text_index=7)
    given, words = vocab.encode("liked"), vocab.encode("Fargo (1996)")
    assert row["decoder_input_tokens"].tolist() == [0, *given, *words, 1]
    assert row["decoder_target_tokens"].tolist() == [*given, *words, 1, 0]
    weights = [0] * len(given) + [1] * (len(words) + 1) + [0]
    assert row["decoder_loss_weights"].tolist() == weights
    assert row["decoder_item_ids"].tolist() == [-1] * (len(weights) - 1) + [7]
    assert row["num_truncated"].tolist() == [0]


def test_without_a_prefix_it_is_a_generation_row(vocab):
    arguments = (vocab, ["24 year old writer"], "liked Fargo (1996)", 16, 16)
    expected = generation_row(*arguments)
    found = writing_row(vocab, arguments[1], "", *arguments[2:])
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in expected.items()
    }


def test_a_cut_text_is_not_taught_to_end(vocab):
    given, words = vocab.encode("liked"), vocab.encode("Fargo (1996) disliked")
    assert len(words) > 1
    row = writing_row(vocab, [], "liked", "Fargo (1996) disliked", 16, len(given) + 3)
    assert row["decoder_target_tokens"].tolist() == [*given, words[0], 1, 0]
    assert row["decoder_loss_weights"].tolist() == [0] * len(given) + [1, 0, 0]
    assert row["num_truncated"].tolist() == [1]


def test_what_cannot_be_written_is_told(vocab):
    with pytest.raises(ConfigError, match="the prefix 'liked' has 1 tokens and leaves no room"):
        writing_row(vocab, [], "liked", "Fargo", 16, 3)
    with pytest.raises(DataError, match="no text to write"):
        writing_row(vocab, [], "liked", " ", 16, 16)
