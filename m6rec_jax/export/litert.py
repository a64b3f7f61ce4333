"""`m6rec export --format litert`: one file of programs for phones, and a client that runs it.

Programs have fixed shapes: one history, `CANDIDATES` candidates of it at a time. The history is
encoded by itself, so that its states are reused for further candidates and for writing. Products
are of float32; `int8` stores weights as bytes and multiplies bytes. The embedding table is stored
as bytes in every precision but float32: rows are picked first and widened then, since a table of
floats would be most of the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from flax import linen as nn
from jax import export as jax_export

from m6rec_jax.engine.constraints import any_text
from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.engine.retrieval import item_embeddings
from m6rec_jax.engine.scoring import (
    chosen_classes,
    positive_probability,
    read_log_probabilities,
)
from m6rec_jax.export import litert_client
from m6rec_jax.export.folder import write_manifest
from m6rec_jax.export.held_out import Answered, Catalogue
from m6rec_jax.export.litert_client import (
    CATALOGUE,
    FORMAT,
    HELD_OUT,
    MODEL,
    VOCABULARY,
)
from m6rec_jax.export.tensorflow_op import call_program
from m6rec_jax.model import Encoded, M6Rec, ModelConfig
from m6rec_jax.model.embedding import TokenEmbedding

Array = jax.Array
PRECISIONS = ("float32", "float16", "int8")
CLIENT = "client.py"
# That are scored at a time.
CANDIDATES = 8
_MULTIPLE = 8
_INT, _FLOAT = jnp.int32, jnp.float32


class _Signature(NamedTuple):
    """A program: its function of arrays, and names, shapes and types of what goes in and out."""

    function: Callable[..., tuple[Array, ...]]
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    outputs: Sequence[str]


def write_litert(
    folder: Path,
    model: LoadedModel,
    answered: Sequence[Answered],
    precision: str,
    catalogue: Catalogue | None = None,
) -> None:
    """Writes programs, vocabulary, catalogue, held-out requests and the client.

    Args:
      folder: to write into.
      model: of tasks for scoring, retrieval and generation.
      answered: held-out requests; no text of them is cut that the model does not cut.
      precision: one of `PRECISIONS`.
      catalogue: to be packed; None: none.
    """
    texts = [text for one in answered for text in one.inputs.get("candidates", ())]
    texts += [one.inputs["text"] for one in answered if one.signature == "item"]
    room = model.settings.target_length
    limit = min(model.settings.candidate_length or room, room)
    longest = max((len(model.vocabulary.encode_array(text)) + 2 for text in texts), default=3)
    text_length = min(limit, -(-longest // _MULTIPLE) * _MULTIPLE)
    data = _converted(_signatures(model, text_length, precision), precision)
    if precision == "int8":
        data = _quantized(data)
    (folder / MODEL).write_bytes(data)
    (folder / VOCABULARY).write_bytes(model.vocabulary.text_model)
    if catalogue is not None:
        _write_catalogue(folder / CATALOGUE, catalogue)
    (folder / HELD_OUT).write_text(json.dumps([one.to_json() for one in answered]), "utf-8")
    shutil.copy(litert_client.__file__, folder / CLIENT)
    write_manifest(
        folder,
        FORMAT,
        model,
        ["litert"],
        precision,
        tasks=_tasks(model, text_length),
        special_ids=model.vocabulary.special_ids,
        source_length=model.settings.source_length,
        text_length=text_length,
        max_tokens=room - 1,
        candidates=CANDIDATES,
        bytes=len(data),
    )


def _signatures(model: LoadedModel, text_length: int, precision: str) -> dict[str, _Signature]:
    """Programs of the jobs that the model's tasks are for."""
    kinds = {own.kind for own in model.settings.tasks.values()}
    config = model.model.config.replace(matmul_dtype=None, dtype="float32")
    bare = M6Rec(config)
    variables = jax.tree.map(np.asarray, dict(model.variables))
    if precision == "int8" and config.share_layers:
        config = config.replace(share_layers=False)
        bare, variables = M6Rec(config), _unshared(variables, config)
    lookup = None if precision == "float32" else _packed_lookup(variables)

    def apply(*args: Any, given: Any = variables, **options: Any) -> Any:
        if lookup is None:
            return bare.apply(given, *args, **options)
        with nn.intercept_methods(lookup):
            return bare.apply(given, *args, **options)

    def encoder(tokens: Array, blocks: Array, task: Array) -> Encoded:
        given = _biases_at_run_time(variables, task)
        found: Encoded = apply(tokens, blocks, task, given=given, method=bare.encode)
        return found

    def encode(tokens: Array, blocks: Array, task: Array) -> tuple[Array, Array]:
        found = encoder(tokens, blocks, task)
        return found.hidden, found.mask.astype(_INT)

    def score(
        hidden: Array, mask: Array, tokens: Array, blocks: Array, task: Array, positive: Array
    ) -> tuple[Array]:
        tasks = jnp.repeat(task, CANDIDATES, axis=0)
        early = apply(tokens, blocks, tasks, method=bare.decode_early)
        encoded = Encoded(hidden, mask > 0)
        states = apply(encoded, early, blocks, tasks, method=bare.decode_late)
        found = read_log_probabilities(bare, variables, states, tasks)
        chosen = jnp.repeat(positive, CANDIDATES, axis=0)
        return (_at_end(positive_probability(found, chosen)[..., None], blocks)[:, 0],)

    def user(tokens: Array, blocks: Array, task: Array) -> tuple[Array]:
        encoded = encoder(tokens, blocks, task)
        return (apply(encoded, task, method=bare.user_embedding),)

    def item(tokens: Array, blocks: Array, task: Array) -> tuple[Array]:
        features = {
            "decoder_input_tokens": tokens,
            "decoder_block_ids": blocks,
            "task_ids": task,
        }
        if lookup is None:
            return (_at_end(item_embeddings(bare, variables, features), blocks),)
        with nn.intercept_methods(lookup):
            return (_at_end(item_embeddings(bare, variables, features), blocks),)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, _INT)

    task = {"task": ints(1, 1)}
    source = {name: ints(1, model.settings.source_length) for name in ("tokens", "blocks")} | task
    hidden, mask = jax.eval_shape(encode, *source.values())
    encoded = {"hidden": hidden, "mask": mask}
    found: dict[str, _Signature] = {}
    if kinds & {"scoring", "generation"}:
        found["encode"] = _Signature(encode, source, ("hidden", "mask"))
    if "scoring" in kinds:
        texts = {name: ints(CANDIDATES, text_length) for name in ("tokens", "blocks")}
        positive = {"positive": ints(1, config.prompts.num_options)}
        found["score"] = _Signature(score, encoded | texts | task | positive, ("scores",))
    if "retrieval" in kinds:
        text = {name: ints(1, text_length) for name in ("tokens", "blocks")}
        found["user"] = _Signature(user, source, ("vectors",))
        found["item"] = _Signature(item, text | task, ("vectors",))
    if "generation" in kinds:
        found |= _writing(model, bare, apply, encoded, task)
    return found


