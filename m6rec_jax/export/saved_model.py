"""`m6rec export --format saved_model`: raw text in, scores, vectors and texts out, for TensorFlow.

The graph cuts texts into tokens, lays out rows and runs the programs of `jax.export`; no Python of
ours is needed to serve it, but the ops of tensorflow_text, which TF Serving has built in.
Signatures, which may be asked for any task of their kind by its name:

    score      history, history_length, candidates, num_candidates,
               repeats, task                                               -> scores
    user       history, history_length, task                               -> vectors
    item       text, task                                                  -> vectors
    recommend  history, history_length, task                               -> ids, titles, scores
    generate   history, history_length, prefix, task                       -> texts

`history` is strings `[batch, segments]`, as `DatasetTemplate.history_segments` renders them, padded
at the end; `history_length` int32 `[batch]` counts them. `repeats` says which candidates the user
had before. Batches and lists of candidates are padded to a few sizes within the graph, so that few
programs are compiled.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from jax import export as jax_export

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.engine.programs.exported_programs import OF_ROWS
from m6rec_jax.engine.task_settings import NEVER, ExitSettings
from m6rec_jax.export import check_saved_model, tf_serving
from m6rec_jax.export.device_programs import known_tasks
from m6rec_jax.export.folder import write_manifest
from m6rec_jax.export.held_out import RANKED_BY, TOP_K, Asked, recommended
from m6rec_jax.export.recording import Recorder
from m6rec_jax.export.stablehlo import exported
from m6rec_jax.export.tensorflow_op import call_program
from m6rec_jax.export.text_graph import TextGraph

FORMAT = "m6rec-saved-model-1"
VERSION, HELD_OUT, CHECK = "1", "held_out.json", "check.py"
# Numbers of requests, and of candidates of each, that programs are compiled for; more are rounded
# up to a multiple of the last.
BATCH_SIZES = (1, 8, 64)
CANDIDATES = (4, 16, 64)
_STRINGS = tf.TensorSpec([None, None], tf.string)
_STRING = tf.TensorSpec([None], tf.string)
_COUNTS = tf.TensorSpec([None], tf.int32)
_MARKS = tf.TensorSpec([None, None], tf.bool)
# Of candidates that are padding, or have no words.
NO_SCORE = -1.0


class ServedModel(tf.Module):
    """The programs of a model over raw text.

    Args:
      asked: of a catalogue `recommend` gives the best `TOP_K` items; without, there is no such
        signature.
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        model, recorder, catalogue = asked.model, asked.recorder, asked.catalogue
        settings = model.settings
        limit = settings.target_length
        self._text = TextGraph(model.vocabulary, settings.source_length, limit)
        self._tasks = _Tasks(model, limit)
        weights = {name: np.asarray(value) for name, value in flatten(model.variables).items()}
        self.weights = [
            tf.Variable(value, trainable=False, name=name) for name, value in weights.items()
        ]
        self._weights = dict(zip(weights, self.weights, strict=True))
        self._calls = {
            name: self._program(name, recorder, weights, asked.platforms, limit)
            for name in recorder.programs
        }
        self.functions: dict[str, Any] = {}
        for name, needed, spec in (
            ("score", "score", (_STRINGS, _COUNTS, _STRINGS, _COUNTS, _MARKS, _STRING)),
            ("user", "user", (_STRINGS, _COUNTS, _STRING)),
            ("item", "item", (_STRING, _STRING)),
            ("generate", "greedy", (_STRINGS, _COUNTS, _STRING, _STRING)),
        ):
            if needed in recorder.programs:
                self.functions[name] = tf.function(getattr(self, name), input_signature=spec)
        if catalogue is not None:
            self._catalogue = tf.Variable(catalogue.vectors, trainable=False)
            self._catalogue_task = catalogue.task
            self._ids = tf.constant(list(catalogue.ids))
            self._titles = tf.constant(list(catalogue.titles))
            self._k = min(TOP_K, len(catalogue.ids))
            self.functions["recommend"] = tf.function(
                self.recommend, input_signature=(_STRINGS, _COUNTS, _STRING)
            )

    def score(
        self,
        history: Any,
        history_length: Any,
        candidates: Any,
        num_candidates: Any,
        repeats: Any,
        task: Any,
    ) -> dict[str, Any]:
        """Probabilities float32 `[batch, candidates]`; `NO_SCORE` for what is not there."""
        shape = tf.shape(candidates)
        wide = _rounded(shape[1], CANDIDATES)
        own = self._tasks.of(task, "scoring")
        rows = self._text.candidates(candidates, num_candidates, own["text_length"])
        inputs = self._source(history, history_length, own)
        inputs["decoder_input_tokens"] = _widened(rows.tokens, wide)
        inputs["decoder_block_ids"] = _widened(rows.blocks, wide)
        marks = tf.cast(repeats, tf.int32)[:, :, None] * rows.blocks
        inputs["decoder_repeats"] = _widened(marks, wide)
        values = self._run("score", inputs, own)["values"][: shape[0], : shape[1]]
        found = tf.gather(values, rows.ends, axis=2, batch_dims=2)
        return {"scores": tf.where(rows.present, found, NO_SCORE)}

    def user(self, history: Any, history_length: Any, task: Any) -> dict[str, Any]:
        """Unit vectors float32 `[batch, retrieval]`."""
        inputs = self._source(history, history_length, self._tasks.of(task, "retrieval"))
        return {"vectors": self._run("user", inputs)["values"][: tf.shape(history)[0]]}

    def item(self, text: Any, task: Any) -> dict[str, Any]:
        """Unit vectors float32 `[batch, retrieval]`; zeros for texts without words."""
        own = self._tasks.of(task, "retrieval")
        number = tf.shape(text)
        rows = self._text.candidates(text[:, None], tf.ones_like(number[0:1]), own["text_length"])
        inputs = {
            "decoder_input_tokens": rows.tokens[:, 0],
            "decoder_block_ids": rows.blocks[:, 0],
            "task_ids": own["task_ids"],
        }
        values = self._run("item", inputs)["values"][: number[0]]
        found = tf.gather(values, rows.ends[:, 0], axis=1, batch_dims=1)
        return {"vectors": tf.where(rows.present, found, 0.0)}

    def recommend(self, history: Any, history_length: Any, task: Any) -> dict[str, Any]:
        """`ids`, `titles` and `scores` `[batch, k]` of the catalogue, best first by the towers."""
        own = tf.debugging.assert_equal(
            task, self._catalogue_task, f"the catalogue is of {self._catalogue_task}"
        )
        with tf.control_dependencies([own]):
            users = self.user(history, history_length, task)["vectors"]
        scores, places = tf.math.top_k(tf.matmul(users, self._catalogue, transpose_b=True), self._k)
        return {
            "ids": tf.gather(self._ids, places),
            "titles": tf.gather(self._titles, places),
            "scores": scores,
        }

    def generate(self, history: Any, history_length: Any, prefix: Any, task: Any) -> dict[str, Any]:
        """`texts` `[batch]`, the prefix included."""
        own = self._tasks.of(task, "generation")
        inputs = self._source(history, history_length, own)
        length = self._calls["greedy"].inputs["prefix_ids"][1]
        given, _ = self._text.tokens(prefix[:, None])
        inputs["prefix_ids"] = tf.pad(given[:, 0], [[0, 0], [0, length]])[:, :length]
        tokens = self._run("greedy", inputs, own)["tokens"][: tf.shape(history)[0], 0]
        return {"texts": self._text.text(tokens)}

    def _source(self, history: Any, length: Any, own: Mapping[str, Any]) -> dict[str, Any]:
        tokens, blocks = self._text.source(history, length, own["source_length"])
        return {
            "encoder_input_tokens": tokens,
            "encoder_block_ids": blocks,
            "task_ids": own["task_ids"],
        }

    def _run(
        self, name: str, inputs: Mapping[str, Any], own: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A program on a batch that is padded to one of `BATCH_SIZES`; so are its outputs.

        `own`, of the requests' tasks, is what it takes beside its other inputs.
        """
        call, size = self._calls[name], _rounded(tf.shape(inputs["task_ids"])[0], BATCH_SIZES)
        given = {**(own or {}), **inputs}
        return call({key: _taller(given[key], size) for key in call.inputs})

    def _program(
        self,
        name: str,
        recorder: Recorder,
        weights: Mapping[str, np.ndarray],
        platforms: Sequence[str],
        text_length: int,
    ) -> _Program:
        program = recorder.programs[name]
        call = next(call for call in recorder.calls if call.program == name)
        if name in OF_ROWS or name == "item":
            # A candidate a row, and no longer than that.
            inputs = {
                key: value[..., :text_length] if key.startswith("decoder_") else value
                for key, value in call.inputs.items()
            }
            call = dataclasses.replace(call, inputs=inputs)
        found = exported(program, {**weights, **program.constants}, call, platforms)
        constants = {key: tf.constant(value) for key, value in program.constants.items()}
        return _Program(found, {**self._weights, **constants}, call.inputs)


class _Program:
    """A program of `jax.export` as an operation of a graph."""

    def __init__(
        self,
        found: jax_export.Exported,
        weights: Mapping[str, Any],
        inputs: Mapping[str, np.ndarray],
    ) -> None:
        self.inputs = {name: value.shape for name, value in inputs.items()}
        self._found, self._weights = found, weights

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        arguments = [
            *(self._weights[name] for name in sorted(self._weights)),
            *(inputs[name] for name in sorted(self.inputs)),
        ]
        kept = [arguments[i] for i in self._found.module_kept_var_idx]
        found = call_program(self._found, kept)
        return dict(jax.tree.unflatten(self._found.out_tree, found))


class _Tasks(tf.Module):
    """What programs must know of each request's task, by its name."""

    def __init__(self, model: LoadedModel, text_length: int) -> None:
        super().__init__()
        tasks, config = model.settings.tasks, model.model.config
        known = known_tasks(model, {}, text_length)
        self._kinds = {name: own["kind"] for name, own in known.items()}
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(list(tasks), list(range(len(tasks)))), -1
        )

        def column(name: str, dtype: Any = np.int32) -> np.ndarray:
            return np.array([own[name] for own in known.values()], dtype)

        self._values: dict[str, np.ndarray] = {
            "task_ids": column("task_id")[:, None],
            "positive_classes": column("positive"),
            "sampling_rates": column("sampling_rates", np.float32),
            "source_length": column("source_length"),
            "text_length": column("text_length"),
        }
        last = ExitSettings(NEVER, config.num_exits)
        exits = [own.exits or last for own in tasks.values()]
        self._values["exit_threshold"] = np.array([[x.threshold] for x in exits], np.float32)
        self._values["exit_depth"] = np.array([[x.depth] for x in exits], np.int32)

    def of(self, task: Any, kind: str) -> dict[str, Any]:
        """Values of each request's task, `[batch, ...]`; a task of no such kind fails the call."""
        number = self._table.lookup(task)
        fitting = [place for place, own in enumerate(self._kinds.values()) if own == kind]
        names = [name for name, own in self._kinds.items() if own == kind]
        known = tf.debugging.Assert(
            tf.reduce_all(tf.reduce_any(number[:, None] == tf.constant(fitting), axis=1)),
            [f"unknown task; known for {kind}: {', '.join(names)}"],
        )
        with tf.control_dependencies([known]):
            number = tf.identity(number)
        return {name: tf.gather(value, number) for name, value in self._values.items()}


