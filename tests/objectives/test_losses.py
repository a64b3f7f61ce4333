"""Each loss against plain numpy loops, and what the total leaves out, adds up and refuses."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, Outputs
from m6rec_jax.objectives import Sum, language_modelling, mean_loss, total_loss
from m6rec_jax.objectives.classification import classification_loss
from m6rec_jax.objectives.contrastive import contrastive_loss, known_positives, retrieval_items
from m6rec_jax.objectives.language_modelling import language_modelling_loss, token_cross_entropy
from tests.objectives.conftest import CONFIG, ROWS, TARGET, Features


@pytest.fixture(scope="module")
def outputs(variables: dict[str, Any], features: Features) -> Outputs:
    return jax.jit(M6Rec(CONFIG).apply)(variables, features)


def mean(sums: Sum) -> float:
    return float(sums.total) / float(sums.count)


@pytest.mark.parametrize("chunk_length", [0, 4, 3, 100])
def test_language_modelling(
    variables: dict[str, Any],
    outputs: Outputs,
    features: Features,
    chunk_length: int,
) -> None:
    kernel = variables["params"]["logits_head"]["kernel"].astype(np.float64)
    hidden = np.asarray(outputs.hidden, np.float64)
    total, right, count = 0.0, 0.0, 0.0
    for row in range(ROWS):
        for place in range(TARGET):
            logits = hidden[row, place] @ kernel
            target = features["decoder_target_tokens"][row, place]
            weight = float(features["decoder_loss_weights"][row, place])
            normaliser = math.log(np.exp(logits).sum())
            total += weight * (normaliser - logits[target])
            right += weight * (np.argmax(logits) == target)
            count += weight
    loss, metrics = language_modelling_loss(
        M6Rec(CONFIG), variables, outputs, features, chunk_length=chunk_length
    )
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert float(loss.count) == pytest.approx(count)
    assert mean(metrics["language_modelling/loss"]) == pytest.approx(total / count, rel=1e-5)
    assert mean(metrics["language_modelling/accuracy"]) == pytest.approx(right / count)


def test_token_cross_entropy_gradient() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 7)).astype(np.float32)
    targets, weights = rng.integers(0, 7, (3, 4)), rng.normal(size=(3, 4)).astype(np.float32)

    def plain(logits: Any) -> Any:
        log_probabilities = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * -chosen)

    expected = jax.grad(plain)(logits)
    actual = jax.grad(lambda x: jnp.sum(weights * token_cross_entropy(x, targets)))(logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("one_device", [True, False])
def test_chunks_do_not_change_gradients(
    variables: dict[str, Any],
    outputs: Outputs,
    features: Features,
    one_device: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither in the order of the weights nor, as on several devices, in that of the rows."""
    monkeypatch.setattr(language_modelling, "_on_one_device", lambda: one_device)

    def gradient(chunk_length: int) -> Any:
        def loss(variables: Any, hidden: Any) -> Any:
            changed = Outputs(outputs.encoded, hidden)
            return language_modelling_loss(
                M6Rec(CONFIG), variables, changed, features, chunk_length=chunk_length
            )[0].total

        return jax.jit(jax.grad(loss, (0, 1)))(variables, outputs.hidden)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradient(4),
        gradient(0),
    )


def test_chunks_without_a_weight_are_left_out() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(3, 7)).astype(np.float32)
    weights = np.zeros((3, 7), np.float32)
    weights[[0, 1, 2, 2, 2], [6, 3, 0, 1, 5]] = rng.random(5).astype(np.float32) + 0.5
    ran: list[int] = []

    def function(_: None, values: Any, unused: Any, weights: Any) -> Any:
        jax.debug.callback(lambda: ran.append(1))
        return jnp.sum(values * weights)

    arrays = language_modelling._weighted_first([values, values, weights])
    total = language_modelling._in_chunks(function, 4, None, arrays, skip=True)
    jax.effects_barrier()
    assert float(total) == pytest.approx(float((values * weights).sum()), rel=1e-5)
    assert len(ran) == 2, "five positions, four in a chunk"


