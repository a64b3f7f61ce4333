"""Runs an export for devices; needs ai-edge-litert, numpy and sentencepiece.

    model = EdgeModel("exported/phone")
    model.score(["24 years old", "liked Fargo (1996)"], ["Heat (1995)", "Alien (1979)"])
    model.recommend(["24 years old", "liked Fargo (1996)"], k=5)   # of the packed catalogue
    model.write(["24 years old", "liked Fargo (1996)"], prefix="title:")

Every export has a copy of this file, `client.py`. As a program it compares the export with the
answers of the model that it was made of, and prints JSON. It is also what to read before writing
a client in another language: `source_row` and `text_row` are all the layout there is.

A history is segments of text as `DatasetTemplate.history_segments` renders them: profile,
behaviours (oldest first), context. What the encoder makes of the last one is kept: to score more
candidates of the same history costs the candidates alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

LITERT_FORMAT = "m6rec-litert-1"
MANIFEST, MODEL, VOCABULARY = "export.json", "model.tflite", "vocabulary.model"
CATALOGUE, HELD_OUT = "catalogue.npz", "held_out.json"
EOS_ID = 1


class ExportError(ValueError):
    """An export is damaged, or is asked for what it has not."""


class Recommended(NamedTuple):
    """An item of the catalogue; `score` is a cosine."""

    id: str
    title: str
    score: float


class Program:
    """One of an export's functions.

    Attributes:
      inputs: shape and type of each array that it takes.
    """

    def __init__(self, interpreter: Any, name: str) -> None:
        self._run = interpreter.get_signature_runner(name)
        details = self._run.get_input_details().items()
        self.inputs = {name: (detail["shape"], detail["dtype"]) for name, detail in details}

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Results by name."""
        return self._run(**inputs)


