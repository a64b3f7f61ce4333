"""Every file of gin_configs/tuning: it is read, what it trains is counted, and has gradients."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import pytest
from flax import linen as nn

from m6rec_jax import configuration
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.objectives import mean_loss, total_loss
from m6rec_jax.training.parameter_table import count_parameters
from tests.training.toy_run import toy_batch

FILES = sorted((Path(__file__).parents[2] / "gin_configs" / "tuning").glob("*.gin"))
CLASSES, D, LAYERS, PROMPTS = 2, 128, 4, 16
ADAPTERS = LAYERS * (D * 16 + 16 + 16 * D + D + 1)
LORA = 6 * 2 * (D * 6 + 6 * D)  # six attentions (two in the encoder), queries and values, rank 6
IA3 = 6 * 2 * D + LAYERS * 256  # keys and values of six attentions, hidden units of four layers
HEAD = D * CLASSES + CLASSES
# Parameters of the prompts that these files add to mini, by hand.
COUNTS = {
    "adapter": ADAPTERS + HEAD,
    "full": PROMPTS * D,
    "ia3": IA3 + HEAD,
    "linear_probe": HEAD,
    "lora": LORA + HEAD,
    "option": PROMPTS * D,
    "option_adapter": ADAPTERS + PROMPTS * D,
    "option_adapter_pooling": ADAPTERS + PROMPTS * D + 2 * 8 * D,
    # Also two numbers for each piece of the vocabulary, and two vectors.
    "option_embedding": PROMPTS * D + 2 * (8_192 + D),
    "prompt": PROMPTS * D + HEAD,
}
TINY = (
    "VOCAB_SIZE = 128",
    "ModelConfig.embed_dim = 16",
    "ModelConfig.num_heads = 2",
    "ModelConfig.head_dim = 8",
    "ModelConfig.mlp_dim = 16",
    "ModelConfig.matmul_dtype = None",
    "ModelConfig.num_encoder_layers = 1",
    "ModelConfig.num_decoder_layers = 1",
)


# What stands before a matrix of zeros has no gradient in the first step: an adapter's first half
# and scale, the first half of a LoRA update, and the second of one to the embedding or of pooling.
WAITS = ("wi", "wi_bias", "scale", "a", "embedding_update_b", "pooling_b")
CLASSIFICATION = functools.partial(
    total_loss, language_modelling_weight=0.0, classification_weight=1.0
)


def read(file: Path, size: str = "mini", *bindings: str) -> tuple[ModelConfig, str]:
    """The model's configuration, and what trains; nothing stays configured."""
    with gin.unlock_config():
        configuration.parse_config(
            [f"gin_configs/models/{size}.gin", f"gin_configs/tuning/{file.name}"],
            [f"NUM_OPTIONS = {CLASSES}", *bindings],
        )
        found = configuration.macro("MODEL").config, configuration.macro("TRAINABLE")
        gin.clear_config()
    return found


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_mini(name: str) -> None:
    config, trainable = read(Path(f"{name}.gin"))
    table = count_parameters(config, trainable)
    assert table.count("prompts") == COUNTS[name]
    assert table.count("backbone") == 1_836_800
    assert (table.trainable_share > 1) == (trainable == "all") == (name == "full")
    if name in ("option_adapter", "option_embedding", "lora"):
        assert table.trainable_share == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "base", "large", "xl"])
def test_lora_is_about_one_percent_of_every_size(size: str) -> None:
    config, trainable = read(Path("lora.gin"), size)
    assert count_parameters(config, trainable).trainable_share == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_initial_values_are_set_by_macros(file: Path) -> None:
    """A job's words are those of the head."""
    words = ("no", "yes")
    with gin.unlock_config():
        configuration.parse_config(
            [
                "gin_configs/models/mini.gin",
                f"gin_configs/tuning/{file.name}",
                "gin_configs/recipes/scoring.gin",
            ],
            [
                f"NUM_OPTIONS = {CLASSES}",
                f"OPTION_WORDS = {words}",
                *(f"{name} = None" for name in ("MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS")),
                *(f"{name} = None" for name in ("MODEL_DIR", "TRAIN_STEPS")),
            ],
        )
        assert configuration.bound("Start.options") == words
        gin.clear_config()


def test_the_page_shows_what_is_printed() -> None:
    """docs/tuning.md: the output of `m6rec params`, and the share of every method."""
    page = (FILES[0].parents[2] / "docs" / "tuning.md").read_text()
    names = ["models/foundation", "tuning/option_adapter", "data/movielens-100k/scoring"]
    with gin.unlock_config():
        files = [f"gin_configs/{name}.gin" for name in names]
        configuration.parse_config(files, ["MODEL_DIR = 'x'"])
        config = configuration.macro("MODEL").config
        table = count_parameters(config, configuration.macro("TRAINABLE"), None)
        assert table.render() in page
        rows = [re.match(r"\| `(\w+\.gin)` .*\| (.*) \|$", line) for line in page.splitlines()]
        told = {row[1]: row[2] for row in rows if row}
        assert {f"{name}.gin" for name in COUNTS} <= told.keys()
        for file, share in told.items():
            configuration.parse_config(
                ["gin_configs/models/foundation.gin", f"gin_configs/tuning/{file}"],
                ["NUM_OPTIONS = 5"],
            )
            config = configuration.macro("MODEL").config
            table = count_parameters(config, configuration.macro("TRAINABLE"))
            assert share == f"{table.trainable_share:.2%}"
        gin.clear_config()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_that_trains_learns(file: Path) -> None:
    """At the start, or as soon as what follows is not zero."""
    config, trainable = read(file, "mini", *TINY)
    model, batch = M6Rec(config), toy_batch(np.random.default_rng(0), 4)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), batch))
    groups = variables if trainable == "all" else {"prompts": variables["prompts"]}
    assert set(groups) == ({"params", "prompts"} if file.stem == "full" else {"prompts"})

    @jax.jit
    @jax.grad
    def gradient(groups: Any) -> Any:
        return mean_loss(CLASSIFICATION(model, {**variables, **groups}, batch)[0])

    prompts = set(flatten(groups["prompts"]))
    waits = {name for name in prompts if name.split("/")[-1] in WAITS}
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, groups)
    for at, expected in ((groups, prompts - waits), (shifted, prompts)):
        found = flatten(gradient(at)["prompts"])
        assert {name for name, leaf in found.items() if np.any(leaf)} == expected
