"""What a first state may start from: options from words, embeddings from pieces."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.text.token_vectors import composed_vectors, count_neighbours, neighbour_vectors
from m6rec_jax.training import initial_embeddings, initial_prompts
from m6rec_jax.training.initial_embeddings import with_initial_embeddings, with_piece_vectors
from m6rec_jax.training.initial_prompts import (
    with_options_of_words,
    with_prompts_of_labels,
    with_prompts_of_tokens,
)
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.train_state import abstract_state
from tests.training.toy_run import toy_config, toy_train

CONFIG = ModelConfig(
    vocab_size=32,
    embed_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    prompts=PromptConfig(num_prompts=4, num_options=3, head="option"),
)
WORDS = [[5], [7, 9], [11]]


def state_of(config: ModelConfig):
    model, optimizer, rules = M6Rec(config), adamw(1e-3), data_parallel()
    mesh = make_mesh()
    abstract = abstract_state(model, optimizer, mesh, rules, trainable="prompts")
    return model, initial_state(
        model, optimizer, abstract, mesh, rules, trainable="prompts", seed=0
    )


@pytest.mark.parametrize("head", ["option", "linear"])
@pytest.mark.parametrize("tied", [True, False])
def test_class_logits_are_the_words_logits(tied: bool, head: str) -> None:
    prompts = dataclasses.replace(CONFIG.prompts, head=head)
    model, state = state_of(CONFIG.replace(logits_via_embedding=tied, prompts=prompts))
    bank = dict(state.prompts["bank"])
    if head == "linear":  # as taken over from another run
        bank["head_bias"] = bank["head_bias"] + 3.0
    state = state.replace(prompts={**state.prompts, "bank": bank})
    changed = with_options_of_words(state, model.config, WORDS)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
    variables = {"params": changed.params, "prompts": changed.prompts}
    tasks = jnp.zeros((2,), jnp.int32)
    options = model.apply(variables, hidden, tasks, method=model.option_logits)
    tokens = model.apply(variables, hidden, method=model.token_logits)
    expected = jnp.stack([tokens[..., ids[0]] for ids in WORDS], axis=-1)
    np.testing.assert_allclose(options, expected, rtol=1e-5, atol=1e-5)
    # The first prompt, which is no option, stays; of a linear head, all of them.
    before, after = (s.prompts["bank"]["soft_prompts"] for s in (state, changed))
    kept = 1 if head == "option" else 4
    assert (before[:, :kept] == after[:, :kept]).all()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), state.params, changed.params)


def test_words_must_fit_the_options() -> None:
    model, state = state_of(CONFIG)
    with pytest.raises(ConfigError, match=r"names 2 classes, but the model has 3 \(Pro"):
        with_options_of_words(state, model.config, WORDS[:2])
    with pytest.raises(ConfigError, match="every class needs a word"):
        with_options_of_words(state, model.config, [[1], [], [2]])
    with pytest.raises(ConfigError, match="begin with the same token"):
        with_options_of_words(state, model.config, [[1], [2, 3], [2, 4]])
    headless = model.config.replace(prompts=PromptConfig(num_prompts=4))
    with pytest.raises(ConfigError, match=r"words of classes, but the model has none"):
        with_options_of_words(state, headless, WORDS)


@pytest.mark.parametrize("head", ["option", "linear"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_last_soft_prompts_start_from_labels(tied: bool, head: str) -> None:
    """Each the mean of its label's embeddings as the encoder reads them, whatever the head."""
    prompts = dataclasses.replace(CONFIG.prompts, head=head)
    config = dataclasses.replace(CONFIG, logits_via_embedding=tied, prompts=prompts)
    _, state = state_of(config)
    changed = with_prompts_of_labels(state, config, [[5], [7, 9], [11, 11, 2]])
    table = np.asarray(state.params["token_embedder"]["embedding"])
    before, after = (np.asarray(s.prompts["bank"]["soft_prompts"])[0] for s in (state, changed))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], table[5])
    np.testing.assert_allclose(after[2], (table[7] + table[9]) / 2, rtol=1e-6)
    np.testing.assert_allclose(after[3], (2 * table[11] + table[2]) / 3, rtol=1e-5, atol=1e-6)
    for name, leaf in changed.prompts["bank"].items():
        if name != "soft_prompts":
            np.testing.assert_array_equal(leaf, state.prompts["bank"][name])
    jax.tree.map(np.testing.assert_array_equal, state.params, changed.params)


