"""The model against a reference in float64 numpy, written from T5's description, query by query."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.model.relative_bias import relative_position_bucket, spread_by_distance


def bucket(distance: int, bidirectional: bool, buckets: int, furthest: int) -> int:
    """Bucket of key - query, by counting thresholds (exact integer arithmetic)."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    steps = buckets - exact
    passed = 0
    for step in range(1, steps):
        # distance reaches exact · (furthest / exact)^(step / steps), in integers
        if distance**steps * exact**step >= exact**steps * furthest**step:
            passed = step
    return offset + exact + passed


class Reference:
    """A T5 1.1 encoder-decoder with prompts and late interaction, one example at a time."""

    def __init__(self, config: ModelConfig, variables: dict[str, Any]) -> None:
        self.config = config
        self.params = variables["params"]
        self.prompts = variables.get("prompts", {})

    def norm(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.stack(
            [row / math.sqrt(np.mean(row**2) + self.config.layer_norm_epsilon) * scale for row in x]
        )

    def gelu(self, x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))

    def attention(
        self,
        p: dict[str, Any],
        x: np.ndarray,
        source: np.ndarray,
        visible: np.ndarray | None,
        table: np.ndarray | None,
        bidirectional: bool,
    ) -> np.ndarray:
        assert visible is not None
        out = np.zeros((len(x), self.config.embed_dim))
        for head in range(self.config.num_heads):
            q = x @ p["query"]["kernel"][:, head]
            k = source @ p["key"]["kernel"][:, head]
            v = source @ p["value"]["kernel"][:, head]
            for i in range(len(x)):
                seen = [j for j in range(len(source)) if visible[i, j]]
                if not seen:
                    continue
                scores = np.array([q[i] @ k[j] for j in seen])
                if table is not None:
                    scores += [self.bias(table, j - i, head, bidirectional) for j in seen]
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed = sum(w * v[j] for w, j in zip(weights, seen, strict=True))
                out[i] += mixed @ p["out"]["kernel"][head]
        return out

    def bias(self, table: np.ndarray, distance: int, head: int, bidirectional: bool) -> float:
        c = self.config
        place = bucket(
            distance,
            bidirectional,
            c.relative_attention_num_buckets,
            c.relative_attention_max_distance,
        )
        return table[place, head]

    def feed_forward(
        self, p: dict[str, Any], adapter: dict[str, Any] | None, z: np.ndarray
    ) -> np.ndarray:
        hidden = self.gelu(z @ p["wi_0"]["kernel"]) * (z @ p["wi_1"]["kernel"])
        out = hidden @ p["wo"]["kernel"]
        if adapter is not None:
            a = {name: leaf[0] for name, leaf in adapter.items()}
            inner = self.gelu(z @ a["wi"] + a["wi_bias"])
            out = out + a["scale"] * (inner @ a["wo"] + a["wo_bias"])
        return out

    def layer(
        self,
        p: dict[str, Any],
        adapter: dict[str, Any] | None,
        x: np.ndarray,
        visible: np.ndarray,
        table: np.ndarray,
        bidirectional: bool,
        source: np.ndarray | None = None,
        source_visible: np.ndarray | None = None,
    ) -> np.ndarray:
        z = self.norm(x, p["self_attention_norm"]["scale"])
        x = x + self.attention(p["self_attention"], z, z, visible, table, bidirectional)
        if source is not None:
            z = self.norm(x, p["cross_attention_norm"]["scale"])
            x = x + self.attention(p["cross_attention"], z, source, source_visible, None, False)
        z = self.norm(x, p["mlp_norm"]["scale"])
        return x + self.feed_forward(p["mlp"], adapter, z)

    def stack(self, tower: str, index: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        def pick(tree: Any) -> Any:
            if isinstance(tree, dict):
                return {name: pick(leaf) for name, leaf in tree.items()}
            return np.asarray(tree[min(index, len(tree) - 1)], np.float64)

        adapter = None
        if self.config.prompts.adapter_rank:
            adapter = pick(self.prompts[tower]["layers"]["mlp"]["adapter"])
        return pick(self.params[tower]["layers"]), adapter

    def table(self, tower: str, params: dict[str, Any]) -> np.ndarray:
        if self.config.per_layer_relative_bias:
            return params["relative_bias"]["embedding"]
        return np.asarray(self.params[tower]["relative_bias"]["embedding"], np.float64)

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        x = token_table(self.params)[tokens]
        for place, token in enumerate(self.config.prompts.special_token_ids):
            x[tokens == token] += self.prompts["bank"]["special_token_deltas"][0, place]
        return x

    def encode(self, tokens: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c = self.config
        count = c.prompts.num_prompts
        x = self.embed(tokens)
        if count:
            x = np.concatenate([self.prompts["bank"]["soft_prompts"][0], x])
        owner = np.concatenate([np.full(count, -1), blocks])
        n = len(x)
        for index in range(c.num_encoder_layers):
            if index == c.late_layers_start and index > 0 and c.prompts.num_segment_embeddings:
                rows = self.prompts["bank"]["segment_embedding"][0]
                x = x + np.stack([rows[min(max(o, 0), len(rows) - 1)] for o in owner])
            early = index < c.late_layers_start
            visible = np.array(
                [
                    [owner[j] != 0 and (not early or owner[i] == owner[j]) for j in range(n)]
                    for i in range(n)
                ]
            )
            params, adapter = self.stack("encoder", index)
            x = self.layer(params, adapter, x, visible, self.table("encoder", params), True)
        return self.norm(x, self.params["encoder"]["final_norm"]["scale"]), owner != 0

    def decode(
        self,
        source: np.ndarray,
        present: np.ndarray,
        tokens: np.ndarray,
        blocks: np.ndarray,
        use_source: bool,
        first_cross: int,
    ) -> np.ndarray:
        x = self.embed(tokens)
        n = len(x)
        visible = np.array(
            [[j <= i and blocks[i] == blocks[j] > 0 for j in range(n)] for i in range(n)]
        )
        seen = np.tile(present, (n, 1))
        for index in range(self.config.num_decoder_layers):
            params, adapter = self.stack("decoder", index)
            cross = use_source and index >= first_cross
            x = self.layer(
                params,
                adapter,
                x,
                visible,
                self.table("decoder", params),
                False,
                source if cross else None,
                seen,
            )
        return self.norm(x, self.params["decoder"]["final_norm"]["scale"])


def token_table(params: dict[str, Any]) -> np.ndarray:
    """Token embeddings `[vocab, embed]`, written out where they are factorised."""
    embedder = params["token_embedder"]
    table = np.asarray(embedder["embedding"], np.float64)
    return table @ embedder["projection"] if "projection" in embedder else table


def close(actual: Any, expected: np.ndarray, tolerance: float = 3e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 12), (16, 100)])
def test_buckets(bidirectional: bool, buckets: int, furthest: int) -> None:
    distances = np.arange(-300, 301)
    actual = relative_position_bucket(
        distances, bidirectional=bidirectional, num_buckets=buckets, max_distance=furthest
    )
    expected = [bucket(int(d), bidirectional, buckets, furthest) for d in distances]
    assert actual.tolist() == expected
    assert actual.dtype == np.int32


