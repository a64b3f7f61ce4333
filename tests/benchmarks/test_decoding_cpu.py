"""The study's programs write what a search by hand does; its figures are those counted by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import decoding_cpu
from m6rec_jax.engine.continuous_generation import ContinuousGenerator
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.generation_stream import GenerationStream
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID
from tests.engine.tiny_model import livelier

LENGTH = 4
LAYOUTS = ("as trained", "laid out")


def config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        embed_dim=8,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_heads=1,
        head_dim=8,
        mlp_dim=8,
    )


def written_by_hand(model: M6Rec, variables: Any, source: np.ndarray) -> np.ndarray:
    """The likeliest next token, which is no end, of a whole forward pass for each."""
    inputs = np.full((len(source), 1), PAD_ID, np.int32)
    for _ in range(LENGTH):
        features = {"encoder_input_tokens": source, "encoder_block_ids": np.ones_like(source)}
        features |= {"decoder_input_tokens": inputs, "decoder_block_ids": np.ones_like(inputs)}
        features["task_ids"] = np.zeros((len(source), 1), np.int32)
        hidden: Any = model.apply(variables, features)
        logits: Any = model.apply(variables, hidden.hidden, method=model.token_logits)
        last = np.array(logits[:, -1], np.float32)
        last[:, [PAD_ID, EOS_ID]] = -np.inf
        inputs = np.append(inputs, last.argmax(-1)[:, None].astype(np.int32), axis=1)
    return inputs[:, 1:]


def test_every_program_writes_the_likeliest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layouts at float32; each program has the operands and the batch of its name."""
    asked: list[tuple[M6Rec, Any, np.ndarray, np.ndarray]] = []
    greedy_program = decoding_cpu.greedy_program

    def noted(model: M6Rec, length: int) -> Any:
        compiled = greedy_program(model, length)

        def run(variables: Any, source: np.ndarray) -> Any:
            tokens = compiled(variables, source)
            asked.append((model, variables, source, np.asarray(tokens)))
            return tokens

        return run

    drawn = decoding_cpu.random_variables
    monkeypatch.setattr(decoding_cpu, "greedy_program", noted)
    # A new model writes the same word for ever.
    monkeypatch.setattr(decoding_cpu, "random_variables", lambda model: livelier(drawn(model)))
    monkeypatch.setattr(decoding_cpu, "BATCHES", (1, 3))
    found = decoding_cpu.steps(config(32), source_length=3, length=LENGTH)
    for (operands, batch, layout), run in found.items():
        run()
        model, variables, source, tokens = asked.pop()
        stacked = livelier(drawn(model))
        assert model.config.matmul_dtype == operands
        assert (source.shape, tokens.shape) == ((batch, 3), (batch, LENGTH))
        same = jax.tree.structure(variables) == jax.tree.structure(stacked)
        assert same == (layout == "as trained")
        if operands == "float32":
            expected = written_by_hand(model, stacked, source)
            np.testing.assert_array_equal(tokens, expected)
            assert len(np.unique(expected)) > 2
    names = [(a, b, c) for a in ("float32", "bfloat16") for b in (1, 3) for c in LAYOUTS]
    assert list(found) == names


