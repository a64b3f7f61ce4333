"""Texts that join and leave at any step, against the same requests alone."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m6rec_jax.engine.decoding.continuous import ContinuousGenerator
from m6rec_jax.engine.decoding.generation import GeneratedText, Generator, TextRequest
from m6rec_jax.engine.decoding.graphs import TextChoices
from m6rec_jax.engine.decoding.sampling import GREEDY, SamplingOptions
from m6rec_jax.engine.decoding.stream import GenerationStream, detokenized
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.text.vocabulary import EOS_ID
from tests.engine.tiny_model import livelier, make_model
from tests.pipeline import shop_rows

S, T = 96, 24
HISTORIES = [row["history"] for row in shop_rows.rows_of("test")["groups"][:5]]
HISTORIES[3] = HISTORIES[3][:1]  # of another source bucket
TASKS = {"a": TaskSettings(task_id=0), "b": TaskSettings(task_id=1)}


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(S, T, tasks=dict(TASKS), batch_sizes=(1,), **changes)


@pytest.fixture(scope="module")
def lively(shop_vocabulary: Any) -> Any:
    """(model, variables, vocabulary) whose texts differ, and end at different lengths."""
    model, variables = make_model(shop_vocabulary, late_layers_start=1)
    # Large queries would make much of how a sum was rounded.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0.1 if "'query'" in jax.tree_util.keystr(path) else leaf,
        livelier(variables),
    )
    head = variables["params"]["logits_head"]
    head["kernel"] = head["kernel"].at[:, EOS_ID].multiply(3.0)
    return model, variables, shop_vocabulary


@pytest.fixture(scope="module")
def alone(lively: Any) -> Generator:
    return Generator(*lively, options())


@pytest.fixture(scope="module")
def shared(lively: Any) -> Any:
    """Three slots, so that requests wait for one another."""
    generator = ContinuousGenerator(*lively, options(), row_counts=(1, 3))
    generator.warm_up()
    return generator


def expected(alone: Generator, request: TextRequest) -> GeneratedText:
    return alone.write([request])[0]


def submit(generator: ContinuousGenerator, request: TextRequest) -> GenerationStream:
    return generator.submit(generator.stream(request))


def longest(alone: Generator) -> TextRequest:
    """The request whose text is longest."""
    requests = [TextRequest(history, task="a") for history in HISTORIES]
    return max(requests, key=lambda request: len(expected(alone, request).text))


def same(found: GeneratedText, wanted: GeneratedText) -> None:
    assert found._replace(log_probability=0) == wanted._replace(log_probability=0)
    np.testing.assert_allclose(found.log_probability, wanted.log_probability, rtol=1e-4, atol=1e-4)


def finish(generator: ContinuousGenerator) -> None:
    while generator.step():
        pass
    assert (generator.num_running, generator.pending) == (0, [])


# Pieces of any vocabulary; most of the texts have to go on after a few steps.
SOME = TextChoices([[(300, 301), (300, 302, 303), ()], [(304,), (305, 306)], [(307,) * 5, ()]])
REQUESTS = st.builds(
    lambda history, prefix, task, sampling, choices: TextRequest(
        HISTORIES[history], prefix, task, sampling, history, choices
    ),
    st.integers(0, 4),
    st.sampled_from(["", "Film B", "the prefix"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(
        [GREEDY, SamplingOptions(), SamplingOptions(0.7), SamplingOptions(1.3, top_p=0.8)]
    ),
    st.sampled_from([None, SOME]),
)
# What happens: a request comes, one of those that came is cancelled, or steps are taken.
EVENTS = st.lists(
    st.one_of(REQUESTS, st.integers(0, 9), st.sampled_from(["step"])), min_size=1, max_size=12
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS)
def test_every_text_is_the_one_it_is_alone(alone: Generator, shared: Any, events: Any) -> None:
    asked: list[tuple[TextRequest, GenerationStream]] = []
    for event in events:
        if isinstance(event, TextRequest):
            asked.append((event, submit(shared, event)))
        elif event == "step":
            shared.step()
        elif asked:
            asked[event % len(asked)][1].cancel()
    finish(shared)
    for request, stream in asked:
        found, wanted = stream.result(), expected(alone, request)
        assert "".join(stream.take()) == found.text
        if stream.finish_reason == "cancelled":
            assert wanted.text.startswith(found.text.rstrip("\ufffd "))
        else:
            same(found, wanted)
            assert stream.finish_reason == ("stop" if wanted.ended else "length")


def test_texts_differ_and_end_at_different_lengths(alone: Generator) -> None:
    """Guards the test above: with equal texts it could not fail."""
    found = [
        expected(alone, TextRequest(history, "", task, SamplingOptions(), seed))
        for history in HISTORIES
        for task in TASKS
        for seed in range(6)
    ]
    assert len({text.text for text in found}) > 15
    assert len({len(text.text) for text in found}) > 5
    assert {text.ended for text in found} == {True, False}


def test_limits_and_stop_texts(alone: Generator, shared: Any) -> None:
    request = longest(alone)
    whole = expected(alone, request)
    few = submit(shared, request._replace(max_tokens=3))
    word = whole.text[6:9]
    ended = submit(shared, request._replace(stop=["never in there", word]))
    prefixed = submit(shared, request._replace(prefix="Film B", max_tokens=1))
    finish(shared)
    assert (few.finish_reason, len(few.result().tokens)) == ("length", 3)
    assert whole.text.startswith(few.result().text.rstrip("\ufffd "))
    assert not few.result().ended
    assert (ended.finish_reason, ended.result().ended) == ("stop", True)
    assert ended.result().text == "".join(ended.take()) == whole.text[: whole.text.index(word)]
    given = tuple(alone.vocabulary.encode("Film B"))
    assert prefixed.result().tokens[:-1] == given


@pytest.mark.parametrize("meshed", [False, True])
def test_stacked_layers(shop_vocabulary: Any, meshed: bool) -> None:
    """As on accelerators, where the cache of all layers is one array."""
    model, variables = make_model(shop_vocabulary, share_layers=True)
    variables = livelier(variables)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1]) if meshed else None
    own = options(runtime=Runtime(mesh, data_parallel() if meshed else ()))
    alone = Generator(model, variables, shop_vocabulary, own)
    generator = ContinuousGenerator(model, variables, shop_vocabulary, own, row_counts=(2, 3))
    asked = []
    for number, history in enumerate(HISTORIES):
        request = TextRequest(history, task="ab"[number % 2])
        asked.append((request, submit(generator, request)))
        generator.step()
    finish(generator)
    for request, stream in asked:
        assert stream.result().text == expected(alone, request).text


def test_bad_requests(shared: Any) -> None:
    request = TextRequest(HISTORIES[0], task="a")
    with pytest.raises(DataError, match="no room"):
        shared.stream(request._replace(prefix="word " * 30))
    with pytest.raises(ConfigError, match="no task 'c'"):
        shared.stream(request._replace(task="c"))


def test_a_step_that_fails_ends_the_texts_under_way_alone(
    alone: Generator, shared: Any, monkeypatch: Any
) -> None:
    request = TextRequest(HISTORIES[1], task="b")
    with monkeypatch.context() as patch:
        patch.setattr(shared, "_take_steps", lambda *_: 1 / 0)
        broken = submit(shared, request)
        finish(shared)
    assert broken.finish_reason == "error"
    with pytest.raises(ZeroDivisionError):
        broken.result()
    after = submit(shared, request)
    finish(shared)
    same(after.result(), expected(alone, request))


@settings(max_examples=200)
@given(st.data())
def test_what_was_shown_stays(shop_vocabulary: Any, data: Any) -> None:
    """Single bytes, lone whitespace and all: each sure part begins the text that it becomes."""
    ids = shop_vocabulary.text_ids.tolist()
    pieces = st.one_of(
        st.sampled_from(ids),
        st.sampled_from(["é", "日本", "🎬", " a ", "  "]).map(shop_vocabulary.encode),
    )
    drawn = data.draw(st.lists(pieces, max_size=12))
    tokens = [t for one in drawn for t in (one if isinstance(one, list) else [one])]
    num_given = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.sampled_from([(), ("a",), ("é", "本"), ("  ", "a b")]))
    before = ""
    for size in range(num_given, len(tokens) + 1):
        text, stable, stopped = detokenized(shop_vocabulary, tokens[:size], num_given, stop)
        assert text.startswith(before)
        before = text[:stable]
        if stopped:
            break
