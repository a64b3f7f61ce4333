"""Programs for devices that run them by a client of few packages: LiteRT's.

Programs have fixed shapes: one history, some candidates of it at a time, in programs for short ones
and one for all. The history is encoded by itself, so that its states are reused for further
candidates and for writing. Of a bank only the rows of its tasks are kept. Products are of float32.
The embedding table is stored as bytes in every precision but float32: rows are picked first and
widened then, since a table of floats would be most of a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.candidates.scoring import (
    chosen_classes,
    positive_probability,
    read_log_probabilities,
    served_probability,
)
from m6rec_jax.engine.decoding.automaton import any_text
from m6rec_jax.engine.index.retrieval import item_embeddings
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.engine.programs.packed_file import float_variables
from m6rec_jax.export import device_client
from m6rec_jax.export.device_client import CATALOGUE, HELD_OUT, VOCABULARY
from m6rec_jax.export.folder import write_manifest
from m6rec_jax.export.held_out import RANKED_BY, Answered, Asked, Catalogue, recommended
from m6rec_jax.model import Encoded, M6Rec, ModelConfig
from m6rec_jax.model.config import TASK_SIZES
from m6rec_jax.model.embedding import TokenEmbedding
from m6rec_jax.model.prompts import COLLECTION, SIZES_COLLECTION, task_axis

logger = logging.getLogger(__name__)

Array = jax.Array
CLIENT = "client.py"
_MULTIPLE = 4
# Of candidates, that have programs of their own, beside the one for all.
_PARTS = (0.5, 0.95)
# A shorter length has a program of its own if it is at most this share of the next one.
_SHORTER = 0.75
# Signatures of held-out requests that take programs of other names.
_PROGRAMS_OF = {"generate": ("start", "step")}
_INT, _FLOAT = jnp.int32, jnp.float32


class Signature(NamedTuple):
    """A program: its function of arrays, and names, shapes and types of what goes in and out."""

    function: Callable[..., tuple[Array, ...]]
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    outputs: Sequence[str]


class Lengths(NamedTuple):
    """Tokens that programs have room for.

    Attributes:
      candidates: of texts to be scored, a program for each length, the longest last.
      item: of texts of items that are retrieved.
    """

    candidates: Sequence[int]
    item: int


# Writes the files of programs into a folder, in a precision.
Convert = Callable[[Path, Mapping[str, Signature], str], None]


def write_device_export(
    folder: Path,
    asked: Asked,
    precision: str,
    format_: str,
    convert: Convert,
    candidates: int,
    without: Sequence[str] = (),
) -> None:
    """Writes programs, vocabulary, catalogue, held-out requests, the client and the manifest.

    Args:
      folder: to write into.
      asked: of tasks for scoring, retrieval and generation; no text of its requests is cut that the
        model does not cut.
      precision: of the weights.
      format_: of the manifest.
      convert, candidates, without: see `write_programs`.
    """
    model, answered, catalogue = asked.model, asked.answered, asked.catalogue
    own: dict[str, Any] = {}
    if catalogue is not None:
        answered = [*answered, *recommended_packed(catalogue, answered)]
        own |= {"catalogue_task": catalogue.task, "recommend": RANKED_BY}
    fields = write_programs(
        folder, model, answered, precision, convert, candidates, without=without
    )
    if catalogue is not None:
        vectors, scales = bytes_of_rows(catalogue.vectors)
        np.savez_compressed(
            folder / CATALOGUE,
            vectors=vectors,
            scales=scales,
            ids=np.array(catalogue.ids),
            titles=np.array(catalogue.titles),
        )
    shutil.copy(device_client.__file__, folder / CLIENT)
    write_manifest(folder, format_, model, [format_.split("-")[1]], precision, **fields, **own)


def write_programs(
    folder: Path,
    model: LoadedModel,
    answered: Sequence[Answered],
    precision: str,
    convert: Convert,
    candidates: int,
    *,
    usual: Sequence[str] = (),
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes programs, vocabulary and held-out requests.

    Args:
      folder, model, answered, precision: see `write_device_export`.
      convert: writes the programs.
      candidates: that are scored at a time.
      usual: texts that are scored, if others than those of `answered`.
      without: signatures of `answered` that nobody asks for.

    Returns:
      What clients must know, for the manifest.
    """
    model = _with_own_tasks_alone(model)
    lengths = _lengths(model, answered, usual)
    signatures = _signatures(model, lengths, precision, candidates)
    for method in without:
        for name in _PROGRAMS_OF.get(method, (method,)):
            signatures.pop(name, None)
    logger.info("converting %d programs to %s", len(signatures), precision)
    convert(folder, signatures, precision)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    (folder / VOCABULARY).write_bytes(model.vocabulary.text_model)
    asked = [one.to_json() for one in answered if one.signature not in without]
    (folder / HELD_OUT).write_text(json.dumps(asked), "utf-8")
    return {
        "tasks": known_tasks(model, {"retrieval": lengths.item}, longest=lengths.candidates[-1]),
        "special_ids": model.vocabulary.special_ids,
        "source_length": model.settings.source_length,
        "candidate_lengths": lengths.candidates,
        "item_length": lengths.item,
        "max_tokens": model.settings.target_length - 1,
        "candidates": candidates,
        "bytes": num_bytes,
    }


