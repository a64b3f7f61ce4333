"""Scoring and generation on a CPU beside Hugging Face transformers and CTranslate2: one run.

    python -m benchmarks.transformers_cpu [--turns 5]

Needs the extra `parity` (torch, transformers, ctranslate2). All are T5 1.1 small with the same
random weights, written by `m6rec_jax.checkpoints`.

*Scoring*: the mean log probability of each of 100 candidates of 16 tokens, `[BOS]` and `[EOS]`
included, for one user of some 380 tokens. We take texts; the others are given tokens. Hugging Face
encodes the user once, and its decoder reads 100 copies. CTranslate2 scores 100 pairs. *k late*:
ours with late interaction, everything cached that can be (`SegmentCache`): another model, as far as
scores go.

*Generation*: 32 tokens, greedily, after a source of 64, at batch 1 and 16. The weights keep texts
from ending.

Every program has a process of its own, for in one JAX and torch slow each other down, and as many
threads as there are processors. The processes take turns, so that what else the machine does meets
all of them. In float32 their scores and tokens must agree. Rows go to
`benchmarks/results/transformers_cpu.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command_line import errors_told
from benchmarks.late_interaction import S, T, texts
from benchmarks.random_models import greedy_program, random_variables, random_words
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from m6rec_jax import configuration
from m6rec_jax.checkpoints.huggingface import read_huggingface, write_huggingface
from m6rec_jax.checkpoints.t5_weights import Weights
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.candidates.scoring import CandidateScorer
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.errors import M6RecError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.model.decoding_layout import for_decoding_on_cpu
from m6rec_jax.objectives.language_modelling import token_cross_entropy
from m6rec_jax.text import rows
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID, UNK_ID, Vocabulary

GIN_FILE = "gin_configs/models/small.gin"
SOURCE_LENGTH, LENGTH = 64, 32
CANDIDATE_LENGTH = 16
BATCHES = (1, 16)
SCORING, GENERATION = "scoring", "generation, batch {}"
OWN = "m6rec_jax, {}"
HUGGING_FACE = "Hugging Face, {}"
CTRANSLATE2 = "CTranslate2, {}"
# By split, with the program whose results the others' must equal.
COMPARED: dict[str, tuple[str, ...]] = {
    "float32": (OWN, HUGGING_FACE, CTRANSLATE2),
    "bfloat16": (OWN, HUGGING_FACE),
    "int8": (CTRANSLATE2,),
}
LATE_LAYERS = (3, 1)
# Between the name of a job and that of another model that does it.
VARIANT = "; "
# How far mean log probabilities may lie apart in float32.
TOLERANCE = 1e-3
Job = Callable[[], Any]
Metrics = dict[str, float]


# What everybody is asked.


def user_and_candidates(vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    return texts(vocabulary, CANDIDATE_LENGTH - 2)


def tokens(vocabulary: Vocabulary) -> tuple[list[int], list[list[int]]]:
    """The user's, and the candidates' without `[BOS]` and `[EOS]`, as our engines have them."""
    history, candidates = user_and_candidates(vocabulary)
    source = rows.source_row(vocabulary, history, S)["encoder_input_tokens"]
    most = CANDIDATE_LENGTH - 2
    return source.tolist(), [list(vocabulary.encode(text))[:most] for text in candidates]


def sources(vocab_size: int, batch: int) -> np.ndarray:
    """int32 `[batch, source]`, of texts to go on from."""
    rng = np.random.default_rng(0)
    return rng.integers(3, vocab_size, (batch, SOURCE_LENGTH), np.int32)


def write_model(config: ModelConfig, folder: Path) -> None:
    """Random weights, as a folder of Hugging Face's, for which no token ends a text."""
    params = random_variables(M6Rec(config))["params"]
    head = params["logits_head"]["kernel"]
    # A logit of 0, where the largest of thousands is above it.
    params["logits_head"]["kernel"] = head.at[:, np.array([PAD_ID, EOS_ID])].set(0.0)
    write_huggingface(Weights(config, jax.device_get(flatten(params))), folder)


# The programs: from a folder to jobs by name.


class MeanLogProbability(CandidateScorer):
    """The mean over a candidate's tokens and `[EOS]`, in nats."""

    _targets = ("decoder_target_tokens", "decoder_loss_weights")
    decoder_features = (*CandidateScorer.decoder_features, *_targets)

    @staticmethod
    def read(model: M6Rec, variables: Any, hidden: Any, features: Any) -> jax.Array:
        logits = model.apply(variables, hidden, method=model.token_logits)
        losses = token_cross_entropy(logits, features["decoder_target_tokens"])
        blocks, weights = features["decoder_block_ids"], features["decoder_loss_weights"]
        same = (blocks[:, :, None] == blocks[:, None]) * weights[:, None]
        return -jnp.einsum("rts,rs->rt", same, losses) / jnp.maximum(same.sum(-1), 1e-9)


