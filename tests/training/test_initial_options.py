"""What a first state may start from: options from words, embeddings from pieces."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.text.token_vectors import composed_vectors, count_neighbours, neighbour_vectors
from m6rec_jax.training import initial_embeddings, initial_prompts
from m6rec_jax.training.initial_embeddings import with_initial_embeddings, with_token_vectors
from m6rec_jax.training.initial_prompts import with_options_of_words
from m6rec_jax.training.initialization import initial_variables
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.options import TrainingData
from m6rec_jax.training.train_state import TrainSetup
from tests.training.toy_run import toy_train

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


def variables_of(config: ModelConfig):
    setup = TrainSetup(M6Rec(config), adamw(1e-3), make_mesh(), data_parallel(), "prompts")
    return setup.model, initial_variables(setup)


@pytest.mark.parametrize("head", ["option", "linear"])
@pytest.mark.parametrize("tied", [True, False])
def test_class_logits_are_the_words_logits(tied: bool, head: str) -> None:
    prompts = dataclasses.replace(CONFIG.prompts, head=head)
    model, variables = variables_of(CONFIG.replace(logits_via_embedding=tied, prompts=prompts))
    bank = dict(variables["prompts"]["bank"])
    if head == "linear":  # as taken over from another run
        bank["head_bias"] = bank["head_bias"] + 3.0
    variables["prompts"] = {**variables["prompts"], "bank": bank}
    changed = with_options_of_words(variables, model.config, WORDS)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
    tasks = jnp.zeros((2,), jnp.int32)
    options = model.apply(changed, hidden, tasks, method=model.option_logits)
    tokens = model.apply(changed, hidden, method=model.token_logits)
    expected = jnp.stack([tokens[..., ids[0]] for ids in WORDS], axis=-1)
    np.testing.assert_allclose(options, expected, rtol=1e-5, atol=1e-5)
    # The first prompt, which is no option, stays; of a linear head, all of them.
    before, after = (s["prompts"]["bank"]["soft_prompts"] for s in (variables, changed))
    kept = 1 if head == "option" else 4
    assert (before[:, :kept] == after[:, :kept]).all()
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b), variables["params"], changed["params"]
    )


def test_options_of_a_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run starts from words once: resuming goes on from its checkpoint."""
    words = SimpleNamespace(encode={"no": [25], "yes": [26]}.__getitem__)
    monkeypatch.setattr(initial_prompts, "text_vocabulary", lambda name: words)
    options = {"initial_options": ("no", "yes"), "optimizer": adamw(0.0), "trainable": "prompts"}
    first, _ = toy_train(tmp_path, 1, **options)
    head = np.asarray(first.state.params["logits_head"]["kernel"])
    soft = np.asarray(first.state.prompts["bank"]["soft_prompts"])[0]
    np.testing.assert_allclose(soft[2:], head[:, [25, 26]].T * 4.0, rtol=1e-6)
    monkeypatch.delattr(words, "encode")
    again, _ = toy_train(tmp_path, 2, **options)
    np.testing.assert_array_equal(again.state.prompts["bank"]["soft_prompts"][0], soft)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (CONFIG, {"initial_embeddings": "words"}, "= 'words' is not one of random, neighbours"),
        (CONFIG, {"initial_prompts": "machting"}, r"'machting' is not one .* mean 'matching'\?"),
        (
            CONFIG,
            {
                "initial_options": ("bad", "fair", "good"),
                "initial_prompts": "all",
                "initial_checkpoint_path": "run",
            },
            "would overwrite it: set INITIAL_OPTIONS",
        ),
    ],
)
def test_starts_that_do_not_fit(
    tmp_path, config: ModelConfig, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_train(tmp_path, 1, model=config, **options)


def test_embeddings_start_from_pieces() -> None:
    model, variables = variables_of(dataclasses.replace(CONFIG, embedding_stddev=0.1))
    pieces = ["\u2581liked", ", rated 3.65", ", rated 3.70"]
    changed = with_token_vectors(variables, model.config, composed_vectors(pieces, 16, 3))
    before, after = (s["params"]["token_embedder"]["embedding"] for s in (variables, changed))
    np.testing.assert_allclose(after[:3], 0.1 * composed_vectors(pieces, 16, 3), rtol=1e-6)
    np.testing.assert_array_equal(after[3:], before[3:])
    assert float(np.std(before)) == pytest.approx(0.1, rel=0.1)
    for name, leaf in variables["params"].items():
        if name != "token_embedder":
            jax.tree.map(np.testing.assert_array_equal, leaf, changed["params"][name])
    with pytest.raises(ConfigError, match=r"has 33 tokens, but ModelConfig\.vocab_size is 32"):
        with_token_vectors(variables, model.config, np.zeros((33, 16), np.float32))


def test_embeddings_start_from_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process reads the same rows; what they tell and what tokens are written of add up."""
    pieces = [f"{number}" for number in range(8)]
    tokens = np.arange(1, 7, dtype=np.int32).reshape(2, 3)
    blocks = np.tile(np.array([1, 2, 3], np.int32), (2, 1))
    asked = []

    def batches(*arguments: object, **options: object) -> Iterator[dict[str, np.ndarray]]:
        asked.append((arguments, options))
        while True:
            yield {"encoder_input_tokens": tokens, "encoder_block_ids": blocks}

    vocabulary = SimpleNamespace(num_pieces=8, pieces=lambda ids: [pieces[i] for i in ids])
    monkeypatch.setattr(initial_embeddings, "text_vocabulary", lambda name: vocabulary)
    model, variables = variables_of(dataclasses.replace(CONFIG, embedding_stddev=0.1))
    data = TrainingData("task", {"inputs": 3}, 2, batches)
    changed = with_initial_embeddings(variables, model.config, "neighbours", data, 3, rows=5)
    assert asked == [(("task", {"inputs": 3}, 2), {"process_index": 0, "process_count": 1})]
    counts = count_neighbours([(tokens, blocks, None)] * 3, 8)
    expected = composed_vectors(pieces, 16, 3) + neighbour_vectors(counts, 16, 3)
    table = changed["params"]["token_embedder"]["embedding"]
    np.testing.assert_allclose(table[:8], 0.1 * 0.5**0.5 * expected, rtol=1e-5, atol=1e-7)
