"""A packed model in numpy: its two towers and its scorer, without JAX.

Importing JAX and compiling for one request takes longer than a small model takes in numpy. This is
T5's arithmetic (`m6rec_jax.model`) for models as `m6rec compress pack` writes them of
`gin_configs/models/edge.gin`: soft prompts whose last rows are the classes, and one task. There are
no adapters, LoRA or late interaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from m6rec_jax.engine.programs.packed_archive import Archive

_SCALE = "_scale"
# Rows of the decoder that are computed together.
_ROWS = 128
_HIDDEN = np.float32(-1e9)


class NumpyModel:
    """Users, items and candidates as token ids (`text.layout`) to vectors and probabilities.

    Args:
      archive: of a packed model.
    """

    def __init__(self, archive: Archive) -> None:
        self._config = archive.manifest["model"]
        leaves = archive.leaves
        self._leaves = {
            name: leaf.astype(np.float32) * np.asarray(leaves.get(name + _SCALE, 1.0), np.float32)
            for name, leaf in leaves.items()
            if not name.endswith(_SCALE)
        }

    def user(self, source: np.ndarray) -> np.ndarray:
        """A history's int `[tokens]` to a unit vector, float32 `[retrieval]`."""
        return self._project("user", self._encoded(source)[0, -1])

    def items(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Items' texts, int `[tokens]` each, to unit vectors, float32 `[items, retrieval]`."""
        return self._project("item", self._ends(texts, None))

    def probabilities(
        self, source: np.ndarray, candidates: Sequence[np.ndarray], positive: Sequence[int]
    ) -> np.ndarray:
        """How likely each candidate's class is a positive one, float32 `[candidates]`.

        Args:
          source: of the history, int `[tokens]`.
          candidates: their texts, int `[tokens]` each.
          positive: classes.
        """
        options = self._leaves["prompts/bank/soft_prompts"][0]
        options = options[-self._config["prompts"]["num_options"] :]
        logits = self._ends(candidates, self._encoded(source)) @ options.T
        return _softmax(logits / np.float32(np.sqrt(options.shape[1])))[:, list(positive)].sum(-1)

    def _project(self, tower: str, state: np.ndarray) -> np.ndarray:
        vectors = state @ self._leaves[f"prompts/bank/{tower}_projection"][0]
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def _encoded(self, tokens: np.ndarray) -> np.ndarray:
        """Final states, `[1, prompts + tokens, embed]`."""
        prompts = self._leaves["prompts/bank/soft_prompts"][0]
        x = np.concatenate([prompts, self._embedded(tokens)])[None]
        return self._layers("encoder", x, self._bias("encoder", x.shape[1]), None)

    def _ends(self, texts: Sequence[np.ndarray], source: np.ndarray | None) -> np.ndarray:
        """Final states at the last tokens of texts, `[texts, embed]`."""
        found = np.zeros((len(texts), self._config["embed_dim"]), np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), _ROWS):
            places = order[start : start + _ROWS]
            lengths = np.array([len(texts[place]) for place in places])
            tokens = np.zeros((len(places), lengths[-1]), np.int32)
            for row, place in enumerate(places):
                tokens[row, : lengths[row]] = texts[place]
            # No text sees what comes after it, so padding at the end changes nothing.
            later = np.triu(np.full((lengths[-1], lengths[-1]), _HIDDEN), 1)
            bias = self._bias("decoder", lengths[-1]) + later
            states = self._layers("decoder", self._embedded(tokens), bias, source)
            found[places] = states[np.arange(len(places)), lengths - 1]
        return found

    def _embedded(self, tokens: np.ndarray) -> np.ndarray:
        rows = self._leaves["params/token_embedder/embedding"][tokens]
        return rows @ self._leaves["params/token_embedder/projection"]

    def _bias(self, tower: str, length: int) -> np.ndarray:
        """By how far a key is from a query, `[heads, length, length]`."""
        table = self._leaves[f"params/{tower}/relative_bias/embedding"]
        furthest = self._config["relative_attention_max_distance"]
        distance = np.arange(length)[None, :] - np.arange(length)[:, None]
        number, offset = len(table), np.zeros_like(distance)
        if tower == "encoder":
            number //= 2
            offset, distance = number * (distance > 0), np.abs(distance)
        else:
            distance = np.maximum(-distance, 0)
        exact = number // 2
        share = np.log(np.maximum(distance, 1) / exact) / np.log(furthest / exact)
        # Of a power that is a bucket's first distance the logarithm may come out a little less.
        far = exact + np.floor(share * (number - exact) + 1e-6).astype(int)
        bucket = np.where(distance < exact, distance, np.minimum(far, number - 1))
        return table[offset + bucket].transpose(2, 0, 1)

    def _layers(
        self, tower: str, x: np.ndarray, bias: np.ndarray, source: np.ndarray | None
    ) -> np.ndarray:
        for layer in self._parameters(tower):
            z = self._norm(x, layer["self_attention_norm/scale"])
            x = x + _attention(layer, "self_attention", z, z, bias)
            if source is not None:
                z = self._norm(x, layer["cross_attention_norm/scale"])
                x = x + _attention(layer, "cross_attention", z, source, None)
            z = self._norm(x, layer["mlp_norm/scale"])
            gate = _gelu(z @ layer["mlp/wi_0/kernel"])
            x = x + (gate * (z @ layer["mlp/wi_1/kernel"])) @ layer["mlp/wo/kernel"]
        return self._norm(x, self._leaves[f"params/{tower}/final_norm/scale"])

    def _parameters(self, tower: str) -> Iterator[dict[str, np.ndarray]]:
        """Of each layer; shared layers are one."""
        begin = f"params/{tower}/layers/"
        own = {n.removeprefix(begin): v for n, v in self._leaves.items() if n.startswith(begin)}
        for number in range(self._config[f"num_{tower}_layers"]):
            yield {name: leaf[min(number, len(leaf) - 1)] for name, leaf in own.items()}

    def _norm(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        mean = np.mean(np.square(x), axis=-1, keepdims=True)
        return x / np.sqrt(mean + np.float32(self._config["layer_norm_epsilon"])) * scale


def _attention(
    layer: dict[str, np.ndarray],
    name: str,
    x: np.ndarray,
    source: np.ndarray,
    bias: np.ndarray | None,
) -> np.ndarray:
    """`[rows, queries, embed]` over a source `[rows or 1, keys, embed]`."""

    def heads(part: str, states: np.ndarray) -> np.ndarray:
        kernel = layer[f"{name}/{part}/kernel"]
        projected = states @ kernel.reshape(len(kernel), -1)
        return projected.reshape(*states.shape[:2], *kernel.shape[1:]).swapaxes(1, 2)

    scores = heads("query", x) @ heads("key", source).swapaxes(2, 3)
    weights = _softmax(scores if bias is None else scores + bias)
    mixed = (weights @ heads("value", source)).swapaxes(1, 2).reshape(*x.shape[:2], -1)
    return mixed @ layer[f"{name}/out/kernel"].reshape(mixed.shape[-1], -1)


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _gelu(x: np.ndarray) -> np.ndarray:
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))
