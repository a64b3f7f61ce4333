"""Which tokens of a sentence count, against the text that they decode to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.counted_sentences import CountedSentence
from tests.tasks import shop


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return shop.shop_vocabulary(tmp_path_factory.mktemp("v") / "vocabulary.model")


def counted_text(vocab, row, block=1):
    chosen = (row["decoder_loss_weights"] > 0) & (row["decoder_block_ids"] == block)
    return vocab.decode(row["decoder_target_tokens"][chosen])


@pytest.mark.parametrize(
    ("sentence", "counted", "expected"),
    [
        ("{item}", ("candidate",), "Alpha, comedy"),
        ("liked {item} again", ("candidate",), "Alpha, comedy"),
        ("liked {item} again", ("before",), "liked"),
        ("liked {item} again", ("after",), "again"),
        ("{candidate}. liked.", ("after",), ". liked."),
        ("liked {item}", ("before", "candidate", "end"), "liked Alpha, comedy"),
    ],
)
def test_the_right_words_count(vocab, sentence, counted, expected):
    parsed = CountedSentence.parse(sentence, counted)
    row = parsed.lay_out(vocab, ["Alpha, comedy"], 40)
    assert counted_text(vocab, row) == expected
    at_end = row["decoder_target_tokens"] == vocab.eos_id
    assert bool(row["decoder_loss_weights"][at_end].any()) == ("end" in counted)
    # The decoder reads the whole sentence, whatever counts.
    assert vocab.decode(row["decoder_input_tokens"]) == parsed.render("Alpha, comedy")
    assert parsed.as_item == ("{item}" in sentence)


WORDS = st.lists(st.sampled_from(["Alpha", "Beta,", "日本", "é", "x", "ﬁ", "comedy"]), min_size=1)


@settings(max_examples=60)
@given(text=WORDS.map(" ".join), before=WORDS.map(" ".join), after=WORDS.map(" ".join))
def test_parts_are_in_order_and_complete(vocab, text, before, after):
    sentence = CountedSentence.parse(f"{before} {{item}} {after}", ("candidate",))
    ids, parts = sentence.tokens(vocab, text)
    assert ids.tolist() == vocab.encode(sentence.render(text))
    assert (np.diff(parts) >= 0).all()
    assert set(parts.tolist()) == {0, 1, 2}


def test_long_candidates_lose_their_end_and_nothing_else(vocab):
    sentence = CountedSentence.parse("{item}. liked.", ("after",))
    texts = ["Alpha, comedy Beta, drama", "Gamma"]
    row = sentence.lay_out(vocab, texts, 16, [1, 0], [5, 6])
    assert row["num_truncated"].tolist() == [1]
    assert [counted_text(vocab, row, block) for block in (1, 2)] == [". liked.", ". liked."]
    blocks = row["decoder_block_ids"]
    first = vocab.decode(row["decoder_input_tokens"][blocks == 1])
    assert first.startswith("Alpha")
    assert first.endswith(". liked.")
    assert "drama" not in first
    ends = np.flatnonzero(row["decoder_input_tokens"] == vocab.eos_id)
    assert row["decoder_labels"][ends].tolist() == [1, 0]
    assert row["decoder_item_ids"][ends].tolist() == [5, 6]
    assert (row["decoder_loss_weights"][ends] == 0).all()
    with pytest.raises(ConfigError, match="do not fit the target length 4"):
        sentence.lay_out(vocab, texts[:1], 4)
    with pytest.raises(ConfigError, match="2 texts take 20 tokens"):
        sentence.lay_out(vocab, texts[:1] * 2, 19, candidate_length=10)


@pytest.mark.parametrize(
    ("sentence", "counted", "message"),
    [
        ("no field", ("candidate",), "exactly one field"),
        ("{item} {item}", ("candidate",), "exactly one field"),
        ("{title}", ("candidate",), "exactly one field"),
        ("{item}", ("item",), "must name some of before, candidate, after, end"),
        ("{item}", "candidate", "must name some of"),
        ("{item}", (), "must name some of"),
        (" {item}", ("before",), "has no words there"),
    ],
)
def test_sentences_that_make_no_sense(sentence, counted, message):
    with pytest.raises(ConfigError, match=message):
        CountedSentence.parse(sentence, counted)


def test_a_candidate_without_words_cannot_be_counted(vocab):
    sentence = CountedSentence.parse("liked {item} again", ("candidate",))
    with pytest.raises(DataError, match="nothing counts"):
        sentence.lay_out(vocab, [""], 20)
    with pytest.raises(DataError, match="at least one candidate"):
        sentence.lay_out(vocab, [], 20)
