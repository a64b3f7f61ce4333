"""Preprocessors: rows equal those of text.rows, token by token."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import seqio
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline import preprocessors, row_layout
from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.preprocessors import outcomes_in_words
from m6rec_jax.pipeline.source import PreparedSource, SeqioVocabulary
from m6rec_jax.text import rows
from tests.pipeline import shop_rows

LENGTHS = {"inputs": 64, "targets": 64}


@pytest.fixture(scope="module")
def vocabulary(shop_vocabulary):
    return SeqioVocabulary(lambda: shop_vocabulary)


def by_key(view, key="user_index"):
    return {row[key]: row for row in shop_rows.rows_of("test")[view]}


def run(shop_views, view, preprocessor, lengths=LENGTHS, seed=0, **options):
    source = PreparedSource(lambda: shop_views[view])
    dataset = source.get_dataset("test", shuffle=False)
    with seqio.utils.map_seed_manager(seed):
        dataset = preprocessor(dataset, lengths, task_name="shop", **options)
    found = list(dataset.as_numpy_iterator())
    for row in found:
        assert set(row) == set(TASK_FEATURES)
        for name, feature in TASK_FEATURES.items():
            assert row[name].dtype == feature.dtype
            limit = {"row": 1, **lengths}[feature.axis]
            assert row[name].ndim == 1
            assert len(row[name]) <= limit
        jobs = [row_layout.job_id("shop")] * len(row["decoder_input_tokens"])
        assert row["decoder_job_ids"].tolist() == jobs
    return found


def test_scoring_rows_are_those_of_text(shop_views, shop_vocabulary, vocabulary):
    values = (1, 2, 3, 5)
    plain, classes = (
        run(shop_views, "groups", preprocessors.scoring_rows, vocabulary=vocabulary, **options)
        for options in ({}, {"rating_values": values})
    )
    assert len(plain) == shop_rows.NUM_USERS
    for row, rated in zip(plain, classes, strict=True):
        example = by_key("groups")[int(row["user_ids"][0])]
        expected = rows.source_row(shop_vocabulary, example["history"], 64)
        expected |= rows.packed_candidates(
            shop_vocabulary, example["candidates"], 64, example["labels"], example["item_indices"]
        )
        for name, of_text in expected.items():
            np.testing.assert_array_equal(row[name], of_text)
        assert row["retrieval"].tolist() == row["task_ids"].tolist() == [0]
        at = row["decoder_input_tokens"] == shop_vocabulary.eos_id
        of_rating = [values.index(rating) for rating in example["ratings"]]
        assert rated["decoder_labels"][at].tolist() == of_rating


def test_rating_classes():
    with pytest.raises(DataError, match=r"rating 2\.5 is none of rating_values = \(1\.0, 2\.0\)"):
        preprocessors.rating_classes(np.array([1.0, 2.5]), (1, 2))
    # As they are written: in float32, where some lie above their values and some below.
    tenths = [tenth / 10 for tenth in range(1, 10)]
    classes = preprocessors.rating_classes(np.array(tenths, np.float32), tenths)
    assert classes.tolist() == list(range(9))


def test_retrieval_rows(shop_views, shop_vocabulary, vocabulary):
    frequencies = -np.arange(1, 50, dtype=np.float32)
    data = SimpleNamespace(catalogue=lambda: SimpleNamespace(log_frequency=frequencies))
    rows_of_frequency, plain = (
        run(
            shop_views,
            "next_items",
            preprocessors.retrieval_rows,
            vocabulary=vocabulary,
            data=given,
        )
        for given in (lambda: data, None)
    )
    for row in plain:
        example = by_key("next_items")[int(row["user_ids"][0])]
        assert row["retrieval"].tolist() == [1]
        at = row["decoder_input_tokens"] == shop_vocabulary.eos_id
        assert row["decoder_item_ids"][at].tolist() == example["item_indices"]
        assert not row["decoder_item_log_frequency"].any()
        assert (row["decoder_labels"] == -1).all()
        text = shop_vocabulary.decode(row["decoder_input_tokens"])
        assert text == example["items"][0]
    for row in rows_of_frequency:
        at = row["decoder_input_tokens"] == shop_vocabulary.eos_id
        found = row["decoder_item_log_frequency"]
        assert (found[at] == frequencies[row["decoder_item_ids"][at]]).all()
        assert not found[~at].any()


def test_infilling_is_seeded(shop_views, vocabulary):
    run_once = functools.partial(
        run, shop_views, "documents", preprocessors.infilling_rows, vocabulary=vocabulary
    )
    first, again, other = run_once(seed=1), run_once(seed=1), run_once(seed=2)
    assert all(
        (a["encoder_input_tokens"] == b["encoder_input_tokens"]).all()
        for a, b in zip(first, again, strict=True)
    )
    assert any(
        a["encoder_input_tokens"].tolist() != b["encoder_input_tokens"].tolist()
        for a, b in zip(first, other, strict=True)
    )


def with_labels_of(outcome, spec, words=()):
    """Prepared data whose template gives the words for an event's value."""
    return SimpleNamespace(
        template=lambda: SimpleNamespace(outcome=outcome),
        dataset_spec=spec,
        outcome_words=lambda: words,
    )