def _with_own_tasks_alone(model: LoadedModel) -> LoadedModel:
    """The model without the room that a bank has for further tasks."""
    used = sorted({own.task_id for own in model.settings.tasks.values()})
    config = model.model.config
    prompts = config.prompts
    own: dict[str, Any] = {
        name: tuple(sizes[i] for i in used)
        for name in TASK_SIZES
        if (sizes := getattr(prompts, name))
    }
    config = config.replace(prompts=dataclasses.replace(prompts, num_tasks=len(used), **own))
    variables = flatten(model.variables)
    for name, value in variables.items():
        collection, _, leaf = name.partition("/")
        if collection in (COLLECTION, SIZES_COLLECTION):
            variables[name] = np.take(np.asarray(value), used, axis=task_axis(leaf))
    tasks = {
        name: dataclasses.replace(own, task_id=used.index(own.task_id))
        for name, own in model.settings.tasks.items()
    }
    settings = dataclasses.replace(model.settings, tasks=tasks)
    return dataclasses.replace(
        model, model=M6Rec(config), variables=nested(variables), settings=settings
    )


def _lengths(model: LoadedModel, answered: Sequence[Answered], usual: Sequence[str]) -> Lengths:
    limit = model.settings.target_length

    def length(texts: Sequence[str], part: float) -> int:
        """That so large a part of texts needs, `[BOS]` and `[EOS]` included."""
        needed = sorted(len(model.vocabulary.encode_array(text)) + 2 for text in texts) or [3]
        return min(limit, -(-needed[round(part * (len(needed) - 1))] // _MULTIPLE) * _MULTIPLE)

    asked = list({text for one in answered for text in one.inputs.get("candidates", ())})
    found = {length(usual or asked, part) for part in _PARTS} | {limit}
    # Each length is a program in the file: one that saves little time is not worth its bytes.
    lengths = sorted(found, reverse=True)
    kept = lengths[:1]
    for own in lengths[1:]:
        if own <= _SHORTER * kept[-1]:
            kept.append(own)
    return Lengths(kept[::-1], limit)


def _signatures(
    model: LoadedModel, lengths: Lengths, precision: str, candidates: int
) -> dict[str, Signature]:
    """Programs of the jobs that the model's tasks are for."""
    kinds = {own.kind for own in model.settings.tasks.values()}
    config = model.model.config.replace(matmul_dtype=None, dtype="float32")
    bare = M6Rec(config)
    # Of a packed file's bytes, the quantizer finds the same ones again.
    variables = jax.tree.map(np.asarray, float_variables(model.variables))
    if precision == "int8" and config.share_layers:
        config = config.replace(share_layers=False)
        bare, variables = M6Rec(config), _unshared(variables, config)
    lookup = None if precision == "float32" else _packed_lookup(variables)

    def looked_up() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if lookup is None else nn.intercept_methods(lookup)

    def apply(*args: Any, given: Any = variables, **options: Any) -> Any:
        with looked_up():
            return bare.apply(given, *args, **options)

    def encoder(tokens: Array, blocks: Array, task: Array) -> Encoded:
        given = _biases_at_run_time(variables, task)
        return apply(tokens, blocks, task, given=given, method=bare.encode)

    def encode(tokens: Array, blocks: Array, task: Array) -> tuple[Array, Array]:
        found = encoder(tokens, blocks, task)
        return found.hidden, found.mask.astype(_INT)

    def score(
        hidden: Array,
        mask: Array,
        tokens: Array,
        blocks: Array,
        repeats: Array,
        task: Array,
        positive: Array,
        sampling_rates: Array,
    ) -> tuple[Array]:
        tasks = jnp.repeat(task, candidates, axis=0)
        early = apply(tokens, blocks, tasks, method=bare.decode_early)
        encoded = Encoded(hidden, mask > 0)
        states = apply(encoded, early, blocks, tasks, method=bare.decode_late)
        found = read_log_probabilities(bare, variables, states, tasks)
        chosen = jnp.repeat(positive, candidates, axis=0)
        probabilities = _at_end(positive_probability(found, chosen)[..., None], blocks)
        return (served_probability(probabilities, repeats > 0, sampling_rates)[:, 0],)

    def user(tokens: Array, blocks: Array, task: Array) -> tuple[Array]:
        encoded = encoder(tokens, blocks, task)
        return (apply(encoded, task, method=bare.user_embedding),)

    def item(tokens: Array, blocks: Array, task: Array) -> tuple[Array]:
        features = {
            "decoder_input_tokens": tokens,
            "decoder_block_ids": blocks,
            "task_ids": task,
        }
        with looked_up():
            return (_at_end(item_embeddings(bare, variables, features), blocks),)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, _INT)

    task = {"task": ints(1, 1)}
    source = {name: ints(1, model.settings.source_length) for name in ("tokens", "blocks")} | task
    hidden, mask = jax.eval_shape(encode, *source.values())
    encoded = {"hidden": hidden, "mask": mask}
    found: dict[str, Signature] = {}
    if kinds & {"scoring", "generation"}:
        found["encode"] = Signature(encode, source, ("hidden", "mask"))
    if "scoring" in kinds:
        of_task = task | {
            "positive": ints(1, config.prompts.num_options),
            "sampling_rates": jax.ShapeDtypeStruct((1, 2), _FLOAT),
        }
        for length in lengths.candidates:
            texts = {name: ints(candidates, length) for name in ("tokens", "blocks")}
            inputs = encoded | texts | {"repeats": ints(candidates, 1)} | of_task
            found[f"score_{length}"] = Signature(score, inputs, ("scores",))
    if "retrieval" in kinds:
        text = {name: ints(1, lengths.item) for name in ("tokens", "blocks")}
        found["user"] = Signature(user, source, ("vectors",))
        found["item"] = Signature(item, text | task, ("vectors",))
    if "generation" in kinds:
        found |= _writing(model, bare, apply, encoded, task)
    return found


def _writing(
    model: LoadedModel,
    bare: M6Rec,
    apply: Callable[..., Any],
    encoded: Mapping[str, jax.ShapeDtypeStruct],
    task: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, Signature]:
    """`start` makes what does not change of a cache, `step` takes a token and gives the next one.

    What `step` writes, `past`, begins as zeros; the client loops.
    """
    length = model.settings.target_length - 1
    allowed = any_text(model.vocabulary, bare.config.vocab_size)

    def begun(hidden: Array, mask: Array, task: Array) -> Any:
        return apply(Encoded(hidden, mask > 0), task, max_length=length, method=bare.start_decoding)

    shapes = jax.eval_shape(begun, *encoded.values(), *task.values())
    past, source = (jax.tree.leaves(part) for part in (shapes.past, shapes.source))
    structure = jax.tree.structure(shapes)

    def start(hidden: Array, mask: Array, task: Array) -> tuple[Array, ...]:
        return tuple(jax.tree.leaves(begun(hidden, mask, task).source))

    def step(*arguments: Array) -> tuple[Array, ...]:
        *cache, mask, token, position, task = arguments
        state, new = apply(
            jax.tree.unflatten(structure, [*cache, mask > 0]),
            token,
            position[0],
            task,
            method=bare.decode_step,
        )
        logits = apply(state, method=bare.token_logits)
        likeliest = jnp.argmax(jnp.where(allowed.free, logits, -jnp.inf), axis=-1)
        return likeliest.astype(_INT), *jax.tree.leaves(new.past)

    written = {f"past_{place}": leaf for place, leaf in enumerate(past)}
    kept = {f"source_{place}": leaf for place, leaf in enumerate(source)}
    one = jax.ShapeDtypeStruct((1,), _INT)
    others = {"mask": encoded["mask"], "token": one, "position": one, **task}
    return {
        "start": Signature(start, {**encoded, **task}, list(kept)),
        "step": Signature(step, {**written, **kept, **others}, ("token", *written)),
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
    """Methods of `TokenEmbedding`: one picks rows of bytes and then widens them.

    The others are the tied head, of rows too: a quantizer's bytes of it are then the same ones, and
    a file may have them once.
    """
    table = variables["params"]["token_embedder"]["embedding"]
    packed, scales = bytes_of_rows(table)

    def lookup(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, TokenEmbedding) and context.method_name == "rows":
            rows = jnp.take(jnp.asarray(packed), args[0], axis=0).astype(_FLOAT)
            return rows * jnp.take(jnp.asarray(scales, _FLOAT), args[0])[..., None]
        if isinstance(context.module, TokenEmbedding) and context.method_name == "to_rank":
            matrix = variables["params"]["token_embedder"]["projection"] * np.float32(1 + _APART)
            return args[0] @ matrix.T
        if isinstance(context.module, TokenEmbedding) and context.method_name == "logits":
            # The likeliest one needs no scale, with which the table would have other bytes.
            return jnp.einsum("...d,vd->...v", args[0], table)
        return method(*args, **kwargs)

    return lookup


def known_tasks(
    model: LoadedModel, lengths: Mapping[str, int], longest: int
) -> dict[str, dict[str, Any]]:
    """What whoever lays out rows for programs must know of each task.

    Args:
      model: of the tasks.
      lengths: most tokens of a text, by the kind of the task.
      longest: those of other kinds.
    """
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
            "sampling_rates": own.sampling_rates,
            "source_length": min(
                own.source_length or settings.source_length, settings.source_length
            ),
            "text_length": own.text_length(lengths.get(own.kind, longest)),
        }
    return found


def recommended_packed(catalogue: Catalogue, answered: Sequence[Answered]) -> list[Answered]:
    """As `recommended`, of vectors that were packed."""
    vectors, scales = bytes_of_rows(catalogue.vectors)
    return recommended(catalogue._replace(vectors=vectors * scales[:, None]), answered)


def bytes_of_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as bytes, int8 `[rows, width]`, and a scale for each, float32 `[rows]`."""
    # Of an item without words the row is zeros.
    scales = np.maximum(np.abs(rows).max(axis=1), 1e-30) / 127
    return np.rint(rows / scales[:, None]).astype(np.int8), scales.astype(np.float32)
