"""The two trees of variables: what is in them, how it starts, and what trains."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.tuning.lora import TARGETS
from tests.model.conftest import hidden, tuned

Features = dict[str, np.ndarray]
LORA = {"lora_rank": 3, "lora_scale": 0.7, "lora_targets": TARGETS}


def init(config: ModelConfig, features: Features, seed: int = 0) -> dict[str, Any]:
    return jax.jit(M6Rec(config).init)(jax.random.key(seed), features)


def shapes(config: ModelConfig, features: Features) -> dict[str, Any]:
    """The variables as `init` would make them, without compiling anything."""
    return jax.eval_shape(M6Rec(config).init, jax.random.key(0), features)


def names(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
        )
    }


def test_every_leaf_has_logical_axes(every_method: ModelConfig, features: Features) -> None:
    known = {
        *("embed", "mlp", "heads", "kv", "vocab", "layers", "relpos_buckets", "tasks", "prompts"),
        *("rank", "classes", "retrieval", "special_tokens", "segments"),
    }
    for per_layer in (False, True):
        config = every_method.replace(per_layer_relative_bias=per_layer)
        leaves = names(shapes(config, features))
        for name, leaf in leaves.items():
            assert isinstance(leaf, nn.LogicallyPartitioned), name
            assert len(leaf.names) == leaf.value.ndim, name
            assert set(leaf.names) <= known, name
            assert leaf.value.dtype == jnp.float32, name
            in_stack = "/layers/" in name
            assert (leaf.names[0] == "layers") == in_stack, name
            if name.startswith("prompts/"):
                assert leaf.names[1 if in_stack else 0] == "tasks", name


def test_the_trees_do_not_overlap(every_method: ModelConfig, features: Features) -> None:
    """The backbone's tree is the same whatever the prompts, so a checkpoint fits any task."""
    variables = shapes(every_method, features)
    assert set(variables) == {"params", "prompts"}
    bare = shapes(every_method.replace(prompts=PromptConfig()), features)
    assert set(bare) == {"params"}
    backbones = [
        {name: leaf.value.shape for name, leaf in names(v["params"]).items()}
        for v in (variables, bare)
    ]
    assert backbones[0] == backbones[1]
    assert not any("adapter" in name or "prompt" in name for name in backbones[0])


def test_late_interaction_does_not_change_the_tree(config: ModelConfig, features: Features) -> None:
    trees = [
        nn.meta.unbox(shapes(config.replace(late_layers_start=start), features))
        for start in (0, 1, 2)
    ]
    assert trees[0] == trees[1] == trees[2]


def test_sharing_keeps_one_layer_and_all_prompts(
    every_method: ModelConfig, features: Features
) -> None:
    leaves = names(shapes(every_method.replace(share_layers=True), features))
    assert leaves["params/encoder/layers/mlp/wi_0/kernel"].value.shape[0] == 1
    assert leaves["prompts/encoder/layers/mlp/adapter/wi"].value.shape[0] == 3
    assert leaves["prompts/encoder/layers/self_attention/lora_query/a"].value.shape[0] == 3


def test_shared_layers_need_no_prompts(config: ModelConfig, features: Features) -> None:
    """Then nothing that is scanned says how many layers there are."""
    bare = config.replace(share_layers=True, prompts=PromptConfig())
    for name, leaf in names(shapes(bare, features)["params"]).items():
        assert "/layers/" not in name or leaf.value.shape[0] == 1, name