def test_classification(variables: dict[str, Any], outputs: Outputs, features: Features) -> None:
    prompts = variables["prompts"]["bank"]["soft_prompts"][0].astype(np.float64)
    hidden = np.asarray(outputs.hidden, np.float64)
    total, right = 0.0, 0
    for row, place, label in ((1, 4, 2), (1, 8, 0)):
        logits = hidden[row, place] @ prompts[-3:].T / math.sqrt(8)
        total += math.log(np.exp(logits).sum()) - float(logits[label])
        right += int(np.argmax(logits) == label)
    loss, metrics = classification_loss(M6Rec(CONFIG), variables, outputs, features)
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert float(loss.count) == 2
    assert mean(metrics["classification/accuracy"]) == right / 2


def test_a_task_with_fewer_classes(
    variables: dict[str, Any], outputs: Outputs, features: Features
) -> None:
    """With two of three classes the options are the last two prompts and the loss is theirs."""
    labels = np.minimum(features["decoder_labels"], 1)
    given = {**features, "decoder_labels": labels}
    two, of_three = (
        M6Rec(CONFIG.replace(prompts=dataclasses.replace(CONFIG.prompts, **sizes)))
        for sizes in ({"num_options": 2}, {"task_num_options": (2,)})
    )
    loss, _ = classification_loss(of_three, variables, outputs, given)
    expected, _ = classification_loss(two, variables, outputs, given)
    assert float(loss.total) == pytest.approx(float(expected.total), rel=1e-5)


def test_a_task_without_classes(
    variables: dict[str, Any], outputs: Outputs, features: Features
) -> None:
    """Beside scoring tasks in a batch: it adds nothing, and no NaN to the gradient."""
    prompts = dataclasses.replace(CONFIG.prompts, task_num_options=(0,))
    given = {**features, "decoder_labels": np.full_like(features["decoder_labels"], -1)}

    def total(prompts_of: Any) -> Any:
        loss, _ = classification_loss(
            M6Rec(CONFIG.replace(prompts=prompts)),
            {**variables, "prompts": prompts_of},
            outputs,
            given,
        )
        return loss.total

    value, gradient = jax.value_and_grad(total)(variables["prompts"])
    assert float(value) == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.fixture
def order_discount() -> Iterator[float]:
    """A discount that gin sets."""
    with gin.unlock_config():
        gin.bind_parameter("retrieval_items.order_discount", 0.7)
    yield 0.7
    gin.clear_config()


@pytest.mark.parametrize("correct_frequency", [False, True])
def test_contrastive(
    variables: dict[str, Any], outputs: Outputs, features: Features, correct_frequency: bool
) -> None:
    """Only retrieval rows; not the same item, not what the same user chose elsewhere."""
    check_contrastive(variables, outputs, features, correct_frequency, discount=0.0)


def test_contrastive_counts_later_items_less(
    variables: dict[str, Any], outputs: Outputs, features: Features, order_discount: float
) -> None:
    check_contrastive(variables, outputs, features, False, order_discount)


def test_contrastive_keeps_data_sets_apart(
    variables: dict[str, Any], outputs: Outputs, features: Features
) -> None:
    """Two catalogues under one prompt: user 5 and item 3 of one are not those of the other.

    Rows 0 and 3 are of one data set, rows 2 and 4 of the other, where item 1 is a negative of the
    user of row 2, though the user of row 0 chose an item 1 and has the same number.
    """
    job_ids = np.repeat(np.array([[11], [-1], [22], [11], [22]], np.int32), TARGET, axis=1)
    item_ids = features["decoder_item_ids"].copy()
    item_ids[4, 2] = 1
    mixed = {
        **features,
        "decoder_job_ids": job_ids,
        "decoder_item_ids": item_ids,
        "user_ids": np.array([[5], [1], [5], [6], [6]], np.int32),
    }
    check_contrastive(variables, outputs, mixed, correct_frequency=True, discount=0.0)