class Clock:
    """Stands for `time`: goes on when somebody sleeps, or is told to."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class OneTokenASecond:
    """Two slots; every text under way gets a token in a step of a second."""

    num_slots, max_tokens = 2, 9

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.queue: list[tuple[GenerationStream, int]] = []
        self.warm = False

    def warm_up(self) -> None:
        self.warm = True

    def submit(self, segments: list[str], max_tokens: int) -> GenerationStream:
        self.queue.append((GenerationStream(), max_tokens))
        return self.queue[-1][0]

    def step(self) -> None:
        self.clock.now += 1
        for stream, limit in self.queue[: self.num_slots]:
            stream.num_tokens += 1
            if stream.num_tokens == limit:
                stream.finish("length")
        self.queue = [one for one in self.queue if not one[0].finish_reason]


# Tokens of four texts that come at 0, 0, 0.5 and 9 seconds.
REQUESTS = [(0.0, 1), (0.0, 4), (0.5, 2), (9.0, 1)]


@pytest.mark.parametrize(
    ("static", "latencies", "seconds"),
    [
        # The third takes the slot of the first at 1 and is done at 3.
        (False, [1, 2.5, 4, 1], 10),
        # The third waits till 4 for the second, and is done at 6; the first is told of at 4.
        (True, [4, 4, 5.5, 1], 10),
    ],
)
def test_figures_of_arrivals_are_those_counted_by_hand(
    monkeypatch: pytest.MonkeyPatch, static: bool, latencies: list[float], seconds: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(decoding_cpu, "time", clock)
    generator: Any = OneTokenASecond(clock)
    found = decoding_cpu.arrivals(generator, REQUESTS, ["a film"], static=static)
    assert found == pytest.approx(
        {
            "tokens_per_second": 8 / seconds,
            "latency_p50_milliseconds": 1000 * np.median(latencies),
            "latency_p95_milliseconds": 1000 * np.quantile(latencies, 0.95),
        }
    )


def test_requests_arrive_at_three_quarters_of_the_rate_kept_up_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, np.ndarray, list[int]]] = []

    def arrivals(generator: Any, requests: Any, segments: Any, *, static: bool) -> dict[str, float]:
        times, tokens = zip(*requests, strict=True)
        asked.append(("static" if static else "continuous", np.array(times), list(tokens)))
        # The middle one of three is the 2nd or 3rd of each kind, whatever the order.
        return {"tokens_per_second": [80.0, 5.0, 40.0][(len(asked) - 1) // 2 % 3] + static}

    monkeypatch.setattr(decoding_cpu, "arrivals", arrivals)
    generator: Any = SimpleNamespace(max_tokens=20, warm_up=lambda: None)
    found = decoding_cpu.arrivals_study(generator, 4_000, turns=3)
    one = {"continuous": {"tokens_per_second": 40.0}, "static": {"tokens_per_second": 41.0}}
    assert found == {"at once": one, "arriving": one}
    assert [name for name, *_ in asked] == ["continuous", "static"] * 6
    for _, _, tokens in asked:
        assert tokens == asked[0][2]
        assert 3 <= min(tokens) < max(tokens) == 20
    assert not any(times.any() for _, times, _ in asked[:6])
    tokens = asked[0][2]
    for _, times, _ in asked[6:]:
        np.testing.assert_array_equal(times, asked[6][1])
        assert sum(tokens) / times[-1] == pytest.approx(0.75 * 40, rel=0.05)


def test_texts_end_where_they_were_told_to(shop_vocabulary: Any) -> None:
    """By a model for which `[EOS]` is now the likeliest token, now the least likely one."""
    model = M6Rec(config(shop_vocabulary.size))
    variables = livelier(decoding_cpu.random_variables(model))
    kernel = variables["params"]["logits_head"]["kernel"]
    ends = jnp.zeros_like(kernel).at[:, EOS_ID].set(kernel[:, EOS_ID])
    variables["params"]["logits_head"]["kernel"] = ends

    def made() -> ContinuousGenerator:
        options = EngineOptions(16, 16, source_buckets=(16,))
        sizes: Any = {"num_slots": 3, "row_counts": (3,), "join_sizes": (3,)}
        return ContinuousGenerator(model, variables, shop_vocabulary, options, **sizes)

    def tokens(generator: ContinuousGenerator) -> list[int]:
        streams = [generator.submit(["a film"], max_tokens=number) for number in (2, 9, 15)]
        while generator.step():
            pass
        return [stream.num_tokens for stream in streams]

    assert tokens(made()) != [2, 9, 15]
    assert tokens(decoding_cpu.without_end(made())) == [2, 9, 15]
