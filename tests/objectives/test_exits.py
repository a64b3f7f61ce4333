"""Losses at every exit: against the model cut off there, and what is left alone when off."""

from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.model import M6Rec
from m6rec_jax.objectives import mean_loss, total_loss
from m6rec_jax.objectives.classification import classification_loss
from m6rec_jax.objectives.language_modelling import language_modelling_loss
from tests.objectives.conftest import CONFIG, Features, made

DEEP = CONFIG.replace(num_decoder_layers=3, scan_unroll=1)
# 2k / (L(L + 1)), and 2k / (k(k + 1)) divided by its sum.
WEIGHTS = {
    "rising": np.array([1, 2, 3]) / 6,
    "falling": np.array([1, 2 / 3, 1 / 2]) / (1 + 2 / 3 + 1 / 2),
}
OBJECTIVES = {"language_modelling_weight": 1.0, "classification_weight": 0.5}


@pytest.fixture(scope="module")
def variables(features: Features) -> dict[str, Any]:
    return made(DEEP, features, 1)


def cut_off(variables: dict[str, Any], num_layers: int) -> tuple[M6Rec, dict[str, Any]]:
    """The model of the first decoder layers alone: a forward pass of another program."""
    params = dict(variables["params"])
    layers = params["decoder"]["layers"]
    params["decoder"] = params["decoder"] | {
        "layers": jax.tree.map(lambda leaf: leaf[:num_layers], layers)
    }
    return M6Rec(DEEP.replace(num_decoder_layers=num_layers)), variables | {"params": params}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_the_loss_is_that_of_models_cut_off_at_each_layer(
    variables: dict[str, Any], features: Features, weighting: str
) -> None:
    losses: dict[str, list[float]] = {"language_modelling": [], "classification": []}
    for num_layers in (1, 2, 3):
        model, own = cut_off(variables, num_layers)
        outputs = jax.jit(model.apply)(own, features)
        for name, loss in (
            ("language_modelling", language_modelling_loss),
            ("classification", classification_loss),
        ):
            found, _ = jax.jit(loss, static_argnums=0)(model, own, outputs, features)
            losses[name].append(float(found.total) / float(found.count))
    model = M6Rec(DEEP.replace(exit_losses=weighting))
    compute = jax.jit(lambda own: total_loss(model, own, features, **OBJECTIVES))
    terms, metrics = compute(variables)
    weighted = {name: WEIGHTS[weighting] @ values for name, values in losses.items()}
    expected = weighted["language_modelling"] + 0.5 * weighted["classification"]
    assert float(mean_loss(terms)) == pytest.approx(expected, rel=1e-5)
    for name, values in losses.items():
        assert float(metrics[f"{name}/loss"].mean()) == pytest.approx(values[-1], rel=1e-5)
        over_exits = float(metrics[f"{name}/loss_over_exits"].mean())
        assert over_exits == pytest.approx(weighted[name], rel=1e-5)


def test_logits_of_one_exit_exist_at_a_time(variables: dict[str, Any], features: Features) -> None:
    """Language modelling would otherwise hold a vocabulary for every layer."""
    model = M6Rec(DEEP.replace(exit_losses="rising"))

    def loss(variables: Any) -> Any:
        return mean_loss(total_loss(model, variables, features)[0])

    program = str(jax.make_jaxpr(jax.grad(loss))(variables))
    rows, target = features["decoder_labels"].shape
    assert f"f32[{rows},{target},24]" in program
    assert f"f32[3,{rows},{target},24]" not in program
