"""Scoring: equals the plain forward pass whatever the buckets, batches and packing."""

import dataclasses

import jax
import numpy as np
import pytest

from m6rec_jax.engine.candidates.rows import pack_texts, text_ends
from m6rec_jax.engine.candidates.scoring import Scorer, chosen_classes, class_log_probabilities
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.programs.runtime import in_buckets, length_buckets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError
from m6rec_jax.text import rows
from tests.engine.programs import num_traced
from tests.engine.teacher_forcing import batch_of_one
from tests.pipeline import shop_rows

S, T = 96, 64
FORWARD = jax.jit(class_log_probabilities, static_argnums=0)
LIKED = TaskSettings(positive_classes=(1, 2))
EXAMPLES = shop_rows.rows_of("test")["groups"]


@pytest.fixture(scope="module")
def scorer(tiny):
    return Scorer(*tiny, EngineOptions(S, T, tasks={"": LIKED}))


def one_by_one(tiny, history, candidate):
    """Probability of classes 1 and 2 by a forward pass over one history and one candidate."""
    model, variables, vocabulary = tiny
    row = rows.source_row(vocabulary, history, S)
    row |= rows.packed_candidates(vocabulary, [candidate], T)
    end = len(row["decoder_input_tokens"]) - 1
    logp = FORWARD(model, variables, batch_of_one(row, S, T))
    return float(np.exp(logp[0, end, 1:]).sum())


def test_requests_equal_one_forward_pass_each(tiny, scorer):
    histories = [example["history"] for example in EXAMPLES[:6]]
    # Different numbers of candidates, up to more than one decoder row holds, and none at all.
    texts = [[t for e in EXAMPLES for t in e["candidates"]][: 3 * n] for n in range(6)]
    scored = scorer.score_requests(histories, texts)
    assert [len(s) for s in scored] == [len(t) for t in texts]
    for history, candidates, probabilities in zip(histories, texts, scored, strict=True):
        expected = [one_by_one(tiny, history, text) for text in candidates[:4]]
        np.testing.assert_allclose(probabilities[:4], expected, atol=2e-6)
        assert probabilities.dtype == np.float32


def test_warm_scorer_compiles_nothing_more(tiny):
    buckets = {"source_buckets": (S,), "target_buckets": (32, T)}
    scorer = Scorer(*tiny, EngineOptions(S, T, batch_sizes=(2,), **buckets))
    scorer.warm_up()
    traced = num_traced()
    scorer.score_requests([e["history"] for e in EXAMPLES], [e["candidates"] for e in EXAMPLES])
    scorer.score_requests([EXAMPLES[0]["history"]], [["Film A", "Film B"]])
    assert num_traced() == traced


def test_sampled_negatives_are_corrected(tiny, scorer):
    sampled = dataclasses.replace(LIKED, sampling_rate=0.1)
    corrected = Scorer(*tiny, EngineOptions(S, T, tasks={"": sampled}))
    history, texts = [EXAMPLES[0]["history"]], [EXAMPLES[0]["candidates"]]
    plain = scorer.score_requests(history, texts)[0]
    np.testing.assert_allclose(
        corrected.score_requests(history, texts)[0], plain / (plain + (1 - plain) * 10), rtol=1e-5
    )


def test_clear_errors(tiny, scorer):
    model, variables, vocabulary = tiny
    with pytest.raises(ConfigError, match=r"positive_classes = \(3,\) must be some"):
        chosen_classes((3,), 3)
    with pytest.raises(ConfigError, match="must end with the length 96"):
        Scorer(*tiny, EngineOptions(S, T, source_buckets=(32,)))
    config = model.config.replace(prompts=type(model.config.prompts)(num_prompts=2, head="none"))
    with pytest.raises(ConfigError, match=r"the model \(tasks: none\) has no classes"):
        Scorer(type(model)(config), variables, vocabulary, EngineOptions(S, T))


def test_packing_wastes_little_and_cuts_only_what_is_too_long(tiny):
    vocabulary = tiny[2]
    texts = [shop_rows.ITEMS[i % 12] for i in range(50)] + [" ".join(shop_rows.ITEMS)]
    packed = pack_texts(vocabulary, texts, 48, 40)
    assert sorted(i for indices in packed.indices for i in indices) == list(range(51))
    found = {}
    for row, indices in zip(packed.rows, packed.indices, strict=True):
        ends = text_ends(row["decoder_block_ids"])
        assert (row["decoder_input_tokens"][ends] == vocabulary.eos_id).all()
        starts = [0, *(ends[:-1] + 1)]
        for index, start, end in zip(indices, starts, ends, strict=True):
            found[index] = row["decoder_input_tokens"][start + 1 : end].tolist()
    for index, text in enumerate(texts):
        assert found[index] == vocabulary.encode(text)[:38]
    tokens = sum(len(ids) + 2 for ids in found.values())
    assert len(packed.rows) <= 2 * -(-tokens // 48)


def test_buckets():
    assert length_buckets(256) == (64, 128, 256)
    assert length_buckets(100) == (32, 56, 100)
    assert length_buckets(8) == (8,)
    batches = in_buckets([5, 9, 16, 1, 2], (8, 16), (1, 2))
    assert batches == [(8, 2, [0, 3]), (8, 1, [4]), (16, 2, [1, 2])]