def open_programs(folder: Path, num_threads: int) -> dict[str, Program]:
    """Those of an export, by name."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / MODEL), num_threads=num_threads)
    interpreter.allocate_tensors()
    return {name: Program(interpreter, name) for name in interpreter.get_signature_list()}


class EdgeModel:
    """An export that was opened.

    Args:
      folder: of `m6rec export --format litert`.
      num_threads: of a program.

    Raises:
      ExportError: there is none, or a file is missing or changed; names it.

    Attributes:
      manifest: what `export.json` holds.
      num_steps: that the last text took.
    """

    def __init__(self, folder: str | Path, num_threads: int = 1) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for name, checksum in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
                raise ExportError(f"{path} is missing or damaged; export the model anew")
        self._programs = open_programs(self.folder, num_threads)
        self._pieces = sentencepiece.SentencePieceProcessor(str(self.folder / VOCABULARY))
        self.num_steps = 0
        self._encoded: tuple[Any, dict[str, np.ndarray]] = (None, {})
        self._catalogue: tuple[np.ndarray, list[str], list[str]] | None = None
        if (self.folder / CATALOGUE).is_file():
            with np.load(self.folder / CATALOGUE) as file:
                vectors = file["vectors"].astype(np.float32) * file["scales"][:, None]
                self._catalogue = vectors, file["ids"].tolist(), file["titles"].tolist()

    def score(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        task: str = "",
        repeats: Sequence[bool] = (),
    ) -> np.ndarray:
        """Probability of each candidate, float32 `[candidates]`; -1 for texts without words.

        Args:
          history, candidates: texts.
          task: name of one of the export's; empty: its only one for scoring.
          repeats: which candidates the user had before, `[candidates]`; empty: none of them.
        """
        own = self._task(task, "scoring")
        encoded = self._encode(history, own)
        number, lengths = self.manifest["candidates"], self.manifest["candidate_lengths"]
        rows = [self._text_row(text, own["text_length"]) for text in candidates]
        found = np.full(len(rows), -1.0, np.float32)
        # Short ones together: less of their program's room is padding.
        present = sorted((k for k, row in enumerate(rows) if row), key=lambda k: len(rows[k][0]))
        for start in range(0, len(present), number):
            part = present[start : start + number]
            longest = len(rows[part[-1]][0])
            length = next(own for own in lengths if own >= longest)
            tokens, blocks = (np.zeros((number, length), np.int32) for _ in range(2))
            had = np.zeros((number, 1), np.int32)
            had[: len(part), 0] = [repeats[k] for k in part] if len(repeats) else 0
            for place, k in enumerate(part):
                tokens[place, : len(rows[k][0])], blocks[place, : len(rows[k][1])] = rows[k]
            answer = self._run(
                f"score_{length}",
                **encoded,
                tokens=tokens,
                blocks=blocks,
                repeats=had,
                task=[[own["task_id"]]],
                positive=[own["positive"]],
                sampling_rates=[own["sampling_rates"]],
            )
            found[part] = answer["scores"][: len(part)]
        return found

    def user(self, history: Sequence[str], task: str = "") -> np.ndarray:
        """A unit vector, float32 `[retrieval]`."""
        own = self._task(task, "retrieval")
        tokens, blocks = self._source(history, own)
        found = self._run("user", tokens=tokens, blocks=blocks, task=[[own["task_id"]]])
        return np.array(found["vectors"][0])

    def item(self, text: str, task: str = "") -> np.ndarray:
        """A unit vector, float32 `[retrieval]`; zeros for a text without words."""
        own = self._task(task, "retrieval")
        row = self._text_row(text, own["text_length"])
        tokens, blocks = (_padded(part, self.manifest["item_length"]) for part in row or ((), ()))
        found = self._run("item", tokens=[tokens], blocks=[blocks], task=[[own["task_id"]]])
        return np.array(found["vectors"][0] * bool(row))

    def recommend(self, history: Sequence[str], k: int = 10, task: str = "") -> list[Recommended]:
        """The nearest items of the packed catalogue by the two towers alone, best first.

        A server's ranking is a hybrid of them and of co-occurrence, which no export has.

        Raises:
          ExportError: the export has no catalogue, or it is of another task.
        """
        if self._catalogue is None:
            raise ExportError(f"{self.folder} has no catalogue: export it with --index")
        own = self.manifest["catalogue_task"]
        if task not in ("", own):
            raise ExportError(f"the catalogue of {self.folder} is of {own!r}, not of {task!r}")
        vectors, ids, titles = self._catalogue
        scores = vectors @ self.user(history, own)
        best = np.argsort(-scores, kind="stable")[:k]
        return [Recommended(ids[i], titles[i], float(scores[i])) for i in best]

    def write(self, history: Sequence[str], prefix: str = "", task: str = "") -> str:
        """The text whose every token is the likeliest one, the prefix included."""
        own = self._task(task, "generation")
        encoded = self._encode(history, own)
        task_id = [[own["task_id"]]]
        cache = self._run("start", **encoded, task=task_id)
        given = self._pieces.encode(prefix)
        token, written = self.manifest["special_ids"][2], list[int]()
        for position in range(self.manifest["max_tokens"]):
            found = self._run(
                "step",
                **cache,
                mask=encoded["mask"],
                token=[token],
                position=[position],
                task=task_id,
            )
            self.num_steps = position + 1
            likeliest = int(found.pop("token")[0])
            token = given[position] if position < len(given) else likeliest
            cache |= found
            if token == EOS_ID:
                break
            written.append(token)
        return str(self._pieces.decode(written))

    def forget(self) -> None:
        """Drops what is kept of the last history."""
        self._encoded = (None, {})

    def _encode(self, history: Sequence[str], own: Mapping[str, Any]) -> dict[str, np.ndarray]:
        key = (tuple(history), own["task_id"])
        if self._encoded[0] != key:
            tokens, blocks = self._source(history, own)
            found = self._run("encode", tokens=tokens, blocks=blocks, task=[[own["task_id"]]])
            self._encoded = key, {name: np.array(value) for name, value in found.items()}
        return self._encoded[1]

    def _source(self, history: Sequence[str], own: Mapping[str, Any]) -> tuple[Any, Any]:
        pieces = [self._pieces.encode(text) for text in history]
        special, length = self.manifest["special_ids"], self.manifest["source_length"]
        tokens, blocks = source_row(pieces, special, own["source_length"])
        return [_padded(tokens, length)], [_padded(blocks, length)]

    def _text_row(self, text: str, limit: int) -> tuple[list[int], ...]:
        """Nothing for a text without words."""
        pieces = self._pieces.encode(text)
        return text_row(pieces, self.manifest["special_ids"], limit) if pieces else ()

    def _task(self, name: str, kind: str) -> Mapping[str, Any]:
        tasks = self.manifest["tasks"]
        fitting = [own for own, task in tasks.items() if task["kind"] == kind]
        if name in fitting or (not name and len(fitting) == 1):
            return tasks[name or fitting[0]]
        raise ExportError(f"no task {name!r} for {kind}: {', '.join(fitting) or 'none'}")

    def _run(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        if signature not in self._programs:
            raise ExportError(f"{self.folder} has no {signature!r}: {', '.join(self._programs)}")
        program = self._programs[signature]
        # What a program does not read, it does not take; an empty cache is zeros.
        return program(
            **{
                name: np.asarray(inputs[name], dtype) if name in inputs else np.zeros(shape, dtype)
                for name, (shape, dtype) in program.inputs.items()
            }
        )


def source_row(
    segments: Sequence[Sequence[int]], special_ids: Sequence[int], limit: int
) -> tuple[list[int], list[int]]:
    """Tokens and block ids of a history: [BOS'] profile | behaviour | ... | context [EOS'].

    The oldest behaviours are dropped until all fits into `limit` tokens; if the profile, the newest
    behaviour and the context alone do not, the longest of them are cut to a common length.
    """
    kept = [list(segment) for segment in segments]
    while len(kept) > 3 and sum(map(len, kept)) > limit - 2:
        del kept[1]
    while sum(map(len, kept)) > limit - 2:
        # Of equally long ones the last: earlier ones keep what an even share leaves over.
        longest = max(range(len(kept)), key=lambda place: (len(kept[place]), place))
        kept[longest].pop()
    tokens = [special_ids[0], *(kept[0] if kept else ())]
    blocks = [1] * len(tokens)
    for segment in kept[1:]:
        if segment:
            tokens += segment
            blocks += [blocks[-1] + 1] * len(segment)
    return [*tokens, special_ids[1]], [*blocks, blocks[-1] + 1]


def text_row(
    pieces: Sequence[int], special_ids: Sequence[int], limit: int
) -> tuple[list[int], list[int]]:
    """Tokens and block ids of a candidate: [BOS] words [EOS], at most `limit` of them."""
    tokens = [special_ids[2], *pieces[: limit - 2], special_ids[3]]
    return tokens, [1] * len(tokens)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What `export.json` holds; raises ExportError where there is none of this format."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        found = manifest["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{folder} is no export of a model: {path}: {error}") from error
    if found != LITERT_FORMAT:
        raise ExportError(f"{path} is of format {found!r}; this reads {LITERT_FORMAT!r}")
    return dict(manifest)


def check(model: EdgeModel) -> dict[str, Any]:
    """By method and task, how answers to the held-out requests compare with the model's own.

    Returns:
      `rows`, `largest_difference` relative to the largest number, `equal` texts, and for scores
      `auc` and `model_auc`, where the rows have labels of both kinds.
    """
    asked = json.loads((model.folder / HELD_OUT).read_text("utf-8"))
    results: dict[str, Any] = {}
    for signature, task in dict.fromkeys((one["signature"], one["task"]) for one in asked):
        own = [one for one in asked if (one["signature"], one["task"]) == (signature, task)]
        apart, largest, equal = 0.0, 1e-30, 0
        labels, ours, theirs = list[int](), list[float](), list[float]()
        for one in own:
            inputs, expected = one["inputs"], one["output"]
            answer: Any
            if signature == "generate":
                answer = model.write(inputs["history"], inputs["prefix"], task)
                equal += answer == expected
                continue
            if signature == "score":
                answer = model.score(
                    inputs["history"], inputs["candidates"], task, inputs["repeats"]
                )
                labels += inputs.get("labels", ())
                ours += answer.tolist()
                theirs += expected
            elif signature == "user":
                answer = model.user(inputs["history"], task)
            elif signature == "recommend":
                best = model.recommend(inputs["history"], len(expected), task)
                answer = np.array([item.score for item in best])
            else:
                answer = model.item(inputs["text"], task)
            # Unlike `max` this keeps NaN.
            apart = np.maximum(apart, np.abs(answer - np.asarray(expected)).max())
            largest = max(largest, float(np.abs(expected).max()))
        results[f"{signature} {task}"] = compared = {
            "rows": len(own),
            "largest_difference": float(apart / largest),
            "equal": equal / len(own) if signature == "generate" else 1.0,
        }
        if len(set(labels)) == 2 and len(labels) == len(ours):
            compared |= {"auc": _auc(labels, ours), "model_auc": _auc(labels, theirs)}
    return results


def _auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    found, chosen = np.asarray(scores), np.asarray(labels) > 0
    _, places, counts = np.unique(found, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positive, negative = chosen.sum(), (~chosen).sum()
    return float((ranks[chosen].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _padded(values: Sequence[int], length: int) -> list[int]:
    return [*values, *[0] * (length - len(values))]


if __name__ == "__main__":
    opened = EdgeModel(Path(__file__).resolve().parent)
    manifest, results = opened.manifest, check(opened)
    unwanted = {"flax", "jax", "m6rec_jax", "tensorflow"}
    print(json.dumps({"results": results, "imported": sorted(unwanted & set(sys.modules))}))
    wrong = [
        name
        for name, own in results.items()
        if not own["largest_difference"] <= manifest["tolerance"]
        or own["equal"] < manifest["equal_texts"]
    ]
    sys.exit(f"not as the model answers: {', '.join(wrong)}" if wrong else 0)
