"""Zero-shot scores against brute force: one forward pass, log-softmax in numpy, by hand."""

import numpy as np
import pytest

from m6rec_jax.engine.candidates.scoring import LikelihoodScorer
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.labels import Contrast
from tests.engine.teacher_forcing import log_probabilities
from tests.pipeline import shop_rows

S, T = 96, 64
EXAMPLES = shop_rows.rows_of("test")["groups"]
HISTORIES = [example["history"] for example in EXAMPLES[:4]]
LABELS = Contrast("liked", "disliked")
TEXTS = [[t for e in EXAMPLES for t in e["candidates"]][: 3 * n] for n in range(4)]


def log_probability(tiny, history, text, read, token):
    """log p(token | history, [BOS] text [EOS] and what is read after it)."""
    vocab = tiny[2]
    inputs = [*vocab.encode(text), vocab.eos_id, *read]
    return log_probabilities(tiny, history, inputs, (S, T))[len(inputs), token]


@pytest.mark.parametrize("outcomes", [("liked", "disliked"), ("Film comedy", "Film drama")])
def test_contrasts_equal_brute_force(tiny, outcomes):
    vocab = tiny[2]
    ids, others = map(vocab.encode, outcomes)
    place = next(i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    scorer = LikelihoodScorer(*tiny, EngineOptions(S, T), Contrast(*outcomes))
    scored = scorer.score_requests(HISTORIES, TEXTS)
    for history, texts, found in zip(HISTORIES, TEXTS, scored, strict=True):
        expected = [
            log_probability(tiny, history, text, ids[:place], ids[place])
            - log_probability(tiny, history, text, ids[:place], others[place])
            for text in texts
        ]
        np.testing.assert_allclose(found, expected, atol=3e-5)


def test_no_head_is_needed(tiny):
    import dataclasses

    model, variables, vocab = tiny
    prompts = dataclasses.replace(model.config.prompts, head="none", num_options=0)
    bare = type(model)(dataclasses.replace(model.config, prompts=prompts))
    found, expected = (
        LikelihoodScorer(*parts, EngineOptions(S, T), LABELS).score_requests(
            HISTORIES[:1], [TEXTS[1]]
        )[0]
        for parts in ((bare, variables, vocab), tiny)
    )
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_bad_arguments_are_named(tiny):
    for buckets in ((3,), S):
        with pytest.raises(ConfigError, match="source_buckets"):
            LikelihoodScorer(*tiny, EngineOptions(S, T, source_buckets=buckets), LABELS)
