"""BERT-like sentence encoders from Hugging Face's folders."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from m6rec_jax.checkpoints.huggingface import CONFIG_FILE, WEIGHTS_FILE, read_json
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.bert import ACTIVATIONS, BertConfig, weight_shapes

# What the forward pass knows of each setting.
_KNOWN = {
    "model_type": ("bert",),
    "hidden_act": tuple(ACTIVATIONS),
    "position_embedding_type": ("absolute",),
}
_MORE_SIZES = ("vocab_size", "max_position_embeddings", "type_vocab_size", "intermediate_size")
_DEFAULTS = {"hidden_act": "gelu", "position_embedding_type": "absolute"}


def read_bert(folder: Path) -> tuple[BertConfig, dict[str, np.ndarray]]:
    """An encoder's sizes, and its weights as `sentence_vectors` takes them, float32.

    Raises:
      CheckpointError: no such folder, another kind of model, or damage.
    """
    path, values = folder / CONFIG_FILE, _DEFAULTS | read_json(folder / CONFIG_FILE)
    for name, known in _KNOWN.items():
        if values.get(name) not in known:
            raise CheckpointError(
                f"{path}: {name} {values.get(name)!r} is not one of {', '.join(known)}"
            )
    try:
        config = msgspec.convert(values, BertConfig)
        shapes = weight_shapes(config, *(values[name] for name in _MORE_SIZES))
    except (msgspec.ValidationError, KeyError) as error:
        raise CheckpointError(f"{path} does not say what is needed: {error}") from error
    weights = folder / WEIGHTS_FILE
    try:
        found = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} is missing, truncated or damaged: {error}") from error
    found = {name.removeprefix("bert."): leaf for name, leaf in found.items()}
    for name, shape in shapes.items():
        if name not in found or found[name].shape != shape:
            own = f"is {list(found[name].shape)}" if name in found else "is missing"
            raise CheckpointError(f"{weights}: tensor '{name}' {own}, wanted {list(shape)}")
    return config, {name: np.asarray(found[name], np.float32) for name in shapes}
