"""Different ways to compute one thing agree: loops, caching, task banks, packed rows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.model import Encoded, M6Rec, ModelConfig
from m6rec_jax.model.attention import KeyValue

Make = Callable[..., dict[str, Any]]
Features = dict[str, np.ndarray]


def close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def jitted(model: M6Rec, method: Callable[..., Any] | None = None) -> Callable[..., Any]:
    return jax.jit(lambda *args, **kwargs: model.apply(*args, method=method, **kwargs))


def loss(config: ModelConfig, features: Features, **options: Any) -> Callable[[Any], Any]:
    def compute(variables: Any) -> Any:
        outputs = M6Rec(config).apply(variables, features, **options)
        real = features["decoder_block_ids"][..., None] > 0
        return jnp.sum(jnp.sin(outputs.hidden) * real)

    return compute


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_unroll": 0},
        {"remat": "full"},
        {"remat": "dots", "scan_unroll": 2},
        {"remat": "full", "matmul_dtype": "bfloat16", "share_layers": True},
    ],
)
def test_unrolled_and_rematerialised_equal_scanned(
    config: ModelConfig, make_variables: Make, features: Features, changes: dict[str, Any]
) -> None:
    scanned = config.replace(
        **{k: v for k, v in changes.items() if k in ("matmul_dtype", "share_layers")}
    )
    variables = make_variables(scanned)
    expected = jax.jit(jax.value_and_grad(loss(scanned, features)))(variables)
    actual = jax.jit(jax.value_and_grad(loss(config.replace(**changes), features)))(variables)
    tolerance = 1e-3 if "matmul_dtype" in changes else 5e-5
    jax.tree.map(lambda a, e: close(a, e, tolerance), actual, expected)


def test_rematerialisation_saves_memory(features: Features) -> None:
    config = ModelConfig(
        vocab_size=32,
        embed_dim=32,
        num_encoder_layers=8,
        num_decoder_layers=1,
        num_heads=2,
        head_dim=16,
        mlp_dim=128,
    )
    wide = {name: np.tile(values, (8, 1)) for name, values in features.items()}

    def memory(remat: str) -> int:
        model = M6Rec(config.replace(remat=remat))
        variables = jax.eval_shape(model.init, jax.random.key(0), wide)
        step = jax.jit(jax.grad(loss(model.config, wide)))
        analysis: Any = step.lower(variables).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    full, dots, none = map(memory, ("full", "dots", "none"))
    assert full < 0.5 * none
    assert full < dots < none


@pytest.mark.parametrize("num_segment_embeddings", [0, 3])
def test_cached_segments_equal_one_pass(
    config: ModelConfig, make_variables: Make, features: Features, num_segment_embeddings: int
) -> None:
    """Every segment computed in a row of its own, at another length, then put together."""
    prompts = dataclasses.replace(config.prompts, num_segment_embeddings=num_segment_embeddings)
    config = config.replace(prompts=prompts)
    variables, model = make_variables(config), M6Rec(config)
    tokens, blocks = features["encoder_input_tokens"], features["encoder_block_ids"]
    task_ids = features["task_ids"]
    expected = jitted(model, model.encode)(variables, tokens, blocks, task_ids)
    encode_segments = jitted(model, model.encode_segments)
    cached = np.zeros((*tokens.shape, config.embed_dim), np.float32)
    for row in range(3):
        for block in range(1, blocks[row].max() + 1):
            here = blocks[row] == block
            segment = np.zeros((1, 7), np.int32)
            segment[0, : here.sum()] = tokens[row][here]
            ids = (np.arange(7) < here.sum())[None].astype(np.int32)
            hidden = encode_segments(variables, segment, ids, np.zeros((1,), np.int32))
            cached[row][here] = hidden[0, : here.sum()]
    soft = np.tile(-1 - np.arange(config.prompts.num_prompts, dtype=np.int32), (3, 1))
    prompts = encode_segments(variables, soft, np.ones_like(soft), task_ids)
    hidden = np.concatenate([prompts, cached], axis=1)
    actual = jitted(model, model.encode_late)(variables, hidden, blocks, task_ids)
    np.testing.assert_array_equal(actual.mask, expected.mask)
    close(np.asarray(actual.hidden)[expected.mask], np.asarray(expected.hidden)[expected.mask])


@pytest.mark.parametrize("late_layers_start", [0, 2])
def test_ends_alone_equal_one_pass(
    config: ModelConfig, make_variables: Make, features: Features, late_layers_start: int
) -> None:
    """Each candidate by itself, moved to the right, at another length than in its row."""
    config = config.replace(cross_attention_at="ends", late_layers_start=late_layers_start)
    variables, model = make_variables(config), M6Rec(config)
    rows = {name: values[:2] for name, values in features.items() if name != "retrieval"}
    outputs = jitted(model)(variables, rows)
    tokens, blocks = rows["decoder_input_tokens"], rows["decoder_block_ids"]
    hidden, keys = jitted(model, model.candidate_states)(
        variables, tokens, blocks, rows["task_ids"]
    )
    ends = [np.flatnonzero(np.diff(own, append=0) != 0) for own in blocks]
    ends = [own[blocks[row][own] > 0] for row, own in enumerate(ends)]
    # The first row has three candidates; the second has one, and is told to have three.
    places = [(0, end) for end in ends[0]] + [(1, ends[1][0])] * 3
    length = 8
    late, _, heads, _, width = keys.key.shape
    past = [np.zeros((late, 6, heads, length, width), np.float32) for _ in keys]
    visible = np.zeros((6, length), bool)
    for k, (row, end) in enumerate(places):
        own = np.flatnonzero(blocks[row] == blocks[row][end])
        visible[k, length - len(own) :] = True
        for part, values in zip(past, keys, strict=True):
            part[:, k, :, length - len(own) :] = values[:, row][:, :, own]
    found = jitted(model, model.decode_ends)(
        variables,
        outputs.encoded,
        np.stack([hidden[place] for place in places]),
        KeyValue(*past),
        visible,
        rows["task_ids"],
    )
    close(found, np.stack([outputs.hidden[place] for place in places]))
    everywhere = jitted(M6Rec(config.replace(cross_attention_at="all")))(variables, rows)
    assert not np.allclose(outputs.hidden, everywhere.hidden, atol=1e-3)


def test_decoder_early_layers_do_not_depend_on_the_source(
    config: ModelConfig, make_variables: Make, features: Features
) -> None:
    assert config.first_cross_layer == 1
    variables, model = make_variables(config), M6Rec(config)
    names = ("decoder_input_tokens", "decoder_block_ids", "task_ids")
    inputs = [features[name] for name in names]
    early = jitted(model, model.decode_early)(variables, *inputs)
    outputs = jitted(model)(variables, features)
    use_source = features["retrieval"][:, 0] == 0
    decode_late = jitted(model, model.decode_late)
    late = decode_late(variables, outputs.encoded, early, *inputs[1:], use_source=use_source)
    close(late, outputs.hidden)


@pytest.mark.parametrize("changes", [{}, {"share_layers": True, "scan_unroll": 0}], ids=str)
def test_mixed_tasks_equal_each_alone(
    every_method: ModelConfig, make_variables: Make, features: Features, changes: dict[str, Any]
) -> None:
    """Three tasks in one batch of a bank of three = three banks of one."""
    config = every_method.replace(**changes)
    bank_config = config.replace(prompts=dataclasses.replace(config.prompts, num_tasks=3))
    variables = make_variables(bank_config)
    task_ids = np.array([[2], [0], [1]], np.int32)
    mixed = {**features, "task_ids": task_ids}
    model = M6Rec(bank_config)
    outputs = jitted(model)(variables, mixed)
    heads = (
        model.apply(variables, outputs.hidden, task_ids, method=model.option_logits),
        model.apply(variables, outputs.encoded, task_ids, method=model.user_embedding),
        model.apply(variables, outputs.hidden, task_ids, method=model.item_embedding),
    )

    def only(task: int) -> Callable[[Any, np.ndarray], np.ndarray]:
        def pick(path: Any, leaf: np.ndarray) -> np.ndarray:
            return leaf[:, task : task + 1] if "layers" in str(path) else leaf[task : task + 1]

        return pick

    model = M6Rec(config)
    apply = jitted(model)
    for row, task in enumerate(task_ids[:, 0]):
        prompts = jax.tree_util.tree_map_with_path(only(task), variables["prompts"])
        single = {"params": variables["params"], "prompts": prompts}
        expected = apply(single, features)
        zeros = np.zeros((3, 1), np.int32)
        close(outputs.hidden[row], expected.hidden[row])
        close(outputs.encoded.hidden[row], expected.encoded.hidden[row])
        for head, (method, of) in zip(
            heads,
            [
                (model.option_logits, expected.hidden),
                (model.user_embedding, expected.encoded),
                (model.item_embedding, expected.hidden),
            ],
            strict=True,
        ):
            close(head[row], model.apply(single, of, zeros, method=method)[row])


@pytest.mark.parametrize("late_layers_start", [0, 2])
@pytest.mark.parametrize("sizes_in", ["config", "variables"])
def test_a_small_task_in_a_large_bank_equals_itself_alone(
    every_method: ModelConfig,
    make_variables: Make,
    features: Features,
    late_layers_start: int,
    sizes_in: str,
) -> None:
    """A task of 3 prompts, 2 options, ranks 1 padded into a bank of 4, 3 and 2."""
    ranks = {"adapter_rank": 1, "lora_rank": 1, "pooling_rank": 1}
    large_config = every_method.replace(late_layers_start=late_layers_start)
    small = dataclasses.replace(large_config.prompts, num_prompts=3, num_options=2, **ranks)
    small_config = large_config.replace(prompts=small)
    if sizes_in == "config":
        sizes = {"task_num_prompts": (3,), "task_num_options": (2,)}
        prompts = dataclasses.replace(large_config.prompts, **sizes)
        large_config = large_config.replace(prompts=prompts)
    variables = make_variables(small_config)

    def pad(path: Any, leaf: np.ndarray, like: np.ndarray) -> np.ndarray:
        front = "soft_prompts" in str(path)
        widths = [
            (b - a, 0) if front else (0, b - a) for a, b in zip(leaf.shape, like.shape, strict=True)
        ]
        # Soft prompts that do not count may be anything.
        return np.pad(leaf, widths, constant_values=7.0 if front else 0.0)

    padded = {
        "params": variables["params"],
        "prompts": jax.tree_util.tree_map_with_path(
            pad, variables["prompts"], make_variables(large_config)["prompts"]
        ),
    }
    if sizes_in == "variables":
        counts = {"num_prompts": np.array([3], np.int32), "num_options": np.array([2], np.int32)}
        padded["task_sizes"] = {"bank": counts}
    task_ids = features["task_ids"]
    large, alone = M6Rec(large_config), M6Rec(small_config)

    def both(variables: Any) -> Any:
        outputs = large.apply(variables, features)
        logits = large.apply(variables, outputs.hidden, task_ids, method=large.option_logits)
        return outputs.hidden, jax.nn.softmax(logits)

    expected = jitted(alone)(variables, features).hidden
    hidden, probabilities = jax.jit(both)(padded)
    real = features["decoder_block_ids"] > 0
    close(np.asarray(hidden)[real], np.asarray(expected)[real])
    logits = alone.apply(variables, expected, task_ids, method=alone.option_logits)
    close(probabilities[..., :2], jax.nn.softmax(logits), 1e-4)
    np.testing.assert_array_equal(probabilities[..., 2], 0.0)

    trained = {name: padded.pop(name) for name in ("params", "prompts")}

    def total(trained: Any) -> Any:
        return jnp.sum(jnp.sin(both({**trained, **padded})[0]) * real[..., None])

    gradients = jax.jit(jax.grad(total))(trained)
    adapter = gradients["prompts"]["encoder"]["layers"]["mlp"]["adapter"]
    assert np.abs(adapter["wi"][..., 0]).max() > 0
    for padding in (adapter["wi"][..., 1], adapter["wi_bias"][..., 1], adapter["wo"][..., 1, :]):
        np.testing.assert_array_equal(padding, 0.0)
    lora = gradients["prompts"]["decoder"]["layers"]["cross_attention"]["lora_value"]
    assert np.abs(lora["a"][-1, ..., 0]).max() > 0
    for padding in (lora["a"][..., 1:], lora["b"][:, :, 1:]):
        np.testing.assert_array_equal(padding, 0.0)
    np.testing.assert_array_equal(gradients["prompts"]["bank"]["soft_prompts"][:, 0], 0.0)


@pytest.mark.parametrize("cross_attention_at", ["all", "ends"])
def test_packed_documents_do_not_see_one_another(
    config: ModelConfig, make_variables: Make, cross_attention_at: str
) -> None:
    """Two documents in one row equal the same two in rows of their own (no soft prompts)."""
    prompts = dataclasses.replace(config.prompts, num_prompts=0, head="none")
    config = config.replace(
        prompts=prompts, late_layers_start=1, cross_attention_at=cross_attention_at
    )
    variables, apply = make_variables(config), jitted(M6Rec(config))
    rng = np.random.default_rng(3)
    source, target = rng.integers(2, 32, (1, 9)), rng.integers(2, 32, (1, 7))
    packed: Features = {
        "encoder_input_tokens": np.pad(source, ((0, 0), (0, 1))),
        "encoder_segment_ids": np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0]]),
        # Blocks restart in each document.
        "encoder_block_ids": np.array([[1, 1, 2, 2, 2, 1, 2, 2, 2, 0]]),
        "decoder_input_tokens": np.pad(target, ((0, 0), (0, 1))),
        "decoder_segment_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 0]]),
        "decoder_block_ids": np.array([[1, 1, 1, 1, 1, 1, 1, 0]]),
    }
    packed = {name: values.astype(np.int32) for name, values in packed.items()}
    hidden = apply(variables, packed).hidden
    for document in (1, 2):
        alone = {}
        for side in ("encoder", "decoder"):
            here = packed[f"{side}_segment_ids"][0] == document
            for name in (f"{side}_input_tokens", f"{side}_block_ids"):
                alone[name] = packed[name][:, here]
        here = packed["decoder_segment_ids"][0] == document
        close(hidden[:, here], apply(variables, alone).hidden)


def test_soft_prompts_of_a_packed_row_see_no_document(
    config: ModelConfig, make_variables: Make, features: Features
) -> None:
    variables, model = make_variables(config), M6Rec(config)
    tokens, blocks = features["encoder_input_tokens"][:1], features["encoder_block_ids"][:1]
    task_ids = np.zeros((1,), np.int32)

    apply = jitted(model, model.encode)

    def encode(tokens: np.ndarray, segments: np.ndarray | None) -> Encoded:
        return apply(variables, tokens, blocks, task_ids, segment_ids=segments)

    one = (blocks > 0).astype(np.int32)
    close(encode(tokens, one).hidden[:, :14], encode(tokens, None).hidden[:, :14])
    two = np.where(blocks > 2, 2, one)
    before = encode(tokens, two).hidden
    after = encode(np.where(two == 2, (tokens + 1) % 32, tokens), two).hidden
    first = 4 + int((two == 1).sum())
    np.testing.assert_array_equal(before[:, :first], after[:, :first])
    assert np.abs(before[:, first:14] - after[:, first:14]).max() > 1e-3