def test_contrastive_keeps_prompts_apart(
    variables: dict[str, Any], outputs: Outputs, features: Features
) -> None:
    """Without jobs, rows of other prompts are another job's."""
    task_ids = np.array([[0], [0], [1], [1], [0]], np.int32)

    def total(changes: Features) -> float:
        loss, _ = contrastive_loss(M6Rec(CONFIG), variables, outputs, {**features, **changes})
        return float(loss.total)

    apart = [
        total({"retrieval": np.where(task_ids == task, features["retrieval"], 0)})
        for task in (0, 1)
    ]
    assert total({"task_ids": task_ids}) == pytest.approx(sum(apart), rel=1e-5)
    assert total({}) != pytest.approx(sum(apart), rel=1e-2)


def check_contrastive(
    variables: dict[str, Any],
    outputs: Outputs,
    features: Features,
    correct_frequency: bool,
    discount: float,
) -> None:
    """The loss against a loop in float64; users and items are known by job and number."""
    bank = {name: leaf[0].astype(np.float64) for name, leaf in variables["prompts"]["bank"].items()}
    hidden = np.asarray(outputs.hidden, np.float64)
    encoded = np.asarray(outputs.encoded.hidden, np.float64)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x)

    jobs = features.get("decoder_job_ids", np.zeros((ROWS, TARGET), np.int32))[:, 0].tolist()
    users = [(jobs[row], int(features["user_ids"][row, 0])) for row in range(ROWS)]
    items = [
        (row, (jobs[row], int(features["decoder_item_ids"][row, place])), place)
        for row in (0, 2, 3, 4)
        for place in range(TARGET)
        if features["decoder_item_ids"][row, place] >= 0
    ]
    assert len(items) == 6
    chosen: dict[Any, set[Any]] = {}
    for row, item, _ in items:
        chosen.setdefault(users[row], set()).add(item)
    total = right = count = 0.0
    place_in_row = [
        sum(other[0] == row for other in items[:n]) for n, (row, *_) in enumerate(items)
    ]
    for (row, _, place), before in zip(items, place_in_row, strict=True):
        weight = (1 + before) ** -discount
        count += weight
        user = unit(encoded[row, -1] @ bank["user_projection"])

        def score(other_row: int, other_place: int, user: np.ndarray = user) -> float:
            vector = unit(hidden[other_row, other_place] @ bank["item_projection"])
            value = float(user @ vector) / 0.07
            if correct_frequency:
                value -= float(features["decoder_item_log_frequency"][other_row, other_place])
            return value

        negatives = [
            score(other_row, other_place)
            for other_row, other, other_place in items
            if jobs[other_row] == jobs[row] and other_row != row and other not in chosen[users[row]]
        ]
        positive = score(row, place)
        total += weight * math.log(sum(math.exp(n - positive) for n in negatives) + 1.0)
        right += weight * (positive > max(negatives))
    loss, metrics = contrastive_loss(
        M6Rec(CONFIG), variables, outputs, features, correct_frequency=correct_frequency
    )
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert float(loss.count) == pytest.approx(count)
    assert mean(metrics["contrastive/accuracy"]) == pytest.approx(right / count)
    assert float(metrics["contrastive/dropped_share"].total) == 0


def test_items_beyond_the_limit_are_counted(
    variables: dict[str, Any], outputs: Outputs, features: Features
) -> None:
    gin.bind_parameter("retrieval_items.max_items_per_row", 2)
    _, metrics = contrastive_loss(M6Rec(CONFIG), variables, outputs, features)
    gin.clear_config()
    assert mean(metrics["contrastive/dropped_share"]) == pytest.approx(1 / 6)
    items = retrieval_items(features, max_items_per_row=2)
    assert items.ids.shape == (ROWS, 2)
    assert items.ids[0].tolist() == [3, 7]
    assert items.valid.tolist() == [[True, True], [False, False], *[[True, False]] * 3]
    assert float(items.dropped) == 1