@pytest.mark.parametrize(
    ("methods", "changes", "not_zero"),
    [
        (
            {
                "adapter_rank": 3,
                "special_token_ids": (0, 1),
                "num_segment_embeddings": 2,
                "retrieval_dim": 4,
            },
            {},
            ("adapter/scale", "adapter/wi", "_projection"),
        ),
        (LORA, {}, ("/a",)),
        (LORA, {"matmul_dtype": "bfloat16", "share_layers": True}, ("/a",)),
        ({"embedding_rank": 2}, {}, ("embedding_update_b",)),
        ({"pooling_rank": 2}, {}, ("pooling_b",)),
        ({"ia3_targets": ("key", "value", "hidden")}, {}, ("/factors",)),
    ],
    ids=["adapters", "lora", "lora of shared layers", "embedding", "pooling", "ia3"],
)
def test_a_new_task_starts_from_the_backbone_exactly(
    config: ModelConfig,
    features: Features,
    methods: dict[str, Any],
    changes: dict[str, Any],
    not_zero: tuple[str, ...],
) -> None:
    """Without soft prompts: fresh ones change nothing, yet not all are zero, so that they learn."""
    bare = config.replace(prompts=PromptConfig(), **changes)
    tuned = bare.replace(prompts=PromptConfig(**methods))
    variables = nn.meta.unbox(init(tuned, features))
    for name, leaf in names(variables["prompts"]).items():
        assert np.any(leaf) == name.endswith(not_zero), name
    plain = hidden(bare, {"params": variables["params"]}, features)
    np.testing.assert_array_equal(hidden(tuned, variables, features), plain)


def test_initial_values_are_those_of_t5(features: Features) -> None:
    config = ModelConfig(
        vocab_size=512,
        embed_dim=64,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        head_dim=32,
        mlp_dim=128,
    )
    leaves = {name: leaf.value for name, leaf in names(init(config, features)).items()}
    expected = {
        "params/token_embedder/embedding": 1.0,
        "params/logits_head/kernel": 64**-0.5,
        "params/encoder/relative_bias/embedding": 64**-0.5,
        "params/encoder/layers/self_attention/query/kernel": (64 * 32) ** -0.5,
        "params/decoder/layers/cross_attention/key/kernel": 64**-0.5,
        "params/decoder/layers/self_attention/value/kernel": 64**-0.5,
        "params/decoder/layers/cross_attention/out/kernel": (4 * 32) ** -0.5,
        "params/encoder/layers/mlp/wi_1/kernel": 64**-0.5,
        "params/encoder/layers/mlp/wo/kernel": 128**-0.5,
    }
    for name, stddev in expected.items():
        tolerance = 5 / math.sqrt(2 * leaves[name].size)
        assert float(jnp.std(leaves[name])) == pytest.approx(stddev, rel=tolerance), name
    for name, leaf in leaves.items():
        if name.endswith("norm/scale"):
            assert (leaf == 1).all(), name
    first, second = leaves["params/encoder/layers/mlp/wo/kernel"]
    assert not np.array_equal(first, second)
    other = names(init(config, features, seed=1))["params/logits_head/kernel"].value
    assert not np.array_equal(other, leaves["params/logits_head/kernel"])


