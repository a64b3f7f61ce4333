"""The segment cache: scores are those of the whole forward pass, whatever is kept or evicted."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.engine.candidates.rows import pack_texts
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.decoding.continuous import ContinuousGenerator
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.engine.segments.store import SegmentStore, write_segments
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError
from tests.engine.tiny_model import livelier, make_model
from tests.pipeline import shop_rows

S, T = 64, 64
EXAMPLES = shop_rows.rows_of("test")["groups"]
HISTORIES = [example["history"] for example in EXAMPLES[:5]]
MANY = HISTORIES + [[text and f"{text} too" for text in history] for history in HISTORIES]
TITLES = sorted({text for example in EXAMPLES for text in example["candidates"]})
TITLES += [f"{title} again" for title in TITLES]
TASKS = {f"task {i}": TaskSettings(task_id=i) for i in range(2)}


def make(vocabulary, *, late_only=True, ends=False, **prompts):
    """A model whose every tensor differs from zero, so that tasks and layers matter."""
    prompts = prompts | {
        "num_prompts": 3,
        "task_num_prompts": (3, 2),
        "num_options": 2,
        "retrieval_dim": 8,
        "special_token_ids": vocabulary.special_ids[:1],
        "num_segment_embeddings": 2,
        "adapters_late_only": late_only,
    }
    sizes = {"embed_dim": 16, "num_encoder_layers": 3, "num_decoder_layers": 3, "head_dim": 8}
    model, variables = make_model(
        vocabulary,
        prompts,
        **sizes,
        mlp_dim=24,
        late_layers_start=2,
        cross_attention_at="ends" if ends else "all",
    )
    return model, livelier(variables)


def engines(engine, model, variables, vocabulary, tasks=TASKS, **cache):
    """The same engine without a cache and with one."""
    options = EngineOptions(
        *(S, T),
        tasks=tasks,
        task="task 0",
        candidate_length=32,
        batch_sizes=(4,),
        source_buckets=(S,),
        target_buckets=(T,),
    )
    kept = SegmentCache(model, source_length=S, target_length=T, runtime=Runtime(), **cache)
    with_cache = dataclasses.replace(options, segments=kept)
    return [engine(model, variables, vocabulary, own) for own in (options, with_cache)] + [kept]


@pytest.fixture(scope="module")
def late_only(shop_vocabulary):
    return engines(Scorer, *make(shop_vocabulary), shop_vocabulary, dict(TASKS))


def check_scores(plain, cached, kept):
    candidates = [TITLES[:7], TITLES[3:5], TITLES[:1], [], TITLES]
    tasks = ["task 0", "task 1", "task 0", "task 1", "task 1"]
    expected = plain.score_requests(HISTORIES, candidates, tasks)
    for _ in range(2):
        found = cached.score_requests(HISTORIES, candidates, tasks)
        for own, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, theirs, atol=2e-6)
    assert expected[0].std() > 1e-3
    computed = kept.source.computed, kept.candidates.computed
    cached.score_requests(HISTORIES[::-1], candidates[::-1], tasks[::-1])
    assert (kept.source.computed, kept.candidates.computed) == computed


def test_scores_are_those_of_one_pass(late_only):
    check_scores(*late_only)


POOLED = {"late_only": False, "adapter_rank": 0, "pooling_rank": 2}


@pytest.mark.parametrize("kind", [{"late_only": False}, {"ends": True}, POOLED], ids=str)
def test_scores_of_other_models_are_those_of_one_pass(shop_vocabulary, kind):
    check_scores(*engines(Scorer, *make(shop_vocabulary, **kind), shop_vocabulary))


def test_only_what_is_new_is_computed(late_only):
    _, cached, kept = late_only
    kept.source.clear()

    def computed(history, task):
        before = kept.source.computed
        cached.score_requests([history], [TITLES[:2]], [task])
        return kept.source.computed - before

    profile, *behaviours, context = HISTORIES[0]
    history = [profile, *behaviours, context]
    segments = 3 + len({text for text in [*behaviours, context] if text})
    assert computed(history, "task 0") == segments  # soft prompts, profile, [EOS']
    assert computed(history, "task 0") == 0
    # Of another task: its prompts, and the profile, whose [BOS'] it changes.
    assert computed(history, "task 1") == 2
    assert computed([profile, *behaviours, "a new one", context], "task 1") == 1


def test_prompts_that_are_replaced_are_not_mixed_up(late_only):
    plain, cached, _ = late_only
    tasks, variables = plain.options.tasks, plain.variables
    asked = ([HISTORIES[0]], [TITLES[:3]], ["task 0"])
    before = cached.score_requests(*asked)[0]
    # As a bank does: other prompts in the same row, and settings that look the same.
    tasks["task 0"] = dataclasses.replace(tasks["task 0"])
    changed = variables | {"prompts": jax.tree.map(lambda x: -x, variables["prompts"])}
    plain.variables = cached.variables = changed
    after = cached.score_requests(*asked)[0]
    np.testing.assert_allclose(after, plain.score_requests(*asked)[0], atol=2e-6)
    assert np.abs(after - before).max() > 1e-3


def test_users_of_retrieval_are_those_of_one_pass(shop_vocabulary):
    plain, cached, _ = engines(Retriever, *make(shop_vocabulary), shop_vocabulary)
    tasks = ["task 0", "task 1"] * 2
    expected = plain.embed_users(HISTORIES[:4], tasks)
    np.testing.assert_allclose(cached.embed_users(HISTORIES[:4], tasks), expected, atol=5e-6)


def test_texts_are_those_of_one_pass(shop_vocabulary):
    model = make(shop_vocabulary)
    _, cached, kept = engines(Scorer, *model, shop_vocabulary)
    options = dataclasses.replace(cached.options, target_length=8, target_buckets=(8,))
    plain = Generator(*model, shop_vocabulary, dataclasses.replace(options, segments=None))
    cached = Generator(*model, shop_vocabulary, options)
    joined = ContinuousGenerator(*model, shop_vocabulary, options, (1, 2))
    requests = [TextRequest(h, task=f"task {n}") for n, h in enumerate(HISTORIES[:2])]
    expected = plain.write(requests)
    streams = [joined.submit(joined.stream(request)) for request in requests]
    while joined.step():
        pass
    for found in (cached.write(requests), [one.result() for one in streams]):
        assert [one.text for one in found] == [one.text for one in expected]
    assert kept.source.computed


@pytest.mark.parametrize("kind", [{}, {"ends": True}], ids=str)
def test_a_store_is_read_by_its_task(shop_vocabulary, tmp_path, kind):
    plain, cached, kept = engines(Scorer, *make(shop_vocabulary, **kind), shop_vocabulary)
    own = TASKS["task 0"]
    rows = [pack_texts(shop_vocabulary, [title], T, 32).rows[0] for title in TITLES[:6]]
    write_segments(
        tmp_path / "store",
        [row["decoder_input_tokens"] for row in rows],
        lambda tokens: kept.candidates.states_of(cached.variables, tokens, own),
        **{"model": "a", "task": "task 0", "width": kept.candidates.width, "dtype": "float32"},
        progress=False,
    )
    kept.candidates.clear()
    kept.candidates.store = SegmentStore(tmp_path / "store", "a"), own
    for task in TASKS:
        before = kept.candidates.computed
        asked = ([HISTORIES[0]], [TITLES[:8]], [task])
        found = cached.score_requests(*asked)[0]
        np.testing.assert_allclose(found, plain.score_requests(*asked)[0], atol=2e-6)
        # Candidates at their ends are another task's own; else they are on the device by now.
        again = 8 if kind else 0
        assert kept.candidates.computed - before == (2 if task == "task 0" else again)


@pytest.fixture(scope="module")
def streams(shop_vocabulary):
    """A scorer with a pool that holds one batch and little more, and all right answers."""
    model, variables = make(shop_vocabulary)
    # Little more than one batch takes: 4 histories of 64 tokens and 4 rows of 64.
    sizes = {"source_slots": 280, "candidate_slots": 260}
    plain, cached, kept = engines(Scorer, model, variables, shop_vocabulary, **sizes)
    cached.warm_up()
    right = {task: plain.score_requests(MANY, [TITLES] * 10, [task] * 10) for task in TASKS}
    return cached, kept, right


REQUEST = st.tuples(
    st.integers(0, 9),
    st.lists(st.integers(0, len(TITLES) - 1), max_size=12),
    st.sampled_from([*TASKS]),
)


@settings(max_examples=60)
@given(st.lists(st.lists(REQUEST, min_size=1, max_size=6), max_size=4))
def test_any_stream_of_requests_under_a_pool_too_small(streams, stream):
    cached, kept, right = streams
    for batch in stream:
        found = cached.score_requests(
            [MANY[user] for user, _, _ in batch],
            [[TITLES[i] for i in items] for _, items, _ in batch],
            [task for *_, task in batch],
        )
        for scores, (user, items, task) in zip(found, batch, strict=True):
            np.testing.assert_allclose(scores, right[task][user][items], atol=2e-6)
    for pool in kept._pools:  # each slot is one segment's, or free
        slots = np.concatenate([pool._free, *(slots for _, slots in pool._placed.values())])
        assert sorted(slots) == list(range(pool.capacity))


def test_a_pass_of_some_layers_copies_no_more_than_one(shop_vocabulary):
    model, variables = make_model(
        shop_vocabulary, num_encoder_layers=8, embed_dim=64, mlp_dim=512, late_layers_start=4
    )
    hidden, ones = np.zeros((1, 12, 64), np.float32), np.ones((1, 8), np.int32)
    late = jax.jit(
        lambda variables: (
            model.apply(variables, hidden, ones, ones[:, :1] * 0, method=model.encode_late).hidden
        )
    )
    temporary = late.lower(variables).compile().memory_analysis().temp_size_in_bytes
    layers = variables["params"]["encoder"]["layers"]
    assert temporary < 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(layers)) / 8


def test_clear_errors(shop_vocabulary):
    model, variables = make(shop_vocabulary)
    with pytest.raises(ConfigError, match="source_slots = 40 is too small for one row"):
        engines(Scorer, model, variables, shop_vocabulary, source_slots=40)
    _, cached, kept = engines(Scorer, model, variables, shop_vocabulary, source_slots=67)
    cached.score_requests(HISTORIES[:1], [TITLES[:1]])
    before = kept.source.computed
    with pytest.raises(ConfigError, match=r"67 slots, too few.*SegmentCache.source_slots"):
        cached.score_requests(HISTORIES, [TITLES[:1]] * len(HISTORIES))
    # What was asked for too much has driven nothing out.
    cached.score_requests(HISTORIES[:1], [TITLES[:1]])
    assert kept.source.computed == before