def test_items_beyond_the_limit_are_no_negatives_of_who_chose_them() -> None:
    chosen = np.array([[7, -1, 8, -1], [8, -1, -1, -1]], np.int32)
    features = {"decoder_item_ids": chosen, "retrieval": np.ones((2, 1), np.int32)}
    items = retrieval_items(features, max_items_per_row=1)
    assert items.ids.tolist() == [[7], [8]]
    known = known_positives(items, np.array([0, 1]), np.array([0, 0]))
    assert known.tolist() == [[True, True], [False, True]]


def test_a_lone_row_has_no_negatives(
    variables: dict[str, Any], outputs: Outputs, features: Features
) -> None:
    retrieval = np.array([[0], [0], [0], [1], [1]], np.int32)  # rows 3 and 4 are one user
    alone = {**features, "retrieval": retrieval}

    def loss(hidden: Any) -> Any:
        changed = Outputs(outputs.encoded, hidden)
        return contrastive_loss(M6Rec(CONFIG), variables, changed, alone)[0].total

    value, gradient = jax.value_and_grad(loss)(outputs.hidden)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_total_is_the_weighted_sum_of_means(
    variables: dict[str, Any], outputs: Outputs, features: Features
) -> None:
    model = M6Rec(CONFIG)
    parts = [
        mean(loss(model, variables, outputs, features)[0])
        for loss in (language_modelling_loss, classification_loss, contrastive_loss)
    ]
    weights = {
        "language_modelling_weight": 0.5,
        "classification_weight": 2.0,
        "contrastive_weight": 3.0,
    }
    terms, metrics = jax.jit(lambda v: total_loss(model, v, features, **weights))(variables)
    assert float(mean_loss(terms)) == pytest.approx(np.dot(parts, [0.5, 2.0, 3.0]), rel=1e-5)
    assert {name.split("/")[0] for name in metrics} == {
        "language_modelling",
        "classification",
        "contrastive",
    }


def test_an_objective_of_weight_zero_is_not_computed(
    variables: dict[str, Any], features: Features
) -> None:
    """No array as wide as the vocabulary but the embedding, whatever else the step does."""

    def program(**weights: float) -> str:
        step = jax.jit(lambda v: total_loss(M6Rec(CONFIG), v, features, **weights)[0])
        return step.lower(variables).as_text()

    logits = f"tensor<{ROWS}x{TARGET}x24xf32>"
    assert logits in program()
    classification_only = program(language_modelling_weight=0.0, classification_weight=1.0)
    assert logits not in classification_only


def test_an_empty_objective_gives_zero(variables: dict[str, Any], features: Features) -> None:
    empty = {**features, "decoder_labels": np.full((ROWS, TARGET), -1, np.int32)}
    terms, metrics = total_loss(
        M6Rec(CONFIG), variables, empty, language_modelling_weight=0.0, classification_weight=1.0
    )
    assert float(mean_loss(terms)) == 0
    assert float(metrics["classification/loss"].mean()) == 0


@pytest.mark.parametrize(
    ("weights", "drop", "message"),
    [
        ({"language_modelling_weight": 0.0}, None, "nothing to train on"),
        ({"classification_weight": -1.0}, None, "classification_weight = -1.0 is negative"),
        ({"classification_weight": 1.0}, "decoder_labels", "needs the feature 'decoder_labels'"),
        ({"contrastive_weight": 1.0}, "retrieval", "needs the feature 'retrieval'"),
    ],
)
def test_errors(
    variables: dict[str, Any],
    features: Features,
    weights: dict[str, float],
    drop: str | None,
    message: str,
) -> None:
    given = {name: values for name, values in features.items() if name != drop}
    with pytest.raises(ConfigError, match=message):
        total_loss(M6Rec(CONFIG), variables, given, **weights)