def test_linear_head(config: ModelConfig, make_variables: Callable[..., Any]) -> None:
    config = config.replace(
        prompts=PromptConfig(num_prompts=2, num_options=4, head="linear", num_tasks=2)
    )
    variables = make_variables(config)
    bank = variables["prompts"]["bank"]
    hidden = np.random.default_rng(0).normal(size=(3, 2, config.embed_dim)).astype(np.float32)
    task_ids = np.array([1, 0, 1])
    logits = M6Rec(config).apply(variables, hidden, task_ids, method=M6Rec.option_logits)
    for row, task in enumerate(task_ids):
        scaled = hidden[row] / config.embed_dim**0.5
        expected = scaled @ bank["head_kernel"][task] + bank["head_bias"][task]
        np.testing.assert_allclose(logits[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "leaf",
    [("mlp", "adapter", "wo"), ("self_attention", "lora_value", "b")],
    ids=["adapter", "lora"],
)
def test_adapters_late_only(
    leaf: tuple[str, str, str],
    every_method: ModelConfig,
    make_variables: Callable[..., Any],
    features: Features,
) -> None:
    """What early layers have then changes nothing, what late layers have does."""
    config = tuned(every_method, adapters_late_only=True, embedding_rank=0, pooling_rank=0)
    block, change, matrix = leaf
    variables, model = make_variables(config), M6Rec(config)
    apply = jax.jit(lambda v: model.apply(v, features).hidden)

    def changed(tower: str, layers: slice) -> np.ndarray:
        prompts = jax.tree.map(np.copy, variables["prompts"])
        prompts[tower]["layers"][block][change][matrix][layers] += 1.0
        return apply({"params": variables["params"], "prompts": prompts})

    plain = apply(variables)
    np.testing.assert_array_equal(changed("encoder", slice(0, 2)), plain)
    np.testing.assert_array_equal(changed("decoder", slice(0, 1)), plain)
    assert np.abs(changed("encoder", slice(2, 3)) - plain).max() > 1e-3
    assert np.abs(changed("decoder", slice(1, 2)) - plain).max() > 1e-3


def test_dropout_only_when_asked(
    config: ModelConfig, make_variables: Callable[..., Any], features: Features
) -> None:
    dropping = config.replace(dropout_rate=0.3)
    variables = make_variables(config)
    plain = hidden(config, variables, features)
    np.testing.assert_array_equal(hidden(dropping, variables, features), plain)
    no_rate = hidden(config, variables, features, deterministic=False)
    np.testing.assert_array_equal(no_rate, plain)

    @jax.jit
    def run(seed: int) -> Any:
        rngs = {"dropout": jax.random.key(seed)}
        return M6Rec(dropping).apply(variables, features, deterministic=False, rngs=rngs).hidden

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    assert np.abs(run(0) - plain).max() > 1e-3


def test_each_layer_drops_differently() -> None:
    from m6rec_jax.model.stack import LayerStack

    config = ModelConfig(num_encoder_layers=2, embed_dim=64, dropout_rate=0.5)

    class OnlyDropout(nn.Module):
        @nn.compact
        def __call__(self, x: Any, *, deterministic: bool = True) -> Any:
            scale = self.param(
                "scale", nn.with_logical_partitioning(nn.initializers.ones, ("e",)), (1,)
            )
            dropped = nn.Dropout(0.5)(jnp.ones_like(x), deterministic=deterministic)
            return x * 3 + dropped * scale

    stack = LayerStack(
        config,
        num_layers=2,
        make_layer=lambda: OnlyDropout(parent=None),
        example_inputs=lambda: (jnp.zeros((1, 1, 64)),),
    )
    options = {"start": 0, "stop": 2, "deterministic": False}
    x = jnp.zeros((1, 1, 64))
    out = stack.apply(
        stack.init(jax.random.key(0), x, **options),
        x,
        **options,
        rngs={"dropout": jax.random.key(1)},
    )
    # First layer's mask counts 3·2, the second's 2: all of 0, 2, 6, 8 appear.
    assert set(np.unique(out).tolist()) == {0.0, 2.0, 6.0, 8.0}


def test_bfloat16_activations_are_close(
    config: ModelConfig, make_variables: Callable[..., Any], features: Features
) -> None:
    variables = make_variables(config)
    plain = hidden(config, variables, features)
    for changes in ({"dtype": "bfloat16"}, {"matmul_dtype": "bfloat16"}):
        rounded = hidden(config.replace(**changes), variables, features)
        assert rounded.dtype == changes.get("dtype", "float32")
        real = features["decoder_block_ids"] > 0
        error = np.abs(np.asarray(rounded, np.float32) - plain)[real]
        assert 1e-4 < error.mean() < 0.05


def test_variables_of_another_config_are_refused(
    config: ModelConfig, make_variables: Callable[..., Any], features: Features
) -> None:
    bare = make_variables(config.replace(prompts=PromptConfig()))
    with pytest.raises(ConfigError, match="no 'prompts' for encoder/layers"):
        M6Rec(config.replace(prompts=PromptConfig(adapter_rank=2))).apply(bare, features)


@pytest.mark.parametrize(
    ("owner", "values", "message"),
    [
        (ModelConfig, {"vocab_size": 0}, "ModelConfig.vocab_size = 0"),
        (ModelConfig, {"num_heads": 2.5}, "num_heads = 2.5"),
        (ModelConfig, {"dropout_rate": 1.0}, "dropout_rate = 1.0"),
        (ModelConfig, {"remat": "some"}, "remat = 'some' is not one of none, dots, full"),
        (ModelConfig, {"dtype": "float16"}, "dtype = 'float16'"),
        (ModelConfig, {"mlp_activations": ("gelu", "swish")}, "unknown 'swish'"),
        (ModelConfig, {"late_layers_start": 9}, "late_layers_start = 9"),
        (ModelConfig, {"decoder_late_start": -1}, "decoder_late_start = -1"),
        (ModelConfig, {"relative_attention_num_buckets": 6}, "multiple of 4"),
        (ModelConfig, {"relative_attention_max_distance": 16}, "must exceed half"),
        (PromptConfig, {"head": "softmax"}, "head = 'softmax'"),
        (PromptConfig, {"head": "option"}, "num_options >= 2"),
        (
            PromptConfig,
            {"head": "option", "num_options": 4, "num_prompts": 2},
            "num_options = 4 exceeds num_prompts = 2",
        ),
        (PromptConfig, {"num_tasks": 0}, "num_tasks = 0"),
        (
            PromptConfig,
            {"num_tasks": 2, "num_prompts": 4, "task_num_prompts": (3,)},
            "task_num_prompts = (3,) has 1 sizes for num_tasks = 2",
        ),
        (
            PromptConfig,
            {"num_tasks": 2, "num_prompts": 4, "task_num_prompts": (3, 5)},
            "5 is no whole number from 0 to num_prompts = 4",
        ),
        (PromptConfig, {"adapter_rank": 2, "task_adapter_ranks": (0,)}, "from 1 to adapter_rank"),
        (PromptConfig, {"num_options": 3, "task_num_options": (1,)}, "nothing to choose from"),
        (
            PromptConfig,
            {"num_prompts": 4, "num_options": 3, "head": "option", "task_num_prompts": (2,)},
            "has 3 options (task_num_options) but 2 soft prompts",
        ),
    ],
)
def test_config_errors(owner: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        owner(**values)


def test_a_bank_has_no_task_beyond_its_last() -> None:
    with pytest.raises(ConfigError, match=r"no task 2: PromptConfig\.num_tasks = 2"):
        PromptConfig(num_tasks=2).of_task(2)


def test_lists_become_tuples() -> None:
    """As gin files may have them; a configuration must be hashable."""
    assert PromptConfig(special_token_ids=[0, 1]).special_token_ids == (0, 1)  # type: ignore[call-arg]


def test_beyond_a_tasks_rank_is_zero_at_the_start(config: ModelConfig, features: Features) -> None:
    prompts = PromptConfig(
        num_tasks=2,
        adapter_rank=3,
        task_adapter_ranks=(1, 3),
        lora_rank=4,
        lora_targets=("out",),
        task_lora_ranks=(4, 2),
    )
    variables = nn.meta.unbox(
        jax.jit(M6Rec(config.replace(prompts=prompts)).init)(jax.random.key(0), features)
    )
    layers = variables["prompts"]["encoder"]["layers"]
    for leaf, ranks in (
        (layers["mlp"]["adapter"]["wi"], (1, 3)),
        (layers["self_attention"]["lora_out"]["a"], (4, 2)),
    ):
        for task, rank in enumerate(ranks):
            own = np.asarray(leaf)[:, task]
            assert np.all(own[..., :rank] != 0)
            assert not np.any(own[..., rank:])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((40,), "40, no number of a token in the vocabulary of 32"),
        (("[BOS]",), r"'\[BOS\]', no number"),
        ((5, 5), "names a token twice"),
    ],
)
def test_wrong_special_tokens(ids: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(vocab_size=32, prompts=PromptConfig(special_token_ids=ids))