def test_labels_must_fit_the_classes_and_prompts() -> None:
    few = dataclasses.replace(CONFIG.prompts, head="linear", num_prompts=2)
    config = dataclasses.replace(CONFIG, prompts=few)
    _, state = state_of(config)
    with pytest.raises(ConfigError, match=r"class_labels names 2 classes, but the model has 3 \(P"):
        with_prompts_of_labels(state, config, WORDS[:2])
    with pytest.raises(
        ConfigError, match=r"has 3 labels, but there are 2 soft prompts .*TASK_PROM"
    ):
        with_prompts_of_labels(state, config, WORDS)
    with pytest.raises(ConfigError, match="class_labels: every class needs a word"):
        with_prompts_of_labels(state, config, [[1], [], [2]])


@pytest.mark.parametrize("tied", [True, False])
def test_soft_prompts_start_from_tokens(tied: bool) -> None:
    prompts = dataclasses.replace(CONFIG.prompts, num_tasks=2)
    model, state = state_of(dataclasses.replace(CONFIG, logits_via_embedding=tied, prompts=prompts))
    tokens = [3, 5, 6, 9, 20]
    changed = with_prompts_of_tokens(state, model.config, tokens, seed=1)
    table = np.asarray(state.params["token_embedder"]["embedding"])
    soft = np.asarray(changed.prompts["bank"]["soft_prompts"])
    assert soft.shape == (2, 4, 16)
    drawn = [
        [int(np.flatnonzero((table == row).all(axis=-1)).item()) for row in task] for task in soft
    ]
    assert all(len(set(task)) == 4 and set(task) <= set(tokens) for task in drawn)
    assert drawn[0] != drawn[1]
    again = with_prompts_of_tokens(state, model.config, tokens, seed=1)
    np.testing.assert_array_equal(again.prompts["bank"]["soft_prompts"], soft)
    other = with_prompts_of_tokens(state, model.config, tokens, seed=2)
    assert not np.array_equal(other.prompts["bank"]["soft_prompts"], soft)
    jax.tree.map(np.testing.assert_array_equal, state.params, changed.params)


def test_tokens_must_fit_the_soft_prompts() -> None:
    model, state = state_of(CONFIG)
    with pytest.raises(ConfigError, match=r"num_prompts = 4 different .*, .* offers 3"):
        with_prompts_of_tokens(state, model.config, [1, 2, 3], seed=0)
    with pytest.raises(ConfigError, match=r"has token 32, but ModelConfig\.vocab_size is 32"):
        with_prompts_of_tokens(state, model.config, [1, 2, 3, 32], seed=0)


def test_soft_prompts_of_a_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run draws once: resuming goes on from its checkpoint. Labels' text comes last."""

    calls = []

    def frequent_tokens_of(name: str, most: int) -> list[int]:
        calls.append((name, most))
        return list(range(3, 20))

    monkeypatch.setattr(initial_prompts, "frequent_tokens_of", frequent_tokens_of)
    monkeypatch.setattr(initial_prompts, "tokens_of", lambda name, words: [[25], [26]])
    options = {
        "initial_soft_prompts": "vocabulary",
        "initial_options": ("no", "yes"),
        "optimizer": adamw(0.0),
        "trainable": "prompts",
    }
    first, _ = toy_train(tmp_path, 1, **options)
    table = np.asarray(first.state.params["token_embedder"]["embedding"])
    head = np.asarray(first.state.params["logits_head"]["kernel"])
    soft = np.asarray(first.state.prompts["bank"]["soft_prompts"])[0]
    for row in soft[:2]:
        assert (table[3:20] == row).all(axis=-1).any()
    np.testing.assert_allclose(soft[2:], head[:, [25, 26]].T * 4.0, rtol=1e-6)
    again, _ = toy_train(tmp_path, 2, **options)
    np.testing.assert_array_equal(again.state.prompts["bank"]["soft_prompts"][0], soft)
    assert calls == [("toy", 5000)]