def test_known_buckets_of_t5() -> None:
    """T5's own defaults at the distances where rounding could go either way."""
    actual = relative_position_bucket(
        np.array([0, 1, -1, 7, 8, 16, 32, 64, 127, 128, -16, -64]),
        bidirectional=True,
        num_buckets=32,
        max_distance=128,
    )
    assert actual.tolist() == [0, 17, 1, 23, 24, 26, 28, 30, 31, 31, 10, 14]


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (3, 7), (6, 2), (1, 5), (5, 1)])
def test_spread_by_distance(queries: int, keys: int) -> None:
    values = np.random.default_rng(0).normal(size=(2, queries + keys - 1)).astype(np.float32)
    actual = spread_by_distance(jnp.asarray(values), queries, keys)
    for i in range(queries):
        for j in range(keys):
            np.testing.assert_array_equal(actual[:, i, j], values[:, j - i + queries - 1])


@pytest.mark.parametrize(
    ("changes", "first_cross"),
    [
        ({"late_layers_start": 2}, 1),
        ({"late_layers_start": 2, "decoder_late_start": 0}, 0),
        ({"late_layers_start": 0}, 0),
        ({"late_layers_start": 1, "per_layer_relative_bias": True}, 0),
        ({"late_layers_start": 2, "share_layers": True, "embedding_rank": 3}, 1),
    ],
)
def test_whole_forward(
    config: ModelConfig,
    make_variables: Any,
    features: dict[str, np.ndarray],
    changes: dict[str, Any],
    first_cross: int,
) -> None:
    config = config.replace(**changes)
    variables = make_variables(config)
    model, reference = M6Rec(config), Reference(config, variables)
    outputs = jax.jit(model.apply)(variables, features)
    logits = model.apply(variables, outputs.hidden, method=model.token_logits)
    options = model.apply(
        variables, outputs.hidden, features["task_ids"], method=model.option_logits
    )
    users = model.apply(
        variables, outputs.encoded, features["task_ids"], method=model.user_embedding
    )
    items = model.apply(
        variables, outputs.hidden, features["task_ids"], method=model.item_embedding
    )
    bank = variables["prompts"]["bank"]
    for row in range(3):
        source, present = reference.encode(
            features["encoder_input_tokens"][row], features["encoder_block_ids"][row]
        )
        np.testing.assert_array_equal(outputs.encoded.mask[row], present)
        close(outputs.encoded.hidden[row][present], source[present])
        hidden = reference.decode(
            source,
            present,
            features["decoder_input_tokens"][row],
            features["decoder_block_ids"][row],
            features["retrieval"][row, 0] == 0,
            first_cross,
        )
        real = features["decoder_block_ids"][row] > 0
        close(outputs.hidden[row][real], hidden[real])
        head = np.asarray(variables["params"]["logits_head"]["kernel"], np.float64)
        if config.embedding_rank:
            head = variables["params"]["logits_head_projection"]["kernel"] @ head
        close(logits[row][real], (hidden @ head)[real], 1e-4)
        scores = hidden @ bank["soft_prompts"][0, -3:].T / math.sqrt(config.embed_dim)
        close(options[row][real], scores[real])
        user = source[np.flatnonzero(present)[-1]] @ bank["user_projection"][0]
        close(users[row], user / np.linalg.norm(user))
        item = hidden @ bank["item_projection"][0]
        close(items[row][real], (item / np.linalg.norm(item, axis=-1, keepdims=True))[real])