def own_jobs(folder: Path, operands: str) -> dict[str, Job]:
    weights = read_huggingface(folder / "model")
    vocabulary = Vocabulary(folder / "words.model")
    variables = jax.device_put({"params": nested(weights.leaves)})
    config = weights.config.replace(matmul_dtype=operands)
    history, candidates = user_and_candidates(vocabulary)

    def scoring(late: int) -> Job:
        own = config.replace(late_layers_start=config.num_encoder_layers - late) if late else config
        model = M6Rec(own)
        cache = None
        if late:
            cache = SegmentCache(model, source_length=S, target_length=T, runtime=Runtime())
        options = EngineOptions(
            S,
            T,
            candidate_length=CANDIDATE_LENGTH,
            batch_sizes=(1, -(-len(candidates) * CANDIDATE_LENGTH // T)),
            source_buckets=(S,),
            target_buckets=(T,),
            segments=cache,
        )
        scorer = MeanLogProbability(model, variables, vocabulary, options)
        return lambda: scorer.score_requests([history], [candidates])[0]

    model = M6Rec(config)
    jobs = {SCORING: scoring(0)} | {
        f"{SCORING}{VARIANT}{late} late, cached": scoring(late) for late in LATE_LAYERS
    }
    program = greedy_program(model, LENGTH)
    laid_out = jax.jit(for_decoding_on_cpu, static_argnums=0)(config, variables)

    def generation(batch: int) -> Job:
        source = sources(config.vocab_size, batch)
        return lambda: np.asarray(program(laid_out, source))

    return jobs | {GENERATION.format(batch): generation(batch) for batch in BATCHES}


def huggingface_jobs(folder: Path, dtype: str) -> dict[str, Job]:
    import torch
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    torch.set_num_threads(num_threads())
    torch.set_grad_enabled(False)
    model = T5ForConditionalGeneration.from_pretrained(
        folder / "model", dtype=getattr(torch, dtype)
    ).eval()
    user, candidates = tokens(Vocabulary(folder / "words.model"))
    source = torch.tensor([user])
    targets = torch.full((len(candidates), CANDIDATE_LENGTH - 1), -1)
    for row, candidate in zip(targets, candidates, strict=True):
        row[: len(candidate) + 1] = torch.tensor([*candidate, EOS_ID])
    counts = targets >= 0
    targets = torch.where(counts, targets, PAD_ID)
    inputs = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=PAD_ID)

    def score() -> np.ndarray:
        encoded = model.encoder(input_ids=source).last_hidden_state
        copies = BaseModelOutput(last_hidden_state=encoded.expand(len(inputs), -1, -1))
        logits = model(encoder_outputs=copies, decoder_input_ids=inputs, use_cache=False).logits
        chosen = torch.gather(logits, -1, targets[..., None])[..., 0].float()
        log_p = chosen - torch.logsumexp(logits, -1).float()
        return ((log_p * counts).sum(-1) / counts.sum(-1)).numpy()

    def generation(batch: int) -> Job:
        ids = torch.from_numpy(sources(model.config.vocab_size, batch)).long()
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "num_beams": 1}
        options |= {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH}
        return lambda: model.generate(ids, **options)[:, 1:].numpy()

    return {SCORING: score} | {GENERATION.format(batch): generation(batch) for batch in BATCHES}


def ctranslate2_jobs(folder: Path, compute_type: str) -> dict[str, Job]:
    import ctranslate2

    translator = ctranslate2.Translator(
        str(folder / f"ctranslate2-{compute_type}"),
        device="cpu",
        compute_type=compute_type,
        inter_threads=1,
        intra_threads=num_threads(),
    )
    vocabulary = Vocabulary(folder / "words.model")
    vocab_size = read_huggingface(folder / "model").config.vocab_size
    names = token_names(vocab_size)
    user, candidates = tokens(vocabulary)
    source = [[names[i] for i in user]] * len(candidates)
    targets = [[names[i] for i in candidate] for candidate in candidates]
    ids = {name: i for i, name in enumerate(names)}

    def score() -> np.ndarray:
        found = translator.score_batch(source, targets)
        return np.array([np.mean(one.log_probs) for one in found], np.float32)

    def generation(batch: int) -> Job:
        texts = [[names[i] for i in row] for row in sources(vocab_size, batch)]
        options = {"max_decoding_length": LENGTH, "min_decoding_length": LENGTH, "beam_size": 1}

        def generate() -> np.ndarray:
            found = translator.translate_batch(texts, **options)
            return np.array([[ids[name] for name in one.hypotheses[0]] for one in found])

        return generate

    return {SCORING: score} | {GENERATION.format(batch): generation(batch) for batch in BATCHES}


def token_names(vocab_size: int) -> list[str]:
    names = [str(i) for i in range(vocab_size)]
    names[PAD_ID], names[EOS_ID], names[UNK_ID] = "<pad>", "</s>", "<unk>"
    return names