def test_class_labels_of_a_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt tuning: two labels of several tokens last, pieces of the vocabulary before them."""

    ids = {"no": [25, 27], "yes": [26]}
    monkeypatch.setattr(initial_prompts, "frequent_tokens_of", lambda *_: list(range(3, 20)))
    monkeypatch.setattr(initial_prompts, "tokens_of", lambda name, words: [ids[w] for w in words])
    prompts = PromptConfig(num_prompts=4, num_options=2, head="linear")
    options = {
        "model": toy_config(prompts=prompts),
        "initial_soft_prompts": "class_labels",
        "class_labels": ("no", "yes"),
        "optimizer": adamw(0.0),
        "trainable": "prompts",
    }
    result, _ = toy_train(tmp_path / "run", 1, **options)
    table = np.asarray(result.state.params["token_embedder"]["embedding"])
    soft = np.asarray(result.state.prompts["bank"]["soft_prompts"])[0]
    for row in soft[:2]:
        assert (table[3:20] == row).all(axis=-1).any()
    np.testing.assert_allclose(soft[2], (table[25] + table[27]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(soft[3], table[26])
    # What is not asked for does nothing, and words for options are no words for a linear head.
    plain, _ = toy_train(tmp_path / "plain", 1, **(options | {"initial_soft_prompts": "random"}))
    random = np.asarray(plain.state.prompts["bank"]["soft_prompts"])[0]
    assert not (random[3] == table[26]).any()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (CONFIG, {"initial_soft_prompts": "text"}, "= 'text' is not one of random, vocabulary"),
        (CONFIG, {"initial_prompts": "machting"}, r"'machting' is not one .* mean 'matching'\?"),
        (
            dataclasses.replace(CONFIG, prompts=PromptConfig(adapter_rank=2)),
            {"initial_soft_prompts": "vocabulary"},
            "the model has no soft prompts",
        ),
        (
            CONFIG,
            {"initial_soft_prompts": "vocabulary", "initial_prompts": "all"},
            "would overwrite the soft prompts that Start.prompts = 'all' takes over",
        ),
        (
            CONFIG,
            {"initial_options": ("bad", "fair", "good"), "initial_prompts": "all"},
            "would overwrite the head that Start.prompts = 'all' takes .* INITIAL_OPTIONS",
        ),
        (
            CONFIG,
            {"initial_soft_prompts": "class_labels"},
            r"Start.class_labels is empty: .* OPTION_WORDS",
        ),
        (
            CONFIG,
            {
                "initial_soft_prompts": "class_labels",
                "class_labels": {"a": ("bad", "fair", "good"), "b": ("no", "maybe", "yes")},
                "initial_options": {"a": ("bad", "fair", "good")},
            },
            r"are both given, .* INITIAL_OPTIONS = \(\) to start from the labels",
        ),
    ],
)
def test_initial_soft_prompts_that_do_not_fit(
    tmp_path, config: ModelConfig, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_train(tmp_path, 1, model=config, **options)


def test_embeddings_start_from_pieces() -> None:
    model, state = state_of(dataclasses.replace(CONFIG, embedding_stddev=0.1))
    pieces = ["\u2581liked", ", rated 3.65", ", rated 3.70"]
    changed = with_piece_vectors(state, model.config, composed_vectors(pieces, 16, 3))
    before, after = (s.params["token_embedder"]["embedding"] for s in (state, changed))
    np.testing.assert_allclose(after[:3], 0.1 * composed_vectors(pieces, 16, 3), rtol=1e-6)
    np.testing.assert_array_equal(after[3:], before[3:])
    assert float(np.std(before)) == pytest.approx(0.1, rel=0.1)
    for name, leaf in state.params.items():
        if name != "token_embedder":
            jax.tree.map(np.testing.assert_array_equal, leaf, changed.params[name])
    with pytest.raises(ConfigError, match=r"has 33 pieces, but ModelConfig\.vocab_size is 32"):
        with_piece_vectors(state, model.config, np.zeros((33, 16), np.float32))


def test_embeddings_start_from_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process reads the same rows; what they tell and what pieces are written of add up."""
    pieces = [f"{number}" for number in range(8)]
    tokens = np.arange(1, 7, dtype=np.int32).reshape(2, 3)
    blocks = np.tile(np.array([1, 2, 3], np.int32), (2, 1))
    asked = []

    def batches(*arguments: object, **options: object) -> Iterator[dict[str, np.ndarray]]:
        asked.append((arguments, options))
        while True:
            yield {"encoder_input_tokens": tokens, "encoder_block_ids": blocks}

    monkeypatch.setattr(initial_embeddings, "pieces_of", lambda name: pieces)
    model, state = state_of(dataclasses.replace(CONFIG, embedding_stddev=0.1))
    changed = with_initial_embeddings(
        state, model.config, "neighbours", "task", {"inputs": 3}, 2, batches, 3, rows=5
    )
    assert asked == [(("task", {"inputs": 3}, 2), {"process_index": 0, "process_count": 1})]
    counts = count_neighbours([(tokens, blocks, None)] * 3, 8)
    expected = composed_vectors(pieces, 16, 3) + neighbour_vectors(counts, 16, 3)
    table = changed.params["token_embedder"]["embedding"]
    np.testing.assert_allclose(table[:8], 0.1 * 0.5**0.5 * expected, rtol=1e-5, atol=1e-7)


def test_a_missing_encoder_is_told_before_the_data_are_read() -> None:
    state: Any = None
    with pytest.raises(CheckpointError, match="'nowhere' is no sentence encoder"):
        with_initial_embeddings(
            state, CONFIG, "encoder", "no_task", {}, 2, None, 0, encoder="nowhere"
        )


def test_unknown_initial_embeddings(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"Start\.embeddings = 'words' is not one of random, pie"):
        toy_train(tmp_path, 1, initial_embeddings="words")