@pytest.mark.parametrize("embedding_rank", [None, 3])
def test_tied_logits(config: ModelConfig, make_variables: Any, embedding_rank: int | None) -> None:
    config = config.replace(logits_via_embedding=True, embedding_rank=embedding_rank)
    variables = make_variables(config)
    assert "logits_head" not in variables["params"]
    hidden = np.random.default_rng(0).normal(size=(2, 3, config.embed_dim)).astype(np.float32)
    actual = M6Rec(config).apply(variables, hidden, method=M6Rec.token_logits)
    table = token_table(variables["params"])
    close(actual, hidden @ table.T / math.sqrt(config.embed_dim))


def test_rounded_products_of_tied_logits_have_gradients(
    config: ModelConfig, make_variables: Any
) -> None:
    """XLA's CPU backend has no bfloat16 product with a transposed matrix."""
    config = config.replace(logits_via_embedding=True, embedding_rank=4)
    variables = make_variables(config)
    hidden = np.random.default_rng(0).normal(size=(4, 8, config.embed_dim)).astype(np.float32)

    def gradient(config: ModelConfig) -> Any:
        model = M6Rec(config)
        squares = lambda v, x: (model.apply(v, x, method=model.token_logits) ** 2).mean()  # noqa: E731
        return jax.jit(jax.grad(squares, (0, 1)))(variables, hidden)

    exact, rounded = gradient(config), gradient(config.replace(matmul_dtype="bfloat16"))
    for wanted, found in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
