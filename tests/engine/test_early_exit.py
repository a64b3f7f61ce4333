"""Scoring that leaves the decoder early: each candidate where its own score stands."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from m6rec_jax.engine.candidates.scoring import (
    Scorer,
    exiting_scores,
    positive_probability,
    read_log_probabilities,
)
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.task_settings import NEVER, ExitSettings, TaskSettings
from m6rec_jax.model import M6Rec
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text import rows
from m6rec_jax.text.vocabulary import Vocabulary
from tests.engine.teacher_forcing import batch_of_one
from tests.pipeline import shop_rows

S, T, LAYERS = 96, 64, 5
EXAMPLES = shop_rows.rows_of("test")["groups"]
HISTORIES = [example["history"] for example in EXAMPLES[:4]]
TEXTS = [example["candidates"] for example in EXAMPLES[:4]]
Tiny = tuple[M6Rec, dict[str, Any], Vocabulary]


@pytest.fixture(scope="module")
def deep(tiny: Tiny) -> Tiny:
    model, _, vocabulary = tiny
    model = M6Rec(model.config.replace(num_decoder_layers=LAYERS))
    keys = {"params": jax.random.key(0), "prompts": jax.random.key(1)}
    variables = nn.meta.unbox(jax.jit(model.init)(keys, initial_features()))
    # Options far from zero, so that layers change what is read.
    variables["prompts"]["bank"]["soft_prompts"] *= 20
    return model, variables, vocabulary


def options(exits: ExitSettings | None = None, **changes: Any) -> EngineOptions:
    return EngineOptions(S, T, tasks={"": TaskSettings(exits=exits)}, **changes)


def at_every_exit(deep: Tiny, history: list[str], text: str) -> np.ndarray:
    """Probabilities of class 1, `[exits]`, by one plain forward pass of one candidate."""
    model, variables, vocabulary = deep
    row = rows.source_row(vocabulary, history, S)
    row |= rows.packed_candidates(vocabulary, [text], T)
    end = len(row["decoder_input_tokens"]) - 1
    features = batch_of_one(row, S, T)
    outputs = FORWARD(model, variables, features)
    found = [
        read_log_probabilities(model, variables, hidden, features["task_ids"])
        for hidden in outputs.exits
    ]
    return np.array([np.exp(one[0, end, 1]) for one in found])


FORWARD = jax.jit(
    lambda model, variables, features: model.apply(variables, features, exits=True),
    static_argnums=0,
)


def test_each_candidate_leaves_where_its_own_score_stands(deep: Tiny) -> None:
    """Whatever shares its row and batch, and no deeper than the task's depth."""
    every = [
        [at_every_exit(deep, h, text) for text in texts]
        for h, texts in zip(HISTORIES, TEXTS, strict=True)
    ]
    changes = np.abs(np.diff(np.concatenate(every), axis=1))
    settings = ExitSettings(float(1 - np.median(changes)), LAYERS - 1)
    taken = set()

    def expected(values: np.ndarray) -> float:
        for k in range(1, settings.depth):
            if 1 - abs(values[k] - values[k - 1]) >= settings.threshold:
                break
        taken.add(k)
        return float(values[k])

    scored = Scorer(*deep, options(settings)).score_requests(HISTORIES, TEXTS)
    for own, probabilities in zip(every, scored, strict=True):
        np.testing.assert_allclose(probabilities, [expected(v) for v in own], atol=2e-6)
    assert len(taken) > 1


def test_never_gives_the_plain_scores_to_the_bit(deep: Tiny) -> None:
    plain = Scorer(*deep, options()).score_requests(HISTORIES, TEXTS)
    never = ExitSettings(NEVER, LAYERS)
    early = ExitSettings(0.0, 1)
    for own in (options(never), options(early, early_exit=False)):
        found = Scorer(*deep, own).score_requests(HISTORIES, TEXTS)
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(plain))
    changed = Scorer(*deep, options(early)).score_requests(HISTORIES, TEXTS)
    assert np.abs(np.concatenate(changed) - np.concatenate(plain)).max() > 1e-3


def test_tasks_of_one_batch_have_their_own_exits(deep: Tiny) -> None:
    plain = Scorer(*deep, options()).score_requests(HISTORIES[:2], TEXTS[:2])
    tasks = {"whole": TaskSettings(), "early": TaskSettings(exits=ExitSettings(NEVER, 1))}
    both = Scorer(*deep, EngineOptions(S, T, tasks=tasks))
    found = both.score_requests(HISTORIES[:2], TEXTS[:2], ["whole", "early"])
    np.testing.assert_array_equal(found[0], plain[0])
    first = [at_every_exit(deep, HISTORIES[1], text)[0] for text in TEXTS[1]]
    np.testing.assert_allclose(found[1], first, atol=2e-6)


def test_a_lower_threshold_never_runs_more_layers(deep: Tiny) -> None:
    model, variables, vocabulary = deep
    row = rows.source_row(vocabulary, HISTORIES[0], S)
    row |= rows.packed_candidates(vocabulary, TEXTS[0], T)
    features = batch_of_one(row, S, T) | {"exit_depth": np.full((1, 1), LAYERS, np.int32)}
    positive = np.array([[0, 1, 0]])

    @jax.jit
    def num_exits(features: Any) -> Any:
        encoded = model.apply(
            variables,
            *(features[n] for n in ("encoder_input_tokens", "encoder_block_ids", "task_ids")),
            method=model.encode,
        )

        def read(hidden: Any) -> Any:
            found = read_log_probabilities(model, variables, hidden, features["task_ids"])
            return positive_probability(found, positive)

        targets = [features[n] for n in ("decoder_input_tokens", "decoder_block_ids", "task_ids")]
        early = model.apply(variables, *targets, method=model.decode_early)
        return exiting_scores(model, variables, encoded, early, features, read)[1]

    thresholds = (NEVER, 0.999, 0.99, 0.95, 0.9, 0.0)
    run = [
        int(num_exits(features | {"exit_threshold": np.full((1, 1), t, np.float32)}))
        for t in thresholds
    ]
    assert run[0] == LAYERS
    assert run[-1] == 2  # one change has to be seen
    assert run == sorted(run, reverse=True)
