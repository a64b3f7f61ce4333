"""A contrast is asked in the very rows in which outcomes are trained."""

import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.text.labels import Contrast, with_labels
from m6rec_jax.text.rows import packed_candidates
from tests.tasks import shop

TEXTS = ["Alpha, comedy", "Beta, drama, 3 days ago", "Gamma"]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return shop.shop_vocabulary(tmp_path_factory.mktemp("v") / "vocabulary.model")


@pytest.mark.parametrize("outcomes", [("liked", "disliked"), ("liked Alpha", "liked Beta")])
def test_both_outcomes_are_targets_where_training_has_either(vocab, outcomes):
    contrast = Contrast.of(outcomes)
    _, positive, negative = contrast.tokens(vocab)
    row = contrast.lay_out(vocab, TEXTS, 60, [1, 0, 1], [5, 6, 7])
    for words, token, feature in (
        (outcomes[0], positive, "decoder_target_tokens"),
        (outcomes[1], negative, "decoder_contrast_tokens"),
    ):
        trained = with_labels(vocab, TEXTS, [words] * 3, 60)
        for block in (1, 2, 3):
            asked, learnt = (
                np.flatnonzero(r["decoder_block_ids"] == block) for r in (row, trained)
            )
            # What is read is the beginning of what is read in training.
            inputs = row["decoder_input_tokens"][asked]
            assert trained["decoder_input_tokens"][learnt][: len(asked)].tolist() == inputs.tolist()
            place = len(asked) - 1
            assert trained["decoder_target_tokens"][learnt][place] == token
            assert trained["decoder_loss_weights"][learnt][place] == 1
            assert row[feature][asked][place] == token
            assert np.flatnonzero(row["decoder_loss_weights"][asked]).tolist() == [place]
    ends = np.flatnonzero(row["decoder_labels"] >= 0)
    assert row["decoder_labels"][ends].tolist() == [1, 0, 1]
    assert row["decoder_item_ids"][ends].tolist() == [5, 6, 7]
    assert row["decoder_contrast_tokens"][ends].all()


def test_long_candidates_are_cut_and_outcomes_are_not(vocab):
    contrast = Contrast("liked Alpha", "liked Beta")
    read, *_ = contrast.tokens(vocab)
    length = 3 + len(read)
    row = contrast.lay_out(vocab, TEXTS[:2], 40, candidate_length=length)
    assert np.bincount(row["decoder_block_ids"]).tolist() == [0, length, length]
    assert row["num_truncated"] == 2
    assert row["decoder_input_tokens"][-len(read) :].tolist() == read.tolist()
    assert contrast.num_tokens(vocab, "Gamma") == len(vocab.encode("Gamma")) + 2 + len(read)
    with pytest.raises(ConfigError, match="do not fit target_length"):
        contrast.lay_out(vocab, TEXTS, 8)
    with pytest.raises(ConfigError, match="3 texts take"):
        contrast.lay_out(vocab, TEXTS, 16, candidate_length=10)


def test_what_cannot_be_asked_is_named(vocab):
    with pytest.raises(ConfigError, match="two outcomes are needed"):
        Contrast.of(["bought"])
    with pytest.raises(ConfigError, match="do not differ before one of them ends"):
        Contrast("liked", "liked Alpha").tokens(vocab)
    assert Contrast.of(("a", "b", "c")) == Contrast("a", "c")


def test_a_row_whose_candidates_have_no_outcomes_teaches_nothing(vocab):
    row = with_labels(vocab, TEXTS, [""] * 3, 60)
    read = packed_candidates(vocab, TEXTS, 60)["decoder_input_tokens"]
    np.testing.assert_array_equal(row["decoder_input_tokens"], read)
    assert not row["decoder_loss_weights"].any()