def _writing(
    model: LoadedModel,
    bare: M6Rec,
    apply: Callable[..., Any],
    encoded: Mapping[str, jax.ShapeDtypeStruct],
    task: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, _Signature]:
    """`start` makes a cache, `step` takes a token and gives the next one; the client loops."""
    length = model.settings.target_length - 1
    allowed = any_text(model.vocabulary, bare.config.vocab_size)

    def begun(hidden: Array, mask: Array, task: Array) -> Any:
        return apply(Encoded(hidden, mask > 0), task, max_length=length, method=bare.start_decoding)

    shapes = jax.eval_shape(begun, *encoded.values(), *task.values())
    leaves, structure = jax.tree.flatten(shapes)
    # The mask is the client's own, all else is handed back and forth.
    kept = [place for place, leaf in enumerate(leaves) if leaf.dtype != bool]
    names = [f"cache_{place}" for place in kept]

    def start(hidden: Array, mask: Array, task: Array) -> tuple[Array, ...]:
        found = jax.tree.leaves(begun(hidden, mask, task))
        return tuple(found[place] for place in kept)

    def step(*arguments: Array) -> tuple[Array, ...]:
        *cache, mask, token, position, task = arguments
        given = dict(zip(kept, cache, strict=True))
        every = [given.get(place, mask > 0) for place in range(len(leaves))]
        state, new = apply(
            jax.tree.unflatten(structure, every),
            token,
            position[0],
            task,
            method=bare.decode_step,
        )
        logits = apply(state, method=bare.token_logits)
        likeliest = jnp.argmax(jnp.where(allowed.allowed, logits, -jnp.inf), axis=-1)
        found = jax.tree.leaves(new)
        return likeliest.astype(_INT), *(found[place] for place in kept)

    cache = {name: leaves[place] for name, place in zip(names, kept, strict=True)}
    one = jax.ShapeDtypeStruct((1,), _INT)
    inputs = {**cache, "mask": encoded["mask"], "token": one, "position": one, **task}
    return {
        "start": _Signature(start, {**encoded, **task}, names),
        "step": _Signature(step, inputs, ("token", *names)),
    }


def _at_end(values: Array, blocks: Array) -> Array:
    """values `[rows, length, n]` at each row's last token, `[rows, n]`."""
    end = jnp.sum((blocks > 0).astype(_INT), axis=1) - 1
    here = jnp.arange(blocks.shape[1])[None] == end[:, None]
    return jnp.sum(jnp.where(here[..., None], values, 0.0), axis=1)


