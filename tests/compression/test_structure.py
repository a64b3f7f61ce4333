"""What is dropped was of no effect; what is dropped first is what the loss hardly depends on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax import edge_demo
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.cli import main
from m6rec_jax.compression import structure
from m6rec_jax.compression.structure import Sizes, compressed, gate_derivatives
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.model_folder import load_model, variable_targets
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.tuning.lora import TARGETS
from m6rec_jax.objectives import mean_loss, total_loss
from tests.training.toy_run import toy_batch, toy_config

CONFIG = toy_config(
    num_encoder_layers=3,
    num_decoder_layers=3,
    num_heads=4,
    head_dim=3,
    mlp_dim=10,
    dropout_rate=0.0,
    prompts=PromptConfig(
        num_prompts=2,
        num_options=2,
        head="option",
        adapter_rank=2,
        lora_rank=2,
        lora_targets=TARGETS,
        ia3_targets=("key", "value", "hidden"),
        special_token_ids=(1, 2),
    ),
)
BATCH = toy_batch(np.random.default_rng(3), 4)


def variables_of(config: ModelConfig) -> dict[str, Any]:
    """Random, without a zero."""
    rng = np.random.default_rng(1)
    return {
        collection: jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32), tree
        )
        for collection, tree in variable_targets(M6Rec(config)).items()
    }


def states(config: ModelConfig, variables: Any) -> np.ndarray:
    return np.asarray(M6Rec(config).apply(variables, BATCH).hidden)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_layer_relative_bias": True},
        {"late_layers_start": 2, "decoder_late_start": 1},
        {"share_layers": True},
    ],
    ids=["one table of biases", "a table per layer", "late interaction", "shared layers"],
)
def test_dropping_what_has_no_effect_changes_nothing(changes: dict[str, Any]) -> None:
    config = CONFIG.replace(**changes)
    variables = flatten(variables_of(config))
    by_layer = config.per_layer_relative_bias
    for name, leaf in variables.items():
        prompts = name.startswith("prompts")
        for layer in range(len(leaf)) if "/layers/" in name else ():
            one = leaf[layer, 0] if prompts else leaf[layer]
            if name.endswith(("out/kernel", "lora_out/a")):
                # Two of four heads, others in each layer where the layer may choose.
                free = not config.share_layers and (by_layer or "cross_attention" in name)
                one[[layer % 2, 2 + layer % 2] if free else [0, 3]] = 0
            elif name.endswith("wo/kernel"):
                one[layer : layer + 4] = 0
            if (
                layer == 1
                and not config.share_layers
                and name.endswith(
                    ("out/kernel", "lora_out/a", "wo/kernel", "adapter/wo", "adapter/wo_bias")
                )
            ):
                one[:] = 0
    variables = nested(variables)
    sizes = Sizes(2, 6) if config.share_layers else Sizes(2, 6, 2, 2)
    importance = structure._importance_of_weights(variables)
    smaller, found = compressed(config, variables, importance, sizes)
    assert (smaller.num_heads, smaller.mlp_dim) == (2, 6)
    if config.late_layers_start:
        assert (smaller.late_layers_start, smaller.first_cross_layer) == (1, 1)
    np.testing.assert_allclose(
        states(smaller, found), states(config, variables), rtol=1e-5, atol=1e-5
    )


def test_importance_is_the_derivative_by_a_gate() -> None:
    model, variables = M6Rec(CONFIG), variables_of(CONFIG)
    found = gate_derivatives(model, variables, BATCH)
    head = ("decoder", "cross_attention", 2, 3, ("out/kernel", "lora_out/a"))
    column = ("encoder", "mlp", 1, 5, ("wo/kernel",))
    for tower, part, layer, number, ways_out in (head, column):

        def loss(gate: float, chosen: Any = (tower, part, layer, number, ways_out)) -> float:
            tower, part, layer, number, ways_out = chosen
            gated = {name: leaf.copy() for name, leaf in flatten(variables).items()}
            for name, leaf in gated.items():
                if f"{tower}/layers/{part}/" in name and name.endswith(ways_out):
                    one = leaf[layer, 0] if name.startswith("prompts") else leaf[layer]
                    one[number] *= gate
            return float(mean_loss(total_loss(model, nested(gated), BATCH)[0]))

        numeric = (loss(1.02) - loss(0.98)) / 0.04
        assert numeric == pytest.approx(float(found[tower, part][layer, number]), rel=0.03)


def test_a_folder_that_loads(served: Path, tmp_path: Path) -> None:
    sizes = ["--heads", "1", "--mlp-dim", "32", "--encoder-layers", "1", "--batches", "0"]
    shutil.copytree(served / "run", tmp_path / "run")
    # As gin breaks a line that is too long.
    settings = "MODEL_DIR = \\\n    'runs/ctr'\nModelConfig.num_heads = 2\n"
    (tmp_path / "run" / CONFIG_FILE).write_text(settings)
    arguments = ["compress", "structure", str(tmp_path / "run")]
    assert main([*arguments, "--output", str(tmp_path / "small"), *sizes]) == 0
    settings = (tmp_path / "small" / CONFIG_FILE).read_text()
    assert settings.splitlines()[0] == f"MODEL_DIR = {str(tmp_path / 'small')!r}"
    assert "num_heads = 1" in settings
    found = load_model(tmp_path / "small")
    config = found.model.config
    assert dataclasses.astuple(Sizes(1, 32, 1, 2)) == (
        *(config.num_heads, config.mlp_dim),
        *(config.num_encoder_layers, config.num_decoder_layers),
    )
    scores = found.scorer("ctr").score_requests([["liked a film"]], [["Heat", "Alien"]])
    assert np.isfinite(scores[0]).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--heads", "9", "--batches", "0"], "num_heads = 9: the model has 2"),
        (["--heads", "1"], "has no config.gin"),
        (["--heads", "1", "--batches", "0", "--gin.BATCH_SIZE=2"], "--batches 0 reads no data"),
        (["--heads", "1", "--batches", "0"], "films.m6rec is a file: if it is packed"),
    ],
)
def test_what_does_not_fit_is_refused(
    given: list[str], said: str, served: Path, tmp_path: Path, capsys: Any
) -> None:
    run = edge_demo.MODEL if "packed" in said else served / "run"
    arguments = ["compress", "structure", str(run), "--output", str(tmp_path / "small")]
    assert main([*arguments, *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
