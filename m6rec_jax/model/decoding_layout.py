"""How a decoder's weights lie in memory when it is run one position at a time."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.model.config import ModelConfig

Array = jax.Array
# What `for_decoding_on_cpu` adds.
DECODING_COLLECTION = "decoding"


def for_decoding_on_cpu(config: ModelConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables that give the same, held as single steps on a CPU read them fastest.

    A step reads every weight once, so a copy that is made on the way doubles its time. The
    decoder's layers are arrays of their own, rather than slices of stacks; kernels are rounded to
    the products' type once; and the matrix of the logits is `[vocab, embed or rank]`, each token's
    weights together.

    Args:
      config: of the model.
      variables: unboxed.
    """
    params = dict(variables["params"])
    rounded = jnp.dtype(config.operand_dtype)
    if not config.share_layers:

        def separate(path: Any, leaf: Array) -> list[Array]:
            kernel = jax.tree_util.keystr(path).endswith("['kernel']")
            return list(leaf.astype(rounded) if kernel else leaf)

        layers = jax.tree_util.tree_map_with_path(separate, params["decoder"]["layers"])
        params["decoder"] = {**params["decoder"], "layers": layers}
    if config.logits_via_embedding:
        table = params["token_embedder"]["embedding"]
    else:
        table = params["logits_head"]["kernel"].T
    logits = table.astype(rounded)
    return {**variables, "params": params, DECODING_COLLECTION: {"logits": logits}}