def _rounded(number: Any, sizes: Sequence[int]) -> Any:
    """The smallest of the sizes that fits, or a multiple of the last one."""
    last = sizes[-1]
    ascending = tf.constant(sizes)
    fits = tf.reduce_min(tf.where(ascending >= number, ascending, ascending.dtype.max))
    return tf.where(number <= last, fits, -(-number // last) * last)


def _taller(value: Any, size: Any) -> Any:
    room = size - tf.shape(value)[0]
    return tf.pad(value, [[0, room], *[[0, 0]] * (len(value.shape) - 1)])


def _widened(value: Any, size: Any) -> Any:
    room = size - tf.shape(value)[1]
    return tf.pad(value, [[0, 0], [0, room], *[[0, 0]] * (len(value.shape) - 2)])


def write(folder: Path, asked: Asked) -> None:
    """Writes the SavedModel, as version 1, with held-out requests and what checks them."""
    served, answered = ServedModel(asked), asked.answered
    if asked.catalogue is not None:
        answered = [*answered, *recommended(asked.catalogue, answered)]
    tf.saved_model.save(served, str(folder / VERSION), signatures=served.functions)
    task_of = {one.signature: one.task for one in answered}
    tf_serving.write_warm_up(folder / VERSION, served.functions, task_of, BATCH_SIZES, CANDIDATES)
    tf_serving.write_batching(folder / tf_serving.BATCHING, BATCH_SIZES)
    (folder / HELD_OUT).write_text(json.dumps([one.to_json() for one in answered]), "utf-8")
    shutil.copy(check_saved_model.__file__, folder / CHECK)
    own: dict[str, Any] = {} if asked.catalogue is None else {"recommend": RANKED_BY}
    write_manifest(
        *(folder, FORMAT, asked.model, asked.platforms, asked.precision),
        version=VERSION,
        signatures=sorted(served.functions),
        **own,
    )