def write_ctranslate2(folder: Path, vocab_size: int) -> None:
    """Converts `folder / "model"`, with a tokenizer that the converter reads token names from."""
    # Imported here, as in the jobs: each library only in the processes that need it.
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class Converter(TransformersConverter):
        def load_model(self, *args: Any, **options: Any) -> Any:
            model = super().load_model(*args, **options)
            # Transformers 5 says of every T5 that its head is the embedding, which is then scaled.
            model.config.tie_word_embeddings = False
            return model

    names = {name: i for i, name in enumerate(token_names(vocab_size))}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(names, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder / "model")
    for kind in (kind for kind, programs in COMPARED.items() if CTRANSLATE2 in programs):
        Converter(str(folder / "model")).convert(
            str(folder / f"ctranslate2-{kind}"), quantization=kind
        )


_JOBS = {OWN: own_jobs, HUGGING_FACE: huggingface_jobs, CTRANSLATE2: ctranslate2_jobs}


# Processes that take turns.


def num_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def serve(program: str, kind: str, folder: Path, connection: Connection) -> None:
    """Answers the name of a job with its seconds and its result."""
    jobs = _JOBS[program](folder, kind)
    connection.send(list(jobs))
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            name = connection.recv()
            started = time.perf_counter()
            result = jobs[name]()
            connection.send((time.perf_counter() - started, result))


class Program:
    """One of the compared in a process of its own."""

    def __init__(self, program: str, kind: str, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._name = program.format(kind)
        self._process = context.Process(
            target=serve, args=(program, kind, folder, other), daemon=True
        )
        self._process.start()
        other.close()  # an error over there then ends the wait here
        self.jobs: list[str] = self._receive()

    def run(self, job: str) -> tuple[float, np.ndarray]:
        """Seconds and result; raises M6RecError where the process ended."""
        self._connection.send(job)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:
            raise M6RecError(f"the process of {self._name} ended; it says why above") from error


def check_agreement(job: str, results: Sequence[np.ndarray]) -> None:
    """Raises M6RecError where scores or tokens of programs are not the same."""
    first, *others = results
    for other in others:
        if job == SCORING:
            difference = float(np.abs(first - other).max())
        else:
            difference = float(np.mean(first != other))
        if not difference <= (TOLERANCE if job == SCORING else 0):
            raise M6RecError(f"{job}: the programs' results differ by {difference}")


def measure(folder: Path, turns: int) -> dict[tuple[str, str], list[float]]:
    """Seconds by program and job, of programs that take turns; the first turn is not among them.

    Raises:
      M6RecError: float32 programs that do not agree.
    """
    programs = {
        program.format(kind): Program(program, kind, folder)
        for kind, group in COMPARED.items()
        for program in group
    }
    own = programs[OWN.format("float32")]
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in progress_bar(range(turns + 1), unit="turn"):
        for job in own.jobs:
            answers = {
                name: program.run(job) for name, program in programs.items() if job in program.jobs
            }
            if turn:
                for name, (taken, _) in answers.items():
                    seconds.setdefault((name, job), []).append(taken)
            else:
                exact = [program.format("float32") for program in COMPARED["float32"]]
                check_agreement(job, [answers[name][1] for name in exact if name in answers])
    return seconds


def figures(seconds: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, dict[str, Metrics]]:
    """Metrics by what is measured and program; ratios are to Hugging Face in float32."""
    medians = {key: 1000 * statistics.median(times) for key, times in seconds.items()}
    found: dict[str, dict[str, Metrics]] = {}
    for (name, job), times in seconds.items():
        split, _, variant = job.partition(VARIANT)
        whole = f"{name}, {variant}" if variant else name
        found.setdefault(split, {})[whole] = {
            "request_milliseconds": medians[name, job],
            "fastest_milliseconds": 1000 * min(times),
            "times_faster": medians[HUGGING_FACE.format("float32"), split] / medians[name, job],
        }
    return found


def check_installed() -> None:
    """Raises M6RecError where one of the others' libraries is missing."""
    missing = [name for name in ("torch", "transformers", "ctranslate2") if not find_spec(name)]
    if missing:
        raise M6RecError(f"{', '.join(missing)} cannot be imported: install the extra 'parity'")


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    check_installed()
    configuration.parse_config([GIN_FILE], ["MODEL_DIR='unused'"])
    config = ModelConfig(dtype="float32")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_words(folder)
        write_model(config, folder / "model")
        write_ctranslate2(folder, config.vocab_size)
        found = figures(measure(folder, options.turns))
    measured: list[Row] = []
    for split, programs in found.items():
        measured += told_rows(
            programs, dataset="random histories", split=split, seed=None, gin_file=GIN_FILE
        )
    add_rows(results_path("transformers_cpu"), measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