def _biases_at_run_time(variables: Mapping[str, Any], task: Array) -> Any:
    """Variables whose encoder's biases of positions the converter cannot work out.

    A number for each pair of positions would be an eighth of a small file.
    """
    # Numbers of tasks are not negative, which no converter knows.
    one = 1.0 + jnp.minimum(task[0, 0], 0).astype(_FLOAT)

    def depends(path: Any, value: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return value * one if "encoder/relative_bias" in name else value

    return jax.tree_util.tree_map_with_path(depends, dict(variables))


# The quantizer fails where several products read one constant, so equal ones are made to differ:
# by less than their bytes do.
_APART = 2.0**-18


def _unshared(variables: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Variables of a model whose layers share theirs, as of one whose layers do not."""
    params = dict(variables["params"])
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    for tower, depth in depths.items():
        factors = (1 + _APART * np.arange(depth)).astype(np.float32)
        layers = jax.tree.map(
            lambda leaf, factors=factors: leaf * factors.reshape(-1, *[1] * (leaf.ndim - 1)),
            params[tower]["layers"],
        )
        params[tower] = {**params[tower], "layers": layers}
    return {**variables, "params": params}


def _packed_lookup(variables: Mapping[str, Any]) -> Callable[..., Any]:
    """A method of `TokenEmbedding` that picks rows of bytes and then widens them."""
    table = variables["params"]["token_embedder"]["embedding"]
    scales = np.maximum(np.abs(table).max(axis=1), 1e-30) / 127
    packed = np.rint(table / scales[:, None]).astype(np.int8)

    def lookup(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, TokenEmbedding) and context.method_name == "rows":
            rows = jnp.take(jnp.asarray(packed), args[0], axis=0).astype(_FLOAT)
            return rows * jnp.take(jnp.asarray(scales, _FLOAT), args[0])[..., None]
        if isinstance(context.module, TokenEmbedding) and context.method_name == "to_rank":
            matrix = variables["params"]["token_embedder"]["projection"] * np.float32(1 + _APART)
            return args[0] @ matrix.T
        return method(*args, **kwargs)

    return lookup


def _converted(signatures: Mapping[str, _Signature], precision: str) -> bytes:
    """The programs as one flatbuffer, which holds each weight once."""
    functions = {name: _function(own) for name, own in signatures.items()}
    module = tf.Module()
    module.functions = list(functions.values())
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        if precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        data: bytes = converter.convert()
    return data


def _function(own: _Signature) -> Any:
    """A program as a concrete function, without the inputs that it does not read."""
    exported = jax_export.export(jax.jit(own.function), platforms=["cpu"])(*own.inputs.values())
    kept = [list(own.inputs)[place] for place in exported.module_kept_var_idx]

    def run(**inputs: Any) -> dict[str, Any]:
        found = call_program(exported, [inputs[name] for name in kept])
        return dict(zip(own.outputs, found, strict=True))

    specs = {
        name: tf.TensorSpec(own.inputs[name].shape, own.inputs[name].dtype, name=name)
        for name in kept
    }
    return tf.function(run).get_concrete_function(**specs)


def _quantized(data: bytes) -> bytes:
    """With weights of products as bytes, a scale per channel; inputs are rounded at run time."""
    # Of the extra `litert`.
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        path.write_bytes(data)
        # It reports on standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            made = quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32()).quantize()
    return bytes(made.quantized_model)


def _tasks(model: LoadedModel, text_length: int) -> dict[str, Any]:
    """What the client must know of each task."""
    classes, settings = model.model.config.prompts.num_options, model.settings
    found = {}
    for name, own in settings.tasks.items():
        positive = [0] * classes
        if own.kind == "scoring":
            chosen = chosen_classes(own.positive_classes, own.num_options or classes)
            positive[: len(chosen)] = chosen.astype(int).tolist()
        found[name] = {
            "kind": own.kind,
            "task_id": own.task_id,
            "positive": positive,
            "sampling_rate": own.sampling_rate,
            "source_length": min(
                own.source_length or settings.source_length, settings.source_length
            ),
            "text_length": own.text_length(text_length),
        }
    return found


def _write_catalogue(path: Path, catalogue: Catalogue) -> None:
    """Vectors as bytes with a scale each, ids and titles."""
    scales = np.abs(catalogue.vectors).max(axis=1) / 127
    packed = np.rint(catalogue.vectors / scales[:, None]).astype(np.int8)
    np.savez_compressed(
        path,
        vectors=packed,
        scales=scales.astype(np.float32),
        ids=np.array(catalogue.ids),
        titles=np.array(catalogue.titles),
    )