def test_outcome_rows(shop_views, shop_vocabulary, vocabulary):
    def outcome(rating):
        return "liked" if rating >= 4 else "disliked"

    found = run(
        shop_views,
        "groups",
        preprocessors.outcome_rows,
        vocabulary=vocabulary,
        data=lambda: with_labels_of(outcome, {"label": {}}),
    )
    words = {outcome(r): shop_vocabulary.encode(outcome(r)) for r in (1, 5)}
    seen = set()
    for row in found:
        for block in range(1, row["decoder_block_ids"].max() + 1):
            at = row["decoder_block_ids"] == block
            inputs, targets = row["decoder_input_tokens"][at], row["decoder_target_tokens"][at]
            weights = row["decoder_loss_weights"][at]
            assert inputs[0] == shop_vocabulary.bos_id
            assert targets[:-1].tolist() == inputs[1:].tolist()
            ending = targets[weights > 0].tolist()
            assert ending in words.values()
            assert targets[-len(ending) :].tolist() == ending
            (end,) = np.flatnonzero(inputs == shop_vocabulary.eos_id)
            assert end == len(inputs) - len(ending)  # the first word is predicted at [EOS]
            seen.add(tuple(ending))
        assert (row["decoder_labels"] == -1).all()
    assert len(seen) == 2


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_outcomes_begin_at_their_thresholds(threshold: float, value: float) -> None:
    """Values are kept as float32, and thresholds are not."""
    step = np.spacing(np.float32(abs(threshold)))
    values = [value, threshold, np.float32(threshold) - 2 * step]
    found = outcomes_in_words(
        np.asarray(values, np.float32), [1, 1, 1], lambda one: str(one >= threshold)
    )
    assert found[0] == str(value >= threshold) or abs(value - threshold) <= step
    assert found[1:] == ["True", "False"]


def test_sampled_negatives_have_an_outcome_where_there_are_words(
    shop_views, shop_vocabulary, vocabulary
):
    words = ("not chosen", "chosen")
    found = run(
        shop_views,
        "groups",
        preprocessors.outcome_rows,
        vocabulary=vocabulary,
        data=lambda: with_labels_of(str, {}, words),
    )
    written = [row["decoder_target_tokens"][row["decoder_loss_weights"] > 0] for row in found]
    told = [
        [token for label in row["labels"] for token in shop_vocabulary.encode(words[label])]
        for row in shop_rows.rows_of("test")["groups"]
    ]
    assert sorted(own.tolist() for own in written) == sorted(told)


def test_word_dropout_is_for_items_in_training(shop_views, vocabulary):
    dropped = functools.partial(preprocessors.retrieval_rows, item_word_dropout=0.5)
    plain = run(shop_views, "next_items", preprocessors.retrieval_rows, vocabulary=vocabulary)
    outside = run(shop_views, "next_items", dropped, vocabulary=vocabulary)
    with row_layout.training_rows():
        inside = run(shop_views, "next_items", dropped, vocabulary=vocabulary)

    def tokens(found, side):
        return [row[f"{side}_input_tokens"].tolist() for row in found]

    assert tokens(outside, "decoder") == tokens(plain, "decoder")
    assert tokens(inside, "encoder") == tokens(plain, "encoder")
    lengths = [sum(map(len, tokens(found, "decoder"))) for found in (plain, inside)]
    assert lengths[1] < lengths[0]
    items = [row["decoder_item_ids"][row["decoder_item_ids"] >= 0].tolist() for row in plain]
    assert items == [
        row["decoder_item_ids"][row["decoder_item_ids"] >= 0].tolist() for row in inside
    ]
    with pytest.raises(ConfigError, match=r"item_word_dropout = 1\.0"):
        run(
            shop_views,
            "next_items",
            functools.partial(preprocessors.retrieval_rows, item_word_dropout=1.0),
            vocabulary=vocabulary,
        )


def test_wrong_view_is_named(shop_views, vocabulary):
    with pytest.raises(ConfigError, match=r"have no column 'history'.*right view"):
        run(shop_views, "documents", preprocessors.scoring_rows, vocabulary=vocabulary)
